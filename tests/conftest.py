"""Fixtures: the devices that the layers must run on alike."""

from collections.abc import Iterator

import pytest
import strict_cupy
from helpers import CPU, Backend
from hypothesis import settings
from threadpoolctl import threadpool_limits

# The same examples in every run: a property that fails, fails for everyone.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="session")
def one_blas_thread() -> Iterator[None]:
    """Small products gain nothing by threads, and lose much where several test processes wait for the same cores.

    Scripts that tests start are told by their environment.
    """
    with threadpool_limits(1, user_api="blas"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield


@pytest.fixture(params=["numpy", "strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """NumPy, the strict double of CuPy that needs no GPU, and CuPy where there is one."""
    if request.param == "numpy":
        yield CPU
    elif request.param == "strict":
        with strict_cupy.installed():
            yield Backend("strict", "cuda")
    else:
        cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
        if not cupy.cuda.is_available():
            pytest.skip("CuPy finds no NVIDIA GPU")
        yield Backend("cupy", "cuda")


@pytest.fixture
def double() -> Iterator[Backend]:
    """The strict double of CuPy alone, for what only it can tell, as how often the host waits."""
    with strict_cupy.installed():
        yield Backend("strict", "cuda")
