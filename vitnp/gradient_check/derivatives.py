"""Derivatives of a function f of one variable, at 0, by evaluating it: five ways, and how far each is to be trusted.

    forward     (f(h) − f(0)) / h                                       f' + h f''/2 + …
    central     D(h) = (f(h) − f(−h)) / 2h                              f' + h² f'''/6 + …
    5-point     (8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h             f' − h⁴ f⁗'/30 + …
    Richardson  (4 D(h/2) − D(h)) / 3                                   f' − h⁴ f⁗'/480 + …
    complex     Im f(ih) / h       (Squire and Trapp, SIAM Review 40, 1998)    f' − h² f'''/6 + …

What is left out of the series, the truncation, falls with h. But f is only known to ε|f|, and the first four divide
this rounding by h: it grows as h falls. Between the two lies the best step, and at the best step a difference knows
half, two thirds or four fifths of the digits. The complex step subtracts nothing, so that h can be 1e-20 and all digits
are right; it needs an f that is analytic, and code that keeps imaginary parts.

Two central differences also tell what they are worth. Their extrapolation changes D(h/2) by about its own truncation
error, far more than what is left in the result: with the rounding, that is Richardson's error bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

Function = Callable[[complex], complex]

EPSILON = 2.0**-52  # of float64


class Estimate(NamedTuple):
    """A derivative, and by how much it may be off by its own account."""

    value: float
    bar: float


class Method(NamedTuple):
    """A way to differentiate: `estimate(f, h, epsilon)`, where f is known to a relative epsilon.

    `step` is relative to the size of what moves, `tolerance` to that of the gradient.
    """

    estimate: Callable[[Function, float, float], Estimate]
    step: float
    tolerance: float
    evaluations: int


def _real(f: Function, t: float) -> float:
    return float(f(t).real)


def forward(f: Function, h: float, epsilon: float = EPSILON) -> Estimate:
    """The difference that everybody writes first."""
    there, here = _real(f, h), _real(f, 0.0)
    return Estimate((there - here) / h, _rounding(h, epsilon, there, here))


def central(f: Function, h: float, epsilon: float = EPSILON) -> Estimate:
    """The symmetric difference, whose even terms cancel."""
    right, left = _real(f, h), _real(f, -h)
    return Estimate((right - left) / (2 * h), _rounding(h, epsilon, right, left))


def five_point(f: Function, h: float, epsilon: float = EPSILON) -> Estimate:
    """Two symmetric differences, combined so that h² cancels."""
    values = [_real(f, step) for step in (h, -h, 2 * h, -2 * h)]
    right, left, far_right, far_left = values
    return Estimate((8 * (right - left) - (far_right - far_left)) / (12 * h), _rounding(h, epsilon, *values))


def richardson(f: Function, h: float, epsilon: float = EPSILON) -> Estimate:
    """The same from h and h/2, with an error bar that sees truncation as well as rounding."""
    wide, narrow = central(f, h, epsilon), central(f, h / 2, epsilon)
    value = (4 * narrow.value - wide.value) / 3
    return Estimate(value, abs(value - narrow.value) + narrow.bar)


def complex_step(f: Function, h: float, epsilon: float = EPSILON) -> Estimate:
    """The imaginary part beside an h so small that only the first derivative is left in it.

    `epsilon` is not used, as nothing is subtracted.
    """
    value = f(1j * h)
    return Estimate(float(value.imag) / h if math.isfinite(value.real) else math.nan, 0.0)


def _rounding(h: float, epsilon: float, *values: float) -> float:
    """What the rounding of these values may do to their difference quotient."""
    return 4 * epsilon * max(map(abs, values)) / h


METHODS = {
    "complex": Method(complex_step, 1e-20, 1e-10, 1),
    "richardson": Method(richardson, 1e-3, 1e-8, 4),
    "5point": Method(five_point, 3e-4, 1e-8, 4),
    "central": Method(central, 1e-5, 1e-6, 2),
}
