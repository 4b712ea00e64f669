"""Max pooling over windows of 3 x 3 in strides of 2 (as the root of a ResNet has it, He et al., arXiv 1512.03385).

Forward     y = the largest of a window's numbers, channel by channel; of equal ones the first, row by row
Backward    A window passes its gradient on to the one place that it took y from; windows overlap, so what a place gets
            from several is added:   dx[place] = Σ dy over the windows whose first largest number is there

Shapes      x, dx (B, H, W, C)    y, dy (B, ⌈H/2⌉, ⌈W/2⌉, C)
Saves       which of a window's nine places it was, a byte each; and x, which ReLU keeps anyway, for its shape
"""

from __future__ import annotations

import math

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer
from vitnp.layers.windows import pad, padded, taps

KERNEL, STRIDE = 3, 2


class MaxPool(Layer):
    """The largest number of every window."""

    def __init__(self) -> None:
        super().__init__()
        self.built(rng=None)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, H, W, C) -> y (B, ⌈H/2⌉, ⌈W/2⌉, C)."""
        xp = array_module(x)
        first, *others = taps(pad(x, KERNEL, STRIDE, -math.inf, ctx), KERNEL, STRIDE)
        y, which = first, xp.zeros(first.shape, "uint8")
        for i, place in enumerate(others, start=1):
            larger = (place.real > y.real) | (place != place)  # a NaN stays, and is found further on
            y, which = xp.where(larger, place, y), xp.where(larger, i, which).astype("uint8", copy=False)
        ctx.save(self, which=which, x=x)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, ⌈H/2⌉, ⌈W/2⌉, C) -> dx (B, H, W, C)."""
        which, shape = ctx.saved(self).which, ctx.saved(self).x.shape
        around, inside = padded(shape, KERNEL, STRIDE)
        daround = ctx.empty(self, "daround", around, like=dy)
        daround.fill(0)
        for i, place in enumerate(taps(daround, KERNEL, STRIDE)):
            place += dy * (which == i)
        return daround[inside]
