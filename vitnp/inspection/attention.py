"""Attention rollout: how much of each patch is in the output (Abnar and Zuidema, arXiv 2005.00928).

The heads of a block are averaged; a block's output mixes its attention with the skip beside it, half and half; and
what flows through the layers is the product of these mixtures:

    A_l = ½ (mean over heads of probs_l + I),   rollout = A_L … A_2 A_1

The class token's row says what the classifier sees (figure 6 and appendix D.8 of Dosovitskiy et al.). A model that
pools by the mean has no such token: there it is the mean of all rows. Registers mix like any token, but are neither
patches of the map nor, in a mean, read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

from vitnp.backend import Array, to_cpu
from vitnp.context import Context
from vitnp.vit import VisionTransformer


def attention_rollout(model: VisionTransformer, images: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (B, rows, columns), one number a patch and of sum 1, and the logits (B, classes).

    images (B, H, W, C) are floats, as `model.forward` takes them.
    """
    ctx = Context(record=True)
    logits = model.forward(images, ctx)
    rollout = np.eye(model.config.num_tokens)
    for block in model.blocks:
        mixed = to_cpu(ctx.saved(block.attn).probs).mean(1) / 2 + np.eye(model.config.num_tokens) / 2
        rollout = mixed @ rollout
    first, n = model.embeddings.first, model.config.num_patches
    seen = rollout[:, 0] if first else rollout[:, :n].mean(1)
    seen = seen[:, first : first + n]
    maps = (seen / seen.sum(-1, keepdims=True)).reshape(-1, *model.config.grid)
    return maps, to_cpu(logits)


def attention_picture(
    images: np.ndarray, maps: np.ndarray, captions: Sequence[str], path: str | Path, columns: int = 8, side: int = 112
) -> None:
    """Write a PNG: each image beside itself under its attention map, with a caption.

    images (n, H, W, C) are uint8 with one channel or three, maps (n, rows, columns) as from `attention_rollout`;
    `side` is the height of an image in the picture, in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    n, height, width = images.shape[:3]
    size = (round(side * width / height), side)
    cell, margin = (2 * size[0] + 12, side + 26), 8
    rows = -(-n // columns)
    sheet = Image.new("RGB", (margin + min(n, columns) * cell[0], margin + rows * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for i, (image, attention, caption) in enumerate(zip(images, maps, captions, strict=True)):
        left, top = margin + i % columns * cell[0], margin + i // columns * cell[1]
        pixels = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB")
        pixels = pixels.resize(size, Image.Resampling.NEAREST)
        sheet.paste(pixels, (left, top))
        sheet.paste(overlay(pixels, attention), (left + size[0], top))
        draw.text((left, top + side + 3), caption, fill="black", font=font)
    sheet.save(path)


def overlay(pixels: Image, attention: np.ndarray) -> Image:
    """Return the image under a map that runs from dark blue (none) to yellow (most), smoothed between patches."""
    from PIL import Image

    low, high = attention.min(), attention.max()
    relative = (attention - low) / (high - low) if high > low else np.zeros_like(attention)
    smooth = Image.fromarray(np.uint8(255 * relative)).resize(pixels.size, Image.Resampling.BICUBIC)
    level = np.asarray(smooth, np.float32) / 255
    stops = np.array([(20, 20, 90), (190, 50, 110), (255, 230, 70)], np.float32)
    heat = np.stack([np.interp(level, (0, 0.5, 1), stops[:, channel]) for channel in range(3)], -1)
    return Image.fromarray(np.uint8(0.45 * np.asarray(pixels, np.float32) + 0.55 * heat))
