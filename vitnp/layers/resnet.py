"""The ResNet that a hybrid has in front of its transformer (Dosovitskiy et al., section 3.1; BiT, arXiv 1912.11370).

    root     7 x 7 convolution in strides of 2, norm, ReLU, 3 x 3 max pool in strides of 2    (B, ⌈H/4⌉, ⌈W/4⌉, w)
    stage 1  bottleneck units of width w                                                      (B, ⌈H/4⌉, ⌈W/4⌉, 4 w)
    stage 2  of width 2 w, the first of them in strides of 2                                  (B, ⌈H/8⌉, ⌈W/8⌉, 8 w)
    ...      and so on: half of the size, twice the width

Forward     one after the other
Backward    the same in reverse
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.layer import Layer
from vitnp.layers.bottleneck import BottleneckUnit, back, through
from vitnp.layers.conv import StdConv
from vitnp.layers.group_norm import GroupNorm
from vitnp.layers.max_pool import MaxPool
from vitnp.layers.relu import ReLU


class Root(Layer):
    """What a ResNet begins with: images to `width` channels, at a quarter of the size."""

    def __init__(self, channels: int, width: int, *, groups: int, dtype: DTypeLike) -> None:
        super().__init__()
        self.conv = StdConv(channels, width, 7, 2, rng=None, dtype=dtype)
        self.conv.reads_input = True
        self.norm, self.relu, self.pool = GroupNorm(width, groups, rng=None, dtype=dtype), ReLU(), MaxPool()
        self.built(rng=None)

    def forward(self, x: Array, ctx: Context) -> Array:
        """images (B, H, W, C) -> y (B, ⌈H/4⌉, ⌈W/4⌉, width)."""
        return through((self.conv, self.norm, self.relu, self.pool), x, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, ⌈H/4⌉, ⌈W/4⌉, width) -> dimages (B, H, W, C)."""
        return back((self.conv, self.norm, self.relu, self.pool), dy, ctx)


class Stage(Layer):
    """Units one after the other, which go by their numbers."""

    def __init__(self, c_in: int, width: int, units: int, stride: int, *, groups: int, dtype: DTypeLike) -> None:
        super().__init__()
        sizes = [(c_in, width, stride)] + [(4 * width, width, 1)] * (units - 1)
        self.units = [BottleneckUnit(*size, groups=groups, rng=None, dtype=dtype) for size in sizes]
        for unit in self.units:
            for layer in unit.layers():
                layer.role = f"unit.{layer.path}"
        self.built(rng=None)

    def _children(self) -> Iterator[tuple[str, Layer]]:
        return ((f"{i}", unit) for i, unit in enumerate(self.units))

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, H, W, C_in) -> y (B, ⌈H/stride⌉, ⌈W/stride⌉, 4 width)."""
        return through(self.units, x, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, ⌈H/stride⌉, ⌈W/stride⌉, 4 width) -> dx (B, H, W, C_in)."""
        return back(self.units, dy, ctx)


class ResNetStem(Layer):
    """Root and stages: images of `channels` to feature maps of `channels_out`.

    `blocks` has the number of units of each stage, and may be empty. Raises ValueError where `groups`, those of every
    norm, do not divide `width`, that of the root and the first stage.
    """

    def __init__(
        self,
        channels: int,
        blocks: Sequence[int],
        width: int = 64,
        *,
        groups: int = 32,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.root = Root(channels, width, groups=groups, dtype=dtype)
        self.stages, c_in = [], width
        for s, units in enumerate(blocks):
            stage = Stage(c_in, width << s, units, 2 if s else 1, groups=groups, dtype=dtype)
            self.stages.append(stage)
            c_in = 4 * (width << s)
        self.channels_out = c_in
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """images (B, H, W, C) -> maps (B, h, w, C_out)."""
        return through((self.root, *self.stages), x, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dmaps (B, h, w, C_out) -> dimages (B, H, W, C)."""
        return back((self.root, *self.stages), dy, ctx)
