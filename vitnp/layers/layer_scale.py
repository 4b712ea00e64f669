"""Layer scale: a learned weight for each channel of a residual branch (Touvron et al., arXiv 2103.17239, section 3).

Forward     y = γ x          γ starts small, so that at first every block is nearly the identity, however many there are
Backward    dx = γ dy,   and γ is shared by every row:   dγ = Σ dy x

Shapes      x, y, dx, dy (..., D)    γ (D,)
Saves       x
"""

from __future__ import annotations

from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import constant
from vitnp.layer import Layer


class LayerScale(Layer):
    """y = gamma * x for rows of `dim` numbers; every gamma starts at `initial`."""

    gamma: Array

    def __init__(self, dim: int, initial: float, *, rng: int | None = 0, dtype: DTypeLike = "float32") -> None:
        super().__init__()
        self.declare("gamma", (dim,), dtype, constant(initial))
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (..., D) -> y (..., D)."""
        ctx.save(self, x=x)
        return array_module(x).multiply(x, self.gamma, out=ctx.lend(self, "y", x.shape, like=x))

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., D) -> dx (..., D)."""
        xp, x = array_module(dy), ctx.saved(self).x
        rows = xp.multiply(dy, x, out=ctx.scratch("dgamma_rows", x.shape, like=x))
        ctx.add_row_sum(self, "gamma", rows.reshape(-1, len(self.gamma)))
        return xp.multiply(dy, self.gamma, out=ctx.lend(self, "dx", dy.shape, like=dy))
