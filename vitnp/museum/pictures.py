"""Learning curves, each beside the one of the right network: small panels, the same axes in all.

Drawn with Pillow and its own font, twice as large as it comes out, so that lines have smooth edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

WIDTH, HEIGHT = 260, 130  # of a panel's axes, in pixels of the picture
LEFT, ABOVE, GAP = 30, 30, 22  # of the axes' corner in its cell, and what is left between cells
HEADER, MARGIN = 58, 26
SMOOTHED, LARGER = 25, 2  # steps in a running mean; how much larger the picture is drawn
INK, PALE, GRID = "#1f2328", "#6b7280", "#e3e6ea"
RIGHT = "#9aa3ad"
WRONG = {"gradient": "#c8503c", "both": "#8e44ad", "function": "#3b6fb6", "update": "#b7791f"}


class Curve(NamedTuple):
    """How the training of one network went: the accuracy in [0, 1] of each batch, and of the test at the end."""

    name: str
    kind: str
    accuracies: Sequence[float]
    tested: float


def curves_picture(title: str, right: Curve, wrong: Sequence[Curve], path: Path, columns: int = 6) -> None:
    """Write a PNG: a panel for each wrong network, its curve thin over the right one's, bold; the best trained first.

    A curve is a running mean of the accuracy on the training batches; one that ends early has diverged. The colour
    tells the kind of mistake, a key of a Kind. Writes over `path`.
    """
    from PIL import Image, ImageDraw

    columns, rows = min(columns, len(wrong)), -(-len(wrong) // columns)
    cell = LEFT + WIDTH + GAP, ABOVE + HEIGHT + GAP
    size = (max(2 * MARGIN + columns * cell[0] - GAP, 900), 2 * MARGIN + HEADER + rows * cell[1] - GAP)
    sheet = Image.new("RGB", (LARGER * size[0], LARGER * size[1]), "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN), title, INK, 20)
    _draw_key(draw, right, {curve.kind for curve in wrong})
    ranked = sorted(wrong, key=lambda curve: math.inf if math.isnan(curve.tested) else -curve.tested)
    for i, curve in enumerate(ranked):
        corner = MARGIN + LEFT + i % columns * cell[0], MARGIN + HEADER + ABOVE + i // columns * cell[1]
        _draw_panel(draw, corner, right, curve, scale=i % columns == 0)
    sheet.resize(size, Image.Resampling.LANCZOS).save(path)


def _draw_key(draw: ImageDraw, right: Curve, kinds: set[str]) -> None:
    """The line below the title: what bold and what each colour is."""
    names = {"gradient": "wrong gradient", "function": "wrong function", "both": "both wrong", "update": "wrong update"}
    entries = [(f"right, {_percent(right)}", RIGHT, 5)]
    entries += [(names[kind], colour, 2) for kind, colour in WRONG.items() if kind in kinds]
    for i, (text, colour, width) in enumerate(entries):
        left, y = MARGIN + i * 150, MARGIN + 42
        _line(draw, [(left, y), (left + 22, y)], colour, width)
        _write(draw, (left + 30, y), text, PALE, 13, anchor="lm")


def _draw_panel(draw: ImageDraw, corner: tuple[int, int], right: Curve, wrong: Curve, scale: bool) -> None:
    left, top = corner
    _write(draw, (left, top - 22), wrong.name, INK, 13)
    _write(draw, (left + WIDTH, top - 22), _percent(wrong), WRONG[wrong.kind], 13, anchor="ra")
    for share in (0, 0.5, 1):
        y = top + HEIGHT * (1 - share)
        _line(draw, [(left, y), (left + WIDTH, y)], GRID, 1)
        if scale:
            _write(draw, (left - 6, y), f"{100 * share:.0f}", PALE, 11, anchor="rm")
    for curve, colour, width in ((right, RIGHT, 5), (wrong, WRONG[wrong.kind], 2)):
        _line(draw, _points(curve, len(right.accuracies), corner), colour, width)


def _percent(curve: Curve) -> str:
    return "diverged" if math.isnan(curve.tested) else f"{100 * curve.tested:.1f} %"


def _points(curve: Curve, steps: int, corner: tuple[int, int]) -> list[tuple[float, float]]:
    """Where the mean of the accuracies so far lies, of the last SMOOTHED ones, the whole width being `steps`."""
    left, top = corner
    means = [np.mean(curve.accuracies[max(0, i - SMOOTHED) : i]) for i in range(1, len(curve.accuracies) + 1)]
    return [(left + WIDTH * i / steps, top + HEIGHT * (1 - float(mean))) for i, mean in enumerate(means, 1)]


def _line(draw: ImageDraw, points: list[tuple[float, float]], colour: str, width: int) -> None:
    draw.line([(LARGER * x, LARGER * y) for x, y in points], fill=colour, width=LARGER * width, joint="curve")


def _write(draw: ImageDraw, corner: tuple[float, float], text: str, colour: str, size: int, anchor: str = "la") -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size=LARGER * size)
    draw.text((LARGER * corner[0], LARGER * corner[1]), text, fill=colour, font=font, anchor=anchor)
