"""ReLU, the rectified linear unit (Nair and Hinton, ICML 2010).

Forward     y = max(x, 0)
Backward    dx = dy where x > 0, else 0. At x = 0, a kink, the slope is 0, as in the original.

Shapes      all equal, elementwise
Saves       y, which is above 0 exactly where x is
"""

from __future__ import annotations

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer


class ReLU(Layer):
    """Elementwise ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.built(rng=None)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x -> y of the same shape."""
        y = _where_positive(x, x, ctx.empty(self, "y", x.shape, like=x))
        ctx.save(self, y=y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy -> dx of the same shape."""
        return _where_positive(dy, ctx.saved(self).y, ctx.lend(self, "dx", dy.shape, like=dy))


def _where_positive(values: Array, x: Array, out: Array) -> Array:
    """Write `values` into `out` where the real part of x is above 0, and zeros elsewhere."""
    return array_module(x).multiply(values, x.real > 0, out=out)
