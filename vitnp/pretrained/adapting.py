"""A model that has learned one task, made ready to learn another (Dosovitskiy et al., section 3.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vitnp.backend import to_cpu
from vitnp.pretrained.positions import resize_grid
from vitnp.vit import VisionTransformer


def adapt(
    model: VisionTransformer,
    num_classes: int,
    *,
    image_size: int | tuple[int, int] | None = None,
    resize: str = "align-corners",
) -> VisionTransformer:
    """Return a copy of a model with a new head, of zeros, and without dropout: what fine-tuning begins with.

    All that is in front of the classifier in pre-training goes too, `pre_logits` as well as the head.

    Args:
        model: it is not changed.
        num_classes: of the new head.
        image_size: pixels, an int or a (height, width) pair, the model's own unless said. Patches keep their size, so
            larger images are more of them, and the positions are resized.
        resize: by which rule: "align-corners" as the original, "bilinear", "bicubic", "bicubic-antialias"; see
            `vitnp.pretrained.positions`.

    Raises ConfigError for sizes that no network can have, ValueError for an unknown rule.
    """
    changes: dict[str, Any] = {
        "num_classes": num_classes,
        "representation_size": None,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    size = model.config.image_size if image_size is None else image_size
    config = replace(model.config, image_size=size, **changes)
    adapted = VisionTransformer(config, rng=None, dtype=model.flat.dtype)
    own = adapted.parameters()
    for name, learned in model.parameters().items():
        if name == "pos_embed":
            own[name][...] = _positions(to_cpu(learned), model, config.grid, resize)
        elif not name.startswith(("head.", "pre_logits.")):
            own[name][...] = to_cpu(learned)
    return adapted if model.device == "cpu" else adapted.to_device(model.device)


def _positions(learned: np.ndarray, model: VisionTransformer, grid: tuple[int, int], rule: str) -> np.ndarray:
    """(1, N, D) on the model's grid -> the same on another; that of a class token stays as it is."""
    first = model.embeddings.first
    patches = learned[0, first:].reshape(*model.config.grid, -1).astype(np.float64)
    resized = resize_grid(patches, grid, rule).reshape(1, -1, learned.shape[-1])
    return np.concatenate([learned[:, :first], resized], 1)
