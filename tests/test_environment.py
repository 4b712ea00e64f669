"""A checkpoint says where it was made, and what has changed since is said by name."""

import platform
import re

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
    now = {**before, "numpy": "2.4.6", "machine": "Linux x86_64"}
    assert changes(before, now) == "machine Linux x86_64, was unknown; numpy 2.4.6, was 2.0.2"
