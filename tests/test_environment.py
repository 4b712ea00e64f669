"""A checkpoint says where it was made, and what has changed since is said by name."""

import platform
import re
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import vitnp
from vitnp.environment import changes, environment


def test_the_program_numpy_python_and_the_machine_are_named():
    found = environment()
    assert found["vitnp"] == vitnp.__version__
    assert (found["numpy"], found["python"]) == (np.__version__, platform.python_version())
    assert platform.machine() in found["machine"]


def test_other_vector_units_are_another_machine(monkeypatch):
    """They add in another order, so that a resumed run has other bits."""
    before = environment()
    info = {"tanh": {"ff": {"current": "VSX4", "available": "VSX4 VSX3"}}}
    monkeypatch.setattr(np.lib.introspect, "opt_func_info", lambda **names: info)
    assert re.fullmatch(r"machine .*, VSX4, was .+", changes(before, environment()))


@pytest.mark.skipif(not environment()["blas"], reason="threadpoolctl does not know this BLAS")
def test_the_threads_of_blas_are_those_of_now():
    with threadpool_limits(1, user_api="blas"):
        one = environment()["blas"]
    with threadpool_limits(2, user_api="blas"):
        two = environment()["blas"]
    assert "1 threads" in one
    assert one.replace("1 threads", "2 threads") == two


def test_nothing_has_changed_in_the_same_place():
    assert changes(environment(), environment()) == ""


def test_what_has_changed_is_named_with_both_sides():
    before = {"numpy": "2.0.2", "blas": "openblas 0.3.27 Haswell, 2 threads", "python": "3.11.7"}
    now = {**before, "numpy": "2.4.6", "machine": "Linux x86_64", "device": "cpu"}
    assert changes(before, now) == "machine Linux x86_64, was unknown; numpy 2.4.6, was 2.0.2"


def test_a_file_that_names_no_device_is_from_a_cpu(double):
    before = {name: value for name, value in environment().items() if name != "device"}
    assert changes(before, environment()) == ""
    assert changes(before, environment("cuda")).endswith(", was cpu")


def test_a_gpu_its_library_and_its_rounding_are_named(double, monkeypatch):
    monkeypatch.delenv("CUPY_TF32", raising=False)
    version = sys.modules["cupy"].__version__
    on_gpu = environment("cuda")
    monkeypatch.setenv("CUPY_TF32", "1")
    assert changes(environment(), on_gpu) == f"device strict double, CuPy {version}, was cpu"
    assert changes(on_gpu, environment("cuda")) == f"device strict double, CuPy {version}, TF32, was {on_gpu['device']}"
