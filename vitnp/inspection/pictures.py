"""What a model says about images, as a picture: each image beside its classes and their probabilities, as bars.

The images are shown as the network gets them, pixel for pixel. Everything is drawn with Pillow and its own font.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitnp.inspection.attention import overlay

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIDE = 120  # height of an image in the picture, in pixels
BARS = 190  # width of the bars beside it
BAR = 36  # height of a bar and of the text above it
CAPTION, MARGIN, GAP = 24, 16, 12
BLUE, GREEN, RED = "#3b6fb6", "#3a9160", "#c8503c"
INK, PALE, TRACK = "#1f2328", "#6b7280", "#e8eaed"


class _Bar(NamedTuple):
    text: str
    share: float
    colour: str


def prediction_picture(
    images: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    captions: Sequence[str],
    path: str | os.PathLike[str],
    *,
    top: int = 3,
    maps: np.ndarray | None = None,
    columns: int = 3,
) -> None:
    """Write a PNG: each image under its caption, beside bars of its `top` most probable classes.

    images (n, H, W, C) are uint8 with one channel or three, probabilities (n, classes). With maps (n, rows, columns),
    as `attention_rollout` returns them, each image also stands under its map. Raises FileExistsError rather than
    write over a file.
    """
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
    bars = [
        [_Bar(class_names[k], float(row[k]), BLUE) for k in ranked]
        for row, ranked in zip(probabilities, best, strict=True)
    ]
    _write_sheet(images, captions, bars, maps, columns, path)


def mistakes_picture(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    captions: Sequence[str],
    path: str | os.PathLike[str],
    *,
    columns: int = 4,
) -> None:
    """Write a PNG: each image under its caption, beside the class it was taken for (red) and its own (green).

    images (n, H, W, C) are uint8 with one channel or three, labels (n,), probabilities (n, classes). Raises
    FileExistsError rather than write over a file.
    """
    bars = [
        [
            _Bar(f"taken for {class_names[row.argmax()]}", float(row.max()), RED),
            _Bar(f"is {class_names[label]}", float(row[label]), GREEN),
        ]
        for row, label in zip(probabilities, labels, strict=True)
    ]
    _write_sheet(images, captions, bars, None, columns, path)


def check_new_picture(path: str | os.PathLike[str]) -> None:
    """Raise, before any work is done for it, what writing a PNG to a file that must be new would raise."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are written as PNG; expected a name that ends in .png")
    if path.exists():
        raise FileExistsError(f"{path}: exists already; expected a new file: choose another name or remove it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: there is no such folder; make it first, or choose another")
    try:
        path.open("xb").close()
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror}); expected a place that can: choose another"
        ) from None
    path.unlink()


def _write_sheet(
    images: np.ndarray,
    captions: Sequence[str],
    bars: Sequence[Sequence[_Bar]],
    maps: np.ndarray | None,
    columns: int,
    path: str | os.PathLike[str],
) -> None:
    from PIL import Image, ImageDraw, ImageFont

    check_new_picture(path)
    height, width = max(SIDE, BAR * max(map(len, bars))), round(SIDE * images.shape[2] / images.shape[1])
    pictures = width if maps is None else 2 * width + GAP // 3
    cell = (pictures + GAP + BARS + 2 * GAP, CAPTION + height + GAP)
    columns, rows = min(columns, len(images)), -(-len(images) // columns)
    sheet = Image.new("RGB", (2 * MARGIN - 2 * GAP + columns * cell[0], 2 * MARGIN - GAP + rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(size=14)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        draw.text((left, top), _shortened(draw, caption, cell[0] - 2 * GAP), fill=PALE)
        scaled = _enlarged(image, (width, SIDE))
        sheet.paste(scaled, (left, top + CAPTION))
        if maps is not None:
            sheet.paste(overlay(scaled, maps[i]), (left + width + GAP // 3, top + CAPTION))
        for j, bar in enumerate(bars[i]):
            _draw_bar(draw, (left + pictures + GAP, top + CAPTION + j * BAR), bar)
    with open(path, "xb") as file:  # x: never over a file that has come meanwhile
        sheet.save(file, "PNG")


def _draw_bar(draw: ImageDraw, corner: tuple[int, int], bar: _Bar) -> None:
    """Text on the left, percent on the right, and below them the share of a track."""
    (left, top), percent = corner, f"{100 * bar.share:.1f} %"
    room = BARS - draw.textlength(percent) - GAP
    draw.text((left, top), _shortened(draw, bar.text, room), fill=INK)
    draw.text((left + BARS, top), percent, fill=INK, anchor="ra")
    track = (left, top + 20, left + BARS, top + 26)
    draw.rounded_rectangle(track, 3, fill=TRACK)
    if (length := round(bar.share * BARS)) > 0:
        draw.rounded_rectangle((left, top + 20, left + max(length, 6), top + 26), 3, fill=bar.colour)


def _shortened(draw: ImageDraw, text: str, room: float) -> str:
    """The text, or as much of it as fits into so many pixels, and three dots."""
    text = " ".join(text.split())  # a line break would leave its cell
    if draw.textlength(text) <= room:
        return text
    while text and draw.textlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


def _enlarged(image: np.ndarray, size: tuple[int, int]) -> Image:
    """An image (H, W, C) of few pixels in sharp squares, one of many pixels smoothly."""
    from PIL import Image

    pixels = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB")
    small = pixels.height < size[1]
    return pixels.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)
