"""A model that has learned one task, made ready to learn another (Dosovitskiy et al., section 3.2)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from vitnp.backend import to_cpu
from vitnp.masked import MaskedPatchPrediction
from vitnp.pretrained.positions import check_rule, resize_grid, resize_matrix
from vitnp.vit import VisionTransformer

Grid = tuple[int, int]


def adapt(
    model: VisionTransformer,
    num_classes: int,
    *,
    image_size: int | tuple[int, int] | None = None,
    resize: str = "align-corners",
) -> VisionTransformer:
    """Return a copy of a model with a new head, of zeros, and nothing dropped: what fine-tuning begins with.

    All that is in front of the classifier in pre-training goes too, `pre_logits` as well as the head.

    Args:
        model: it is not changed.
        num_classes: of the new head.
        image_size: pixels, an int or a (height, width) pair, the model's own unless said. Patches keep their size, so
            larger images are more of them, and the positions are resized: on the grid, or along each axis where rows
            and columns, or the distances between patches, have their own. "sincos" are the waves of the new grid: a
            patch keeps those of its row and column.
        resize: by which rule: "align-corners" as the original, "bilinear", "bicubic", "bicubic-antialias"; see
            `vitnp.pretrained.positions`.

    Raises ConfigError for sizes that no network can have, ValueError for an unknown rule, whether or not there is
    anything to resize, and for another grid where positions are "relative-1d", which nothing resizes, TypeError for a
    network that predicts masked patches.
    """
    if isinstance(model, MaskedPatchPrediction):
        raise TypeError("the model predicts masked patches; expected its encoder: adapt model.backbone()")
    check_rule(resize)
    changes: dict[str, Any] = {
        "num_classes": num_classes,
        "representation_size": None,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "stochastic_depth": 0.0,
    }
    size = model.config.image_size if image_size is None else image_size
    config = replace(model.config, image_size=size, **changes)
    adapted = VisionTransformer(config, rng=None, dtype=model.flat.dtype)
    own, grids = adapted.parameters(), (model.config.grid, config.grid)
    if config.positions == "relative-1d" and grids[0] != grids[1]:
        raise ValueError(
            f"image_size {size} makes of the grid {grids[0]} of patches {grids[1]}, but positions 'relative-1d' are "
            f"offsets in raster order for the first: keep {model.config.image_size}"
        )
    for name, array in model.parameters().items():
        learned, last = to_cpu(array), name.rpartition(".")[2]
        if last.startswith("pos_embed") and grids[0] != grids[1]:
            resized = _on_a_grid if last == "pos_embed" else _on_an_axis
            own[name][...] = resized(learned, own[name].shape, grids, resize)
        elif not name.startswith(("head.", "pre_logits.")):
            own[name][...] = learned
    return adapted if model.device == "cpu" else adapted.to_device(model.device)


def _on_a_grid(learned: np.ndarray, shape: tuple[int, ...], grids: tuple[Grid, Grid], rule: str) -> np.ndarray:
    """(1, N, D) on one grid -> the same on another; that of a class token stays as it is."""
    first = shape[1] - math.prod(grids[1])
    patches = learned[0, first:].reshape(*grids[0], -1).astype(np.float64)
    resized = resize_grid(patches, grids[1], rule).reshape(1, -1, shape[-1])
    return np.concatenate([learned[:, :first], resized], 1)


def _on_an_axis(learned: np.ndarray, shape: tuple[int, ...], grids: tuple[Grid, Grid], rule: str) -> np.ndarray:
    """(n, K), for rows, columns or the distances between them -> (m, K): the outermost ones stay the outermost ones."""
    resized: np.ndarray = resize_matrix(len(learned), shape[0], rule) @ learned.astype(np.float64)
    return resized
