"""Patch embedding: cut the image into patches, flatten each, project linearly (Dosovitskiy et al., section 3.1).

Forward     x_patch = flatten(image[row : row + P_h, column : column + P_w]),   y = x_patch W + b
            A patch flattens in (row, column, channel) order, patches count row by row: this is the original's
            convolution with stride = kernel size, written as the matrix product that it is.

Backward    Cutting only moves numbers, so its gradient moves them back; the projection is `Linear`.

Shapes      images, dimages (B, H, W, C)    patches (B, N, P_h P_w C)    y, dy (B, N, D),   N = (H/P_h)(W/P_w)
Saves       patches, as `Linear` does
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.initializers import lecun_normal
from vitnp.layers.linear import Linear


def patchify(images: Array, patch_size: tuple[int, int]) -> Array:
    """(B, H, W, C) -> (B, N, P_h P_w C): non-overlapping patches, row by row."""
    (B, H, W, C), (P_h, P_w) = images.shape, patch_size
    grid = images.reshape(B, H // P_h, P_h, W // P_w, P_w, C)
    return grid.swapaxes(2, 3).reshape(B, -1, P_h * P_w * C)


def unpatchify(patches: Array, patch_size: tuple[int, int], image_size: tuple[int, int]) -> Array:
    """(B, N, P_h P_w C) -> (B, H, W, C): the inverse of `patchify`."""
    (P_h, P_w), (H, W), B = patch_size, image_size, len(patches)
    grid = patches.reshape(B, H // P_h, W // P_w, P_h, P_w, -1)
    return grid.swapaxes(2, 3).reshape(B, H, W, -1)


class PatchEmbed(Linear):
    """Images to one vector a patch; sizes are (height, width) pairs, and patches must tile the image."""

    reads_input = True  # what a pass is given, whose gradient a context may do without; false behind a stem

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        channels: int,
        dim: int,
        *,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
            raise ValueError(f"patches of {patch_size} do not tile images of {image_size}")
        d_in = patch_size[0] * patch_size[1] * channels
        self.image_size, self.patch_size = image_size, patch_size
        super().__init__(d_in, dim, weight_init=lecun_normal(d_in), rng=rng, dtype=dtype)

    def forward(self, x: Array, ctx: Context) -> Array:
        """images (B, H, W, C) -> y (B, N, D)."""
        return super().forward(patchify(x, self.patch_size), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dimages (B, H, W, C), or None in a context that does without."""
        if self.reads_input and not ctx.input_grad:
            self.add_grads(dy.reshape(-1, dy.shape[-1]), ctx)
            return None
        return unpatchify(super().backward(dy, ctx), self.patch_size, self.image_size)
