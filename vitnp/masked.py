"""Masked patch prediction: learning from images without labels (Dosovitskiy et al., appendix B.1.2).

    images (B, H, W, C)
    patch_embed     cut, flatten, project                                                    (B, n, D)
    corruption      half of them hidden: [mask], another patch, or left as it is             (B, n, D)
    the encoder     positions, blocks, as in `VisionTransformer`                             (B, N, D)
    classifier      norm and a linear head, on the k = ⌊n/2⌋ corrupted patches' tokens       (B·k, colours)

The loss is the mean cross-entropy over all corrupted patches of their mean colours, of which there are 8 in a channel:
512 in an RGB image, 8 grey levels in a grey one. What was learned is the encoder: `backbone` returns it as an ordinary
VisionTransformer, whose head begins at zero.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vitnp.backend import Array, array_module, to_device
from vitnp.config import ConfigError, ViTConfig
from vitnp.context import Context
from vitnp.layer import Layout
from vitnp.layers.corruption import PatchCorruption
from vitnp.layers.patch_embed import patchify
from vitnp.vit import VisionTransformer

LEVELS = 8  # 3 bits a channel
MOST_CHANNELS = 20  # whose colours are integers of 64 bits


def patch_colours(images: NDArray[np.uint8], patch_size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the mean colour of every patch, in 3 bits a channel: uint8 (B, H, W, C) -> integers (B, n).

    A channel's mean in [0, 256) falls into one of 8 levels, 32 wide; with levels r, g, b the colour is 64 r + 8 g + b.
    All of it is integer arithmetic. Raises TypeError for images that are not uint8.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images are {images.dtype}; expected uint8: colours are told before images are normalised")
    (B, _, _, C), pixels = images.shape, math.prod(patch_size)
    totals = patchify(images, patch_size).reshape(B, -1, pixels, C).sum(2, dtype=np.int64)
    colours: NDArray[np.int64] = (totals * LEVELS // (256 * pixels)) @ LEVELS ** np.arange(C - 1, -1, -1)
    return colours


class MaskedPatchPrediction(VisionTransformer):
    """A Vision Transformer that says what colour the patches had that were hidden from it.

    Args:
        config: sizes of the network; `num_classes` becomes the number of colours, and there is no pre-logits layer.
        rng, dtype: as for `VisionTransformer`, with the same initial values for the same seed; [mask] comes after.

    `features`, which read the images uncorrupted, are those of `backbone()`. Raises ConfigError for a single patch, and
    for a stem.
    """

    def __init__(
        self, config: ViTConfig, rng: int | np.random.Generator | None = 0, dtype: DTypeLike = "float32"
    ) -> None:
        if config.channels > MOST_CHANNELS:
            raise ConfigError(
                f"channels is {config.channels}; expected at most {MOST_CHANNELS}: a colour is one integer"
            )
        config = dataclasses.replace(config, num_classes=LEVELS**config.channels, representation_size=None)
        if config.stem_blocks is not None:
            raise ConfigError(
                f"stem_blocks is {config.stem_blocks}; expected None: a stem's windows overlap, so no patch is hidden"
            )
        if config.num_patches < 2:
            raise ConfigError(f"patch_size {config.patch_size} makes 1 patch of an image; expected 2 or more")
        super().__init__(config, rng=None, dtype=dtype)
        self.corruption = PatchCorruption(config.num_patches, config.dim, rng=None, dtype=dtype)
        self.answers = self.corruption.corrupted
        self.built(rng=None)
        self._bind(Layout(self), copy=False)
        if rng is not None:
            self.initialize(rng)

    def forward(self, x: Array, ctx: Context | None = None) -> Array:
        """images (B, H, W, C) -> logits (B·k, colours), k = ⌊n/2⌋ rows for each image, a fresh array.

        The context needs a seed in every mode. Opens a new pass, and raises as `VisionTransformer.forward` does.
        """
        ctx = ctx or Context()
        ctx.begin()
        x = self.corruption.forward(self.patch_embed.forward(self._check(x), ctx), ctx)
        tokens = self._encode(x, ctx)
        rows, columns = self._corrupted(len(tokens), ctx)
        ctx.save(self, tokens=tokens, rows=rows, columns=columns)
        norm, head = self.classifier.norm, self.classifier.head
        return head.forward(norm.forward(tokens[rows, columns], ctx), ctx).copy()

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dlogits (B·k, colours) -> dimages (B, H, W, C), as `VisionTransformer.backward`."""
        s, norm, head = ctx.saved(self), self.classifier.norm, self.classifier.head
        dtokens = ctx.empty(self, "dtokens", s.tokens.shape, like=s.tokens)
        dtokens.fill(0)  # no other token reached the loss directly
        dtokens[s.rows, s.columns] = norm.backward(head.backward(dy, ctx), ctx)
        dx = self.corruption.backward(self._encode_backward(dtokens, ctx), ctx)
        dimages = self.patch_embed.backward(dx, ctx)
        return dimages.copy() if ctx.input_grad else None

    def targets(self, labels: Any, ctx: Context) -> Array:
        """Colours of all patches (B, n) -> those of the corrupted ones (B·k,), in the order of the logits' rows.

        Which they are follows from the seed, step and first row of `ctx`, as in forward.
        """
        labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
        if labels.ndim != 2 or labels.shape[1] != self.config.num_patches:
            expected = f"(batch, {self.config.num_patches}), one for each patch"
            raise ValueError(f"colours have shape {labels.shape}; expected {expected}, as patch_colours returns them")
        rows, columns = self._corrupted(len(labels), ctx)
        return to_device(labels, self.device)[rows, columns - self.embeddings.first]

    def _corrupted(self, samples: int, ctx: Context) -> tuple[Array, Array]:
        """Return row and column, both (B·k,), of each corrupted patch among the tokens (B, N)."""
        places = self.corruption.places(samples, ctx, like=self.flat)
        xp = array_module(self.flat)
        rows = xp.broadcast_to(xp.arange(samples)[:, None], places.shape)
        return rows.reshape(-1), (places + self.embeddings.first).reshape(-1)

    def backbone(self, num_classes: int = 10) -> VisionTransformer:
        """Return a copy of what was pre-trained, as a VisionTransformer whose head is zero."""
        config = dataclasses.replace(self.config, num_classes=num_classes)
        model = VisionTransformer(config, rng=0, dtype=self.flat.dtype).to_device(self.device)
        for name, parameter in model.parameters().items():
            if not name.startswith("head."):
                parameter[...] = self.parameters()[name]
        return model
