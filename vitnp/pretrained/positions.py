"""Position embeddings on a grid of another size: four rules that published programs use, each linear and separable.

    y = R_rows · grid · R_columnsᵀ

A rule says where an output point lies among n inputs, and how the inputs around it are weighed. With m outputs, point i
is at i (n − 1) / (m − 1) where corners are aligned, else at (i + 1/2) n / m − 1/2, so that the outer edges of the first
and last cells, not their centres, fall together.

    align-corners       linear between aligned corners: the original (scipy.ndimage.zoom of order 1)
    bilinear            linear, timm for the original's files
    bicubic             Keys' cubic with a = −3/4, the outermost inputs repeated: transformers
    bicubic-antialias   Keys' cubic with a = −1/2, stretched by n / m where that is above 1: timm for its own files

Keys, *Cubic convolution interpolation for digital image processing*, IEEE TASSP 1981, equation 15.
"""

from __future__ import annotations

import numpy as np

RULES = ("align-corners", "bilinear", "bicubic", "bicubic-antialias")


def check_rule(rule: str) -> None:
    """Raise ValueError for an unknown rule."""
    if rule not in RULES:
        raise ValueError(f"resize is {rule!r}; choose one of {', '.join(map(repr, RULES))}")


def resize_grid(positions: np.ndarray, size: tuple[int, int], rule: str) -> np.ndarray:
    """(rows, columns, D) -> (*size, D), in float64. Raises ValueError for an unknown rule."""
    check_rule(rule)
    by_row, by_column = (resize_matrix(n, m, rule) for n, m in zip(positions.shape[:2], size, strict=True))
    rows, columns, D = positions.shape
    stretched = (by_row @ positions.reshape(rows, -1)).reshape(-1, columns, D)
    resized: np.ndarray = by_column @ stretched
    return resized


def resize_matrix(n: int, m: int, rule: str) -> np.ndarray:
    """Return the matrix (m, n) that makes m numbers along an axis of n."""
    points = np.linspace(0, n - 1, m) if rule == "align-corners" else (np.arange(m) + 0.5) * n / m - 0.5
    if rule == "bicubic-antialias":
        stretch = max(n / m, 1.0)
        weights = _cubic((np.arange(n) - points[:, None]) / stretch, a=-1 / 2)
        weights /= weights.sum(1, keepdims=True)  # at the edges the kernel is cut
        return weights
    matrix, below = np.zeros((m, n)), np.floor(points).astype(int)
    for offset in (-1, 0, 1, 2):  # no kernel reaches further than two inputs
        x = points - (below + offset)
        weights = _cubic(x, a=-3 / 4) if rule == "bicubic" else np.maximum(0, 1 - np.abs(x))
        np.add.at(matrix, (np.arange(m), (below + offset).clip(0, n - 1)), weights)
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Return Keys' kernel at distances x."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
