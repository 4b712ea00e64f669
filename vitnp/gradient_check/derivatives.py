"""Derivatives of a function f of one variable, at 0, by evaluating it: five ways, and how far each is to be trusted.

    forward     (f(h) − f(0)) / h                                       f' + h f''/2 + …
    central     D(h) = (f(h) − f(−h)) / 2h                              f' + h² f'''/6 + …
    5-point     (8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h             f' − h⁴ f⁗'/30 + …
    Richardson  (4 D(h/2) − D(h)) / 3                                   f' − h⁴ f⁗'/480 + …
    complex     Im f(ih) / h       (Squire and Trapp, SIAM Review 40, 1998)    f' − h² f'''/6 + …

What is left out of the series, the truncation, falls with h. But f is only known to ε|f|, and the first four divide
this rounding by h: it grows as h falls. Between the two lies the best step, and at the best step a difference knows
half, two thirds or four fifths of the digits. The complex step subtracts nothing, so that h can be 1e-100 and all
digits are right; it needs an f that is analytic, and code that keeps imaginary parts.

Two central differences also tell what they are worth. Their extrapolation changes D(h/2) by about its own truncation
error, far more than what is left in the result: with the rounding, that is Richardson's error bar. Four differences,
extrapolated three times (Romberg, 1955), have the narrowest bars: they are the referee where two others disagree.

All this takes f for smooth but for rounding in float64. Where forward rounds more coarsely, `scatter` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Function = Callable[[complex], complex]

EPSILON = 2.0**-52  # of float64


class Estimate(NamedTuple):
    """A derivative, and by how much it may be off by its own account."""

    value: float
    bar: float


class Method(NamedTuple):
    """A way to differentiate: `estimate(f, h, noise)`, where values of f may be off by that noise.

    `step` is relative to the size of what moves, but for the complex step, which may be any that is tiny; `tolerance`
    is relative to the size of the gradient.
    """

    estimate: Callable[[Function, float, float], Estimate]
    step: float
    tolerance: float
    evaluations: int


def _real(f: Function, t: float) -> float:
    return float(f(t).real)


def forward(f: Function, h: float, noise: float = 0.0) -> Estimate:
    """The difference that everybody writes first."""
    there, here = _real(f, h), _real(f, 0.0)
    return Estimate((there - here) / h, rounding(h, noise, there, here))


def central(f: Function, h: float, noise: float = 0.0) -> Estimate:
    """The symmetric difference, whose even terms cancel."""
    right, left = _real(f, h), _real(f, -h)
    return Estimate((right - left) / (2 * h), rounding(h, noise, right, left))


def five_point(f: Function, h: float, noise: float = 0.0) -> Estimate:
    """Two symmetric differences, combined so that h² cancels."""
    values = [_real(f, step) for step in (h, -h, 2 * h, -2 * h)]
    right, left, far_right, far_left = values
    return Estimate((8 * (right - left) - (far_right - far_left)) / (12 * h), rounding(h, noise, *values))


def richardson(f: Function, h: float, noise: float = 0.0) -> Estimate:
    """The same from h and h/2, with an error bar that sees truncation as well as rounding."""
    return extrapolate(f, h, noise, levels=2)


def referee(f: Function, h: float, noise: float = 0.0) -> Estimate:
    """The narrowest error bars: h, h/2, h/4 and h/8, so that h⁶ cancels, too."""
    return extrapolate(f, h, noise, levels=4)


def extrapolate(f: Function, h: float, noise: float, levels: int) -> Estimate:
    """Central differences with steps from h to h/2^(levels − 1), extrapolated to a step of zero, power by power."""
    differences = [central(f, h / 2**k, noise) for k in range(levels)]
    values, before = [value for value, _ in differences], math.nan
    for k in range(1, levels):
        before = values[-1]
        values = [(4**k * narrow - wide) / (4**k - 1) for wide, narrow in pairwise(values)]
    return Estimate(values[0], abs(values[0] - before) + differences[-1].bar)


def complex_step(f: Function, h: float, noise: float = 0.0) -> Estimate:
    """The imaginary part beside an h so small that only the first derivative is left in it.

    `noise` is not used, as nothing is subtracted.
    """
    value = f(1j * h)
    return Estimate(float(value.imag) / h if math.isfinite(value.real) else math.nan, 0.0)


def scatter(f: Function, h: float) -> float:
    """Return the standard deviation of f's values about a smooth curve, from nine that lie h apart.

    Of a smooth function the fourth differences fall with h⁴; of independent errors they have the variance 70 σ²,
    70 = 8! / (4! 4!) (Moré and Wild, Estimating computational noise, SIAM J. Sci. Comput. 33, 2011).
    """
    fourth = np.diff([_real(f, k * h) for k in range(-4, 5)], 4)
    return math.sqrt(float((fourth * fourth).mean()) / math.comb(8, 4))


def rounding(h: float, noise: float, *values: float) -> float:
    """What the noise of these values, or their rounding in float64, may do to their difference quotient."""
    return 4 * max(noise, EPSILON * max(map(abs, values))) / h


METHODS = {
    "complex": Method(complex_step, 1e-100, 1e-10, 1),
    "richardson": Method(richardson, 1e-3, 1e-8, 4),
    "5point": Method(five_point, 3e-4, 1e-8, 4),
    "central": Method(central, 1e-5, 1e-6, 2),
}
REFEREE = Method(referee, 8e-3, 1e-8, 8)
