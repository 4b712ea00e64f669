"""Bottleneck unit of a ResNet (He et al., arXiv 1512.03385), with the group norms of BiT (arXiv 1912.11370).

Three convolutions, 1 x 1 to w channels, 3 x 3, where the stride is, and 1 x 1 to 4 w, beside a shortcut.

Forward     branch = norm3(conv3(relu(norm2(conv2(relu(norm1(conv1(x))))))))
            y = relu(shortcut + branch)      the shortcut is x, or norm_proj(conv_proj(x)) where the shape changes
Backward    A sum passes its gradient d to both terms, and each comes back through its layers, the last first:
                d = reluᵀ(dy),   dx = branchᵀ(d) + shortcutᵀ(d)

γ of norm3 starts at 0, so that a unit starts as its shortcut.

Shapes      x, dx (B, H, W, C)    y, dy (B, ⌈H/stride⌉, ⌈W/stride⌉, 4 w)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer
from vitnp.layers.conv import StdConv
from vitnp.layers.group_norm import GroupNorm
from vitnp.layers.relu import ReLU


def through(layers: Sequence[Layer], x: Array, ctx: Context) -> Array:
    """Forward through layers, the first first."""
    for layer in layers:
        x = layer.forward(x, ctx)
    return x


def back(layers: Sequence[Layer], dy: Array, ctx: Context) -> Array:
    """Backward through layers, the last first."""
    for layer in reversed(layers):
        dy = layer.backward(dy, ctx)
    return dy


class BottleneckUnit(Layer):
    """A residual unit: images of `c_in` channels to images of 4 * `width`."""

    def __init__(
        self,
        c_in: int,
        width: int,
        stride: int = 1,
        *,
        groups: int = 32,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"rng": None, "dtype": dtype}
        self.projects = stride > 1 or c_in != 4 * width
        if self.projects:
            self.conv_proj = StdConv(c_in, 4 * width, 1, stride, **options)
            self.norm_proj = GroupNorm(4 * width, groups, **options)
        self.conv1, self.norm1 = StdConv(c_in, width, **options), GroupNorm(width, groups, **options)
        self.relu1 = ReLU()
        self.conv2, self.norm2 = StdConv(width, width, 3, stride, **options), GroupNorm(width, groups, **options)
        self.relu2, self.conv3 = ReLU(), StdConv(width, 4 * width, **options)
        self.norm3, self.relu3 = GroupNorm(4 * width, groups, gamma=0.0, **options), ReLU()
        self.built(rng)

    @property
    def branch(self) -> Sequence[Layer]:
        """The layers beside the shortcut."""
        first, second = (self.conv1, self.norm1, self.relu1), (self.conv2, self.norm2, self.relu2)
        return *first, *second, self.conv3, self.norm3

    @property
    def shortcut(self) -> Sequence[Layer]:
        """The layers of the shortcut."""
        return (self.conv_proj, self.norm_proj) if self.projects else ()

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, H, W, C_in) -> y (B, ⌈H/stride⌉, ⌈W/stride⌉, 4 width)."""
        shortcut, branch = through(self.shortcut, x, ctx), through(self.branch, x, ctx)
        total = array_module(x).add(shortcut, branch, out=ctx.lend(self, "total", branch.shape, like=x))
        return self.relu3.forward(total, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, ⌈H/stride⌉, ⌈W/stride⌉, 4 width) -> dx (B, H, W, C_in)."""
        dtotal = self.relu3.backward(dy, ctx)
        dx, dshortcut = back(self.branch, dtotal, ctx), back(self.shortcut, dtotal, ctx)
        return array_module(dy).add(dx, dshortcut, out=ctx.empty(self, "dx", dx.shape, like=dy))
