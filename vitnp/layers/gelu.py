"""GELU, the Gaussian error linear unit (Hendrycks and Gimpel, arXiv 1606.08415).

Exact       y = x Φ(x),   Φ(x) = ½ (1 + erf(x/√2)),                      y' = Φ(x) + x φ(x),   φ(x) = e^(−x²/2)/√(2π)
Tanh form   y = ½ x (1 + t),   t = tanh(u),   u = √(2/π) (x + a x³),     y' = ½ (1 + t) + ½ x (1 − t²) u'
            a = 0.044715 (their section 2), so u' = √(2/π) (1 + 3 a x²).
            The two differ by at most 4.8e-4. The original Vision Transformer uses the tanh form.

Backward    dx = dy · y'(x). Value and slope share the costly tanh or Φ, so forward computes both.

Shapes      all equal, elementwise
Saves       slope = y'(x)            x itself is not needed
"""

from __future__ import annotations

import functools
import math

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.kernels import tuned
from vitnp.layer import Layer

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715


@tuned
def gelu_tanh(x: Array) -> tuple[Array, Array]:
    """Return y and its slope, tanh form."""
    xp = array_module(x)
    square = x * x
    t = xp.tanh(SQRT_2_OVER_PI * x * (1 + CUBIC * square))
    du = SQRT_2_OVER_PI * (1 + 3 * CUBIC * square)
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du


@tuned
def gelu_erf(x: Array) -> tuple[Array, Array]:
    """Return y and its slope, exact form."""
    cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    pdf = array_module(x).exp(-0.5 * (x * x)) / math.sqrt(2 * math.pi)
    return x * cdf, cdf + x * pdf


def erf(x: Array) -> Array:
    """Return the error function of a real or complex array near the real axis, to 2e-15 absolutely in float64.

    Neither NumPy nor complex CuPy has one. A Taylor polynomial around the nearest point of a grid: the values on the
    grid are math.erf's, which rounds correctly, and the derivatives follow from erf' = 2/√π e^(−z²). A polynomial is
    analytic, so a complex step through it finds the derivative of erf without being told.
    """
    xp = array_module(x)
    near = xp.clip(x.real, -_EDGE, _EDGE)
    nearest = xp.rint(near * _PER_UNIT)
    offset = xp.where(abs(x.real) > _EDGE, near, x) - nearest / _PER_UNIT
    # A NaN has no nearest point: any will do, for its offset is NaN.
    index = xp.where(near == near, nearest, 0).astype("int32") + _EDGE * _PER_UNIT
    y = xp.zeros_like(x)
    for column in reversed(xp.asarray(_taylor_table(x.real.dtype.name))):
        y = y * offset + xp.take(column, index)
    return y


_EDGE = 6  # 1 − erf(6) = 2e-17 is lost in rounding
_PER_UNIT = 16


@functools.cache
def _taylor_table(dtype: str) -> Array:
    """Return c (order + 1, points) with erf(p + d) = Σ c[n] dⁿ to the precision of dtype, for |d| ≤ 1/32.

    erf⁽ⁿ⁺¹⁾(p) = 2/√π e^(−p²) (−1)ⁿ Hₙ(p), with the Hermite polynomials H₀ = 1, H₁ = 2p, Hₙ₊₁ = 2p Hₙ − 2n Hₙ₋₁.
    """
    order = 10 if dtype == "float64" else 5
    points = [i / _PER_UNIT for i in range(-_EDGE * _PER_UNIT, _EDGE * _PER_UNIT + 1)]
    table = []
    for p in points:
        slope, hermite = 2 / math.sqrt(math.pi) * math.exp(-p * p), [1.0, 2 * p]
        for n in range(1, order):
            hermite.append(2 * p * hermite[n] - 2 * n * hermite[n - 1])
        derivatives = [slope * (-1) ** n * hermite[n] for n in range(order)]
        table.append([math.erf(p)] + [d / math.factorial(n + 1) for n, d in enumerate(derivatives)])
    return np.ascontiguousarray(np.array(table, dtype).T)


class GELU(Layer):
    """Elementwise GELU: `form` is "tanh" (the original's) or "erf" (exact)."""

    def __init__(self, form: str = "tanh") -> None:
        super().__init__()
        if form not in ("tanh", "erf"):
            raise ValueError(f'gelu is {form!r}; choose "tanh" or "erf"')
        self.form = form
        self.built(rng=None)

    def __repr__(self) -> str:
        return f"{super().__repr__()} ({self.form})"

    def forward(self, x: Array, ctx: Context) -> Array:
        """x -> y of the same shape."""
        y, slope = (gelu_tanh if self.form == "tanh" else gelu_erf)(x, memory=ctx.memory(self))
        ctx.save(self, slope=slope)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy -> dx of the same shape."""
        dx = ctx.lend(self, "dx", dy.shape, like=dy)
        return array_module(dy).multiply(dy, ctx.saved(self).slope, out=dx)
