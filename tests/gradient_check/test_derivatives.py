"""Five ways to differentiate: their order, their rounding, and their own error bars."""

import cmath
import math

import pytest

from vitnp.gradient_check.derivatives import METHODS, central, complex_step, five_point, forward, richardson


def f(t):
    """A function whose derivatives at 0 of any order are not zero."""
    return cmath.exp(1.5 * t) * cmath.cos(0.7 * t - 0.3)


TRUE = 1.5 * math.cos(0.3) + 0.7 * math.sin(0.3)


@pytest.mark.parametrize(("estimate", "order"), [(forward, 1), (central, 2), (five_point, 4), (richardson, 4)])
def test_the_error_falls_with_the_power_of_the_step_that_the_series_says(estimate, order):
    errors = [abs(estimate(f, h).value - TRUE) for h in (0.04, 0.02)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("estimate", "constant", "order"),
    [(forward, 1 / 2, 1), (central, 1 / 6, 2), (five_point, -1 / 30, 4), (richardson, -1 / 480, 4)],
)
def test_the_first_term_left_out_is_the_one_in_the_docstring(estimate, constant, order):
    """Of exp every derivative at 0 is 1, so the error over h to its power is the constant."""
    h = 0.02
    assert (estimate(cmath.exp, h).value - 1) / h**order == pytest.approx(constant, rel=0.05)


@pytest.mark.parametrize("h", [1e-8, 1e-20, 1e-200])
def test_the_complex_step_is_right_to_the_last_digits_whatever_the_step(h):
    assert complex_step(f, h).value == pytest.approx(TRUE, rel=4e-16)


def test_the_complex_step_of_a_function_that_is_not_finite_is_nan():
    assert math.isnan(complex_step(lambda t: complex(math.inf, 1.0), 1e-20).value)


@pytest.mark.parametrize("h", [10.0**-k for k in range(1, 12)])
def test_richardson_s_error_bar_holds_from_truncation_to_rounding(h):
    value, bar = richardson(f, h)
    assert abs(value - TRUE) <= bar
    assert bar < 1


@pytest.mark.parametrize("estimate", [forward, central, five_point])
def test_where_rounding_rules_the_bars_of_the_others_hold_too(estimate):
    value, bar = estimate(f, 1e-10)
    assert abs(value - TRUE) <= bar


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_as_many_evaluations_as_it_says(name):
    calls = []
    METHODS[name].estimate(lambda t: calls.append(t) or f(t), METHODS[name].step)
    assert len(calls) == METHODS[name].evaluations


@pytest.mark.parametrize(
    ("name", "error"), [("complex", 1e-15), ("richardson", 1e-12), ("5point", 1e-12), ("central", 1e-9)]
)
def test_the_step_of_a_method_is_a_good_one(name, error):
    assert abs(METHODS[name].estimate(f, METHODS[name].step).value - TRUE) < error
