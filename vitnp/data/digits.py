"""Rendered digits: a ten-class problem that needs no file and no network.

These are NOT handwritten digits and not MNIST. They are the characters 0 to 9 of the one typeface that Pillow
carries inside itself, drawn with a random stroke and sharpness, then turned, slanted, stretched, bent, moved,
dimmed and covered with noise, all at random. A linear classifier must give each pixel one fixed meaning, but
here a digit may lie anywhere: it gets fewer than 60 % right. People, and a small ViT, read nearly all.

How a picture is made. The characters are drawn once, in a few styles, at twice the final resolution. Pixel p
of the picture, measured (y, x) from its centre, then shows the character at

    q = 2 · A (p − t + b(p)),      A = scale · shear · rotation

where t moves the digit and the field b, smooth because it interpolates a coarse grid of random vectors, bends
it. This map runs backwards, from picture to character, so each pixel gets exactly one value: no holes and no
overlaps. Values between the pixels of a character are interpolated bilinearly.

Pictures are made CHUNK at a time, each chunk from its own random stream, so picture i of a seed is the same
whatever n. Another processor, Pillow or NumPy may change a few pixels by a few grey levels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import DataError, Dataset, random_stream, whole_number

SIDE = 28  # pixels of a picture, each way
OVERSAMPLING = 2  # pixels of a drawn character per pixel of the picture
CELL = 64  # pixels of a drawn character, each way: its border stays black
FONT_SIZE = 48
STYLES = [(stroke, blur) for stroke in (0, 1, 2) for blur in (0, 1)]  # both in pixels of a drawn character

CHUNK = 250  # pictures made at a time: their arrays fit the processor's cache
ROTATION = 15  # degrees, either way: much more, and people confuse 1 with 7
SHEAR = 0.15
SCALE = (0.85, 1.1)  # of height and of width, independently
TRANSLATION = 4  # pixels, either way: what a linear classifier fails on
BEND = 0.7  # pixels, standard deviation at the knots
KNOTS = 4  # of the bending field, each way
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
    y, x = _warp(rng)
    grey = _interpolate(_draw_characters(), labels * len(STYLES) + styles, y, x)
    grey *= rng.uniform(*CONTRAST, (CHUNK, 1)).astype(np.float32)
    grey += rng.standard_normal(grey.shape, np.float32) * NOISE
    return grey.clip(0, 255).astype(np.uint8).reshape(CHUNK, SIDE, SIDE, 1), labels


def _warp(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The point (y, x) of the drawn character that each pixel of each picture shows: two (CHUNK, 784)."""
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION, CHUNK))
    slant = rng.uniform(-SHEAR, SHEAR, CHUNK)
    scale = rng.uniform(*SCALE, (CHUNK, 2, 1))
    t = rng.uniform(-TRANSLATION, TRANSLATION, (CHUNK, 2, 1)).astype(np.float32)
    b = rng.standard_normal((CHUNK, 2, KNOTS * KNOTS), np.float32) * BEND @ _bending_basis()

    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros(CHUNK), np.ones(CHUNK)
    rotation = np.array([[c, -s], [s, c]]).transpose(2, 0, 1)  # (CHUNK, 2, 2)
    shear = np.array([[one, zero], [slant, one]]).transpose(2, 0, 1)
    a = (OVERSAMPLING / scale * (shear @ rotation)).astype(np.float32)

    p = np.mgrid[:SIDE, :SIDE].reshape(2, -1).astype(np.float32) - (SIDE - 1) / 2
    q = a @ (p - t + b) + (CELL - 1) / 2
    return q[:, 0], q[:, 1]


@lru_cache(maxsize=1)
def _bending_basis() -> NDArray[np.float32]:
    """How much each knot of the coarse grid counts at each pixel: (16, 784), smooth, columns add up to 1."""
    distance = np.abs(np.linspace(0, KNOTS - 1, SIDE) - np.arange(KNOTS)[:, None])  # (4, 28), in knots
    near = np.clip(1 - distance, 0, 1)
    weight = near * near * (3 - 2 * near)  # the cubic from 0 to 1 that is flat at both ends
    return np.kron(weight, weight).astype(np.float32)


def _interpolate(
    characters: NDArray[np.float32], which: NDArray[np.int64], y: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Row i is characters[which[i]] at the points (y[i], x[i]), bilinearly; outside the cell it is black."""
    last = CELL - 1.01  # so that each point has a pixel below and to the right; the border is black anyway
    y, x = y.clip(0, last), x.clip(0, last)
    top, left = np.floor(y), np.floor(x)
    y, x = y - top, x - left
    corner = (top * CELL + left).astype(np.intp) + which[:, None] * CELL * CELL
    flat = characters.reshape(-1)
    grey: NDArray[np.float32] = flat[corner]
    lower = flat[corner + CELL]
    grey += x * (flat[corner + 1] - grey)
    lower += x * (flat[corner + CELL + 1] - lower)
    grey += y * (lower - grey)
    return grey


@lru_cache(maxsize=1)
def _draw_characters() -> NDArray[np.float32]:
    """Every digit in every style, centred in its cell: (10 * styles, CELL, CELL), 0 to 255."""
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
    return np.stack(drawn)
