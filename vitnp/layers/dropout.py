"""Dropout, inverted: scaled while training, so that evaluation is the identity (Srivastava et al., JMLR 15, 2014).

Forward     y = x · m,   m = 1/(1 − rate) with probability 1 − rate, else 0
Backward    dx = dy · m

The mask is a function of the context's seed and step, of this layer, and of the row in the global batch: it is the same
however a batch is cut into shards, and the same again when a pass of the same step is repeated.

Shapes      x, y, dx, dy, m (B, ...)
Saves       m                        nothing where nothing is dropped
"""

from __future__ import annotations

import math

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer


class Dropout(Layer):
    """Zero each element with probability `rate` in training; 0 <= rate < 1."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"the rate of {type(self).__name__} is {rate}; it must be at least 0 and below 1")
        self.rate = rate
        self.built(rng=None)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, ...) -> y (B, ...); the first axis counts the samples."""
        mask = self._mask(x, ctx)
        ctx.save(self, mask=mask)
        return self._apply(x, mask, "y", ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, ...) -> dx (B, ...)."""
        return self._apply(dy, ctx.saved(self).mask, "dx", ctx)

    def _mask(self, x: Array, ctx: Context) -> Array | None:
        if not ctx.train or self.rate == 0:
            return None
        shape = self._mask_shape(x)
        bits = ctx.random_bits(self, shape, like=x)
        mask = ctx.empty(self, "mask", shape, like=x)
        # bits / 2³² is uniform in [0, 1): it is at least `rate` with probability 1 − rate
        mask[...] = bits >= math.ceil(self.rate * 2**32)
        mask *= 1 / (1 - self.rate)
        return mask

    def _mask_shape(self, x: Array) -> tuple[int, ...]:
        shape: tuple[int, ...] = x.shape
        return shape

    def _apply(self, x: Array, mask: Array | None, name: str, ctx: Context) -> Array:
        if mask is None:
            return x
        return array_module(x).multiply(x, mask, out=ctx.empty(self, name, x.shape, like=x))
