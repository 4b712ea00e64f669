"""The probe: complex steps where they are right, differences where not, with the reason."""

import numpy as np
import pytest
from helpers import normal

from vitnp import gradcheck

X = normal((3, 4), 1)


def check(f, grads=lambda x: 2 * x, x=X, **options):
    return gradcheck(f, x, grads=grads, **options)


def requires_real(error):
    def f(x):
        if x.dtype != np.float64:
            raise error
        return (x * x).sum()

    return f


ERRORS = (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, ZeroDivisionError)


@pytest.mark.parametrize("error", [*(error("no") for error in ERRORS), AssertionError(), KeyError("complex128")])
def test_whatever_a_function_raises_for_complex_numbers_it_is_checked_by_differences(error):
    report = check(requires_real(error))
    assert (report.method, report.verdict) == ("richardson", "PASS")
    assert report.notes[0].startswith(f"richardson, as a complex step is not possible: {type(error).__name__}")


def test_an_error_of_several_lines_is_a_note_of_one():
    report = check(requires_real(RuntimeError("no\nand again no")))
    assert "note: richardson, as a complex step is not possible: RuntimeError: no and again no" in str(report)


def test_a_function_that_fails_for_real_numbers_too_raises_its_own_error():
    def f(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        check(f)


@pytest.mark.parametrize(("share", "method"), [(1.0, "richardson"), (1e-2, "richardson"), (1e-3, "richardson")])
def test_a_function_of_which_a_part_is_lost_is_checked_by_differences(share, method):
    x = abs(X) + 0.1
    report = check(lambda x: (x * x).sum() + share * np.abs(x).sum(), lambda x: 2 * x + share * np.sign(x), x)
    assert (report.method, report.verdict) == (method, "PASS")
    assert "forward loses imaginary parts" in report.notes[0]


def test_a_function_of_which_little_is_lost_is_checked_by_both():
    arrays = {"x": X, "z": normal((3, 4), 2)}

    def f(x, z):
        return (x**3).sum() + 1e-6 * np.abs(z).sum()

    report = gradcheck(f, arrays, grads={"x": 3 * X * X, "z": 1e-6 * np.sign(arrays["z"])})
    assert (report.method, report.verdict) == ("complex", "PASS")
    assert report.notes == ["z by richardson, tolerance 1e-08: forward loses imaginary parts on the way from there"]


def test_a_kink_is_called_a_kink():
    x = X.copy()
    x[::2] = 0
    report = gradcheck(lambda x: np.maximum(x, 0), x, grads=lambda dy, x: dy * (x > 0), mode="full")
    assert report.verdict == "KINK"
    assert report.notes[0].startswith("richardson, as forward has a kink here: its slope is ")


def test_a_complex_step_that_is_not_finite_is_called_that():
    report = check(lambda x: (x * x).sum() + (0 if x.dtype.kind == "f" else 1j * np.nan))
    assert (report.method, report.verdict) == ("richardson", "PASS")
    assert report.notes[0].startswith("richardson, as a complex step gives nan, a difference ")


def test_a_right_function_has_no_note():
    assert check(lambda x: (x * x).sum()).notes == []


def test_two_numbers_that_differ_are_not_shown_as_equal():
    x = abs(X) + 0.1
    note = check(lambda x: (x * x).sum() + 1e-3 * np.abs(x).sum(), lambda x: 2 * x + 1e-3 * np.sign(x), x).notes[0]
    one, other = note.partition("complex step gives ")[2].split(", a difference ")
    assert one != other
