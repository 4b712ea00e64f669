"""Tanh, which follows the hidden layer of the pre-training head (Dosovitskiy et al., section 3.1).

Forward     y = tanh(x)
Backward    tanh' = 1 − tanh²:   dx = dy (1 − y²)

Shapes      all equal, elementwise
Saves       y
"""

from __future__ import annotations

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer


class Tanh(Layer):
    """Elementwise hyperbolic tangent."""

    def __init__(self) -> None:
        super().__init__()
        self.built(rng=None)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x -> y of the same shape."""
        y = array_module(x).tanh(x)
        ctx.save(self, y=y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy -> dx of the same shape."""
        y = ctx.saved(self).y
        return dy * (1 - y * y)
