"""Pictures turned, slanted, stretched, moved and bent: what makes rendered digits differ and augments handwriting.

Pixel p of the result, measured (y, x) from the centre, shows the picture at the point

    q = A (p − t + b(p)),      A = scale · shear · rotation

where t moves the picture and the field b, smooth because it interpolates a coarse grid of random vectors, bends it.
This map runs backwards, from result to picture, so each pixel gets exactly one value: no holes and no overlaps. Values
between the pixels of the picture are interpolated bilinearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

KNOTS = 4  # of the bending field, each way


@dataclass(frozen=True)
class Warp:
    """How far pictures go, at most either way; each is drawn uniformly but for `bend`, which is normal.

    rotation in degrees; shear in pixels a pixel; scale from least to most, of height and of width independently;
    translation in pixels; bend in pixels, the standard deviation at the knots.
    """

    rotation: float
    shear: float
    scale: tuple[float, float]
    translation: float
    bend: float

    def points(
        self, rng: np.random.Generator, count: int, height: int, width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where each pixel of `count` pictures looks, (y, x) from the picture's centre: two (count, height·width)."""
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation, count))
        slant = rng.uniform(-self.shear, self.shear, count)
        scale = rng.uniform(*self.scale, (count, 2, 1))
        t = rng.uniform(-self.translation, self.translation, (count, 2, 1)).astype(np.float32)
        b = rng.standard_normal((count, 2, KNOTS * KNOTS), np.float32) * self.bend @ _bending_basis(height, width)

        c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros(count), np.ones(count)
        rotation = np.array([[c, -s], [s, c]]).transpose(2, 0, 1)  # (count, 2, 2)
        shear = np.array([[one, zero], [slant, one]]).transpose(2, 0, 1)
        a = (shear @ rotation / scale).astype(np.float32)

        centre = np.array([[height - 1], [width - 1]], np.float32) / 2
        p = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32) - centre
        q = a @ (p - t + b)
        return q[:, 0], q[:, 1]


@lru_cache(maxsize=4)
def _bending_basis(height: int, width: int) -> NDArray[np.float32]:
    """How much each knot of the coarse grid counts at each pixel: (16, height·width), smooth, columns add up to 1."""

    def weight(side: int) -> NDArray[np.float64]:
        distance = np.abs(np.linspace(0, KNOTS - 1, side) - np.arange(KNOTS)[:, None])  # (KNOTS, side), in knots
        near = np.clip(1 - distance, 0, 1)
        smooth: NDArray[np.float64] = near * near * (3 - 2 * near)  # the cubic from 0 to 1 that is flat at both ends
        return smooth

    return np.kron(weight(height), weight(width)).astype(np.float32)


def interpolate(
    pictures: NDArray, which: NDArray[np.integer], y: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Pictures (n, H, W, C) bilinearly between pixels: row i is pictures[which[i]] at (y[i], x[i]), (rows, points, C).

    Points are measured from a picture's centre. Outside a picture is what its outermost pixels show: give it a border
    of what should be seen there.
    """
    _, height, width, channels = pictures.shape
    y = (y + (height - 1) / 2).clip(0, height - 1)
    x = (x + (width - 1) / 2).clip(0, width - 1)
    # Each point has a pixel below and one to the right of it, those on the last row and column too.
    top, left = np.minimum(np.floor(y), height - 2), np.minimum(np.floor(x), width - 2)
    y, x = (y - top)[..., None], (x - left)[..., None]
    corner = (top * width + left).astype(np.intp) + which[:, None] * (height * width)
    flat = pictures.reshape(-1) if channels == 1 else pictures.reshape(-1, channels)

    def pixels(offset: int) -> NDArray[np.float32]:
        return np.asarray(flat[corner + offset], np.float32).reshape(*corner.shape, channels)

    grey, lower = pixels(0), pixels(width)
    grey += x * (pixels(1) - grey)
    lower += x * (pixels(width + 1) - lower)
    grey += y * (lower - grey)
    return grey
