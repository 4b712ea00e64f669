"""Rendered digits: a ten-class problem that needs no file and no network.

These are NOT handwritten digits and not MNIST. They are the characters 0 to 9 of the one typeface that Pillow
carries inside itself, drawn with a random stroke and sharpness, then turned, slanted, stretched, bent, moved,
dimmed and covered with noise, all at random. A linear classifier must give each pixel one fixed meaning, but
here a digit may lie anywhere: it gets fewer than 60 % right. People, and a small ViT, read nearly all.

The characters are drawn once, in a few styles, at twice the final resolution; every picture shows one of them through
a warp of its own (warp.py).

Pictures are made CHUNK at a time, each chunk from its own random stream, so picture i of a seed is the same
whatever n. Another processor, Pillow or NumPy may change a few pixels by a few grey levels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import DataError, Dataset, random_stream, whole_number
from vitnp.data.warp import Warp, interpolate

SIDE = 28  # pixels of a picture, each way
OVERSAMPLING = 2  # pixels of a drawn character per pixel of the picture
CELL = 64  # pixels of a drawn character, each way: its border stays black
FONT_SIZE = 48
STYLES = [(stroke, blur) for stroke in (0, 1, 2) for blur in (0, 1)]  # both in pixels of a drawn character

CHUNK = 250  # pictures made at a time: their arrays fit the processor's cache
WARP = Warp(
    rotation=15,  # much more, and people confuse 1 with 7
    shear=0.15,
    scale=(0.85, 1.1),
    translation=4,  # what a linear classifier fails on
    bend=0.7,
)
CONTRAST = (0.6, 1.0)
NOISE = 12  # grey levels, standard deviation


def load_digits(n: int, seed: int = 0) -> Dataset:
    """The first `n` rendered digits of `seed`, 28x28x1, labels drawn uniformly; each seed has its own."""
    n = whole_number("n", n, 1)
    images, labels = np.empty((n, SIDE, SIDE, 1), np.uint8), np.empty(n, np.int64)
    for start in range(0, n, CHUNK):
        here = slice(start, min(start + CHUNK, n))
        count = here.stop - start
        pictures, classes = _render_chunk(random_stream(seed, start // CHUNK))
        images[here], labels[here] = pictures[:count], classes[:count]
    return Dataset(images, labels, tuple("0123456789"), "rendered digits")


def _render_chunk(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """CHUNK pictures (CHUNK, 28, 28, 1) and their labels (CHUNK,)."""
    labels = rng.integers(0, 10, CHUNK)
    styles = rng.integers(0, len(STYLES), CHUNK)
    y, x = WARP.points(rng, CHUNK, SIDE, SIDE)
    characters = _draw_characters()
    which = labels * len(STYLES) + styles
    grey = interpolate(characters, which, OVERSAMPLING * y, OVERSAMPLING * x).reshape(CHUNK, -1)
    grey *= rng.uniform(*CONTRAST, (CHUNK, 1)).astype(np.float32)
    grey += rng.standard_normal(grey.shape, np.float32) * NOISE
    return grey.clip(0, 255).astype(np.uint8).reshape(CHUNK, SIDE, SIDE, 1), labels


@lru_cache(maxsize=1)
def _draw_characters() -> NDArray[np.float32]:
    """Every digit in every style, centred in its cell: (10 * styles, CELL, CELL, 1), 0 to 255."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    try:
        font = ImageFont.load_default(size=FONT_SIZE)
    except ImportError as error:
        raise DataError("Pillow lacks FreeType; expected one that draws text: pip install pillow") from error
    drawn = []
    for digit in "0123456789":
        for stroke, blur in STYLES:
            cell = Image.new("L", (CELL, CELL))
            pen = ImageDraw.Draw(cell)
            left, top, right, bottom = pen.textbbox((0, 0), digit, font=font, stroke_width=stroke)
            corner = ((CELL - left - right) / 2, (CELL - top - bottom) / 2)
            pen.text(corner, digit, fill=255, font=font, stroke_width=stroke)
            drawn.append(np.asarray(cell.filter(ImageFilter.GaussianBlur(blur)), np.float32))
    return np.stack(drawn)[..., None]
