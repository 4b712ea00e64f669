"""Windows of k x k places that move over an image in strides, with a border so that ⌈n / stride⌉ of them fit.

This is the original's padding "SAME". Along an axis of n places m = ⌈n / stride⌉ windows reach (m − 1) stride + k
places far, and what the axis lacks of that is the border. Where it is odd, the one more is at the end: so windows of 3
in strides of 2 over an even n have no border before it and one place after it.
"""

from __future__ import annotations

from collections.abc import Iterator

from vitnp.backend import Array
from vitnp.context import Context


def border(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many places go before and after the `size` places of an axis."""
    lacking = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return lacking // 2, lacking - lacking // 2


def padded(shape: tuple[int, ...], kernel: int, stride: int) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """Return the shape of images (B, H, W, C) with their border, and where in it they are themselves."""
    B, H, W, C = shape
    (top, bottom), (left, right) = border(H, kernel, stride), border(W, kernel, stride)
    inside = slice(None), slice(top, top + H), slice(left, left + W)
    return (B, top + H + bottom, left + W + right, C), inside


def pad(x: Array, kernel: int, stride: int, value: float, ctx: Context) -> Array:
    """Images (B, H, W, C) with `value` all around them, in memory that is free until the next call."""
    shape, inside = padded(x.shape, kernel, stride)
    around = ctx.scratch("padded", shape, like=x)
    around.fill(value)
    around[inside] = x
    return around


def taps(around: Array, kernel: int, stride: int) -> Iterator[Array]:
    """Yield what all windows have at one of their places, (B, h, w, C): for each place row by row, views."""
    h, w = ((size - kernel) // stride + 1 for size in around.shape[1:3])
    for i in range(kernel):
        for j in range(kernel):
            yield around[:, i : i + stride * h : stride, j : j + stride * w : stride]
