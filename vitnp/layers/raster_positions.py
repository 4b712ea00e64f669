"""Relative positions in raster order: attention that sees how many patches apart two are, counted row by row
(Dosovitskiy et al., appendix D.4, "1-dimensional Relative Attention").

Forward     Relative attention asks a second time with the same query, and embeddings of offsets are the keys. What the
            query of patch p gives for the key of patch p' is
                bias[p, p'] = q[p] · offsets[p − p']
            which is added to the score of the two before the softmax. Every offset from −(n − 1) to n − 1 has an
            embedding, and the heads share them. A class token and registers are in no row: for pairs with one of them
            the bias is 0. (So in the last block of a network that reads its class token, these have no effect.)
            All products at once are logits[p, k] = q[p] · reversed[k], where reversed[k] = offsets[n − 1 − k]. Of row p
            the n numbers from k = n − 1 − p on are wanted; read as one line, with rows of 2n − 1, they begin at
            p (2n − 1) + n − 1 − p = p (2n − 2) + n − 1: so from place n − 1 on they are the first n of rows of 2n − 2.

Backward    dlogits has dbias at these places and 0 at all others; then, as for any product,
                dq = dlogits reversed,   dreversed = Σ_b,h dlogitsᵀ q

Shapes      q, dq (B, H, N, K)    bias, dbias (B, H, N, N)    logits (B, H, n, 2n − 1), n patches
            offsets (2n − 1, K)    offset 0 in the middle
Saves       q of the patches
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import normal
from vitnp.layer import Layer


class RasterPositions(Layer):
    """From queries of `size` columns to what relative attention adds to their scores; there are 2 patches or more."""

    pos_embed_offsets: Array
    inline = True  # the name is `blocks.0.attn.pos_embed_offsets`

    def __init__(
        self,
        patches: int,
        size: int,
        *,
        class_token: bool = True,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        if patches < 2:
            raise ValueError(f"there is {patches} patch in an image; expected 2 or more, which are some way apart")
        self.patches = slice(int(class_token), int(class_token) + patches)  # among the tokens
        self.declare("pos_embed_offsets", (2 * patches - 1, size), dtype, normal(0.02))
        self.built(rng)

    def forward(self, q: Array, ctx: Context) -> Array:
        """q (B, H, N, K) -> bias (B, H, N, N)."""
        q_patches, (B, H, N, _) = q[:, :, self.patches], q.shape
        n = q_patches.shape[2]
        logits = q_patches @ self.pos_embed_offsets[::-1].T
        bias = ctx.lend(self, "bias", (B, H, N, N), like=q)
        bias.fill(0)
        rows = logits.reshape(B, H, -1)[..., n - 1 : -1].reshape(B, H, n, 2 * n - 2)
        bias[:, :, self.patches, self.patches] = rows[..., :n]
        ctx.save(self, q=q_patches)
        return bias

    def backward(self, dbias: Array, ctx: Context) -> Array:
        """dbias (B, H, N, N) -> dq (B, H, N, K)."""
        xp, q, (B, H, N, _) = array_module(dbias), ctx.saved(self).q, dbias.shape
        n, (offsets, K) = q.shape[2], self.pos_embed_offsets.shape
        # bias = logits, row by row from n − 1 − p on
        drows, dline = xp.zeros((B, H, n, 2 * n - 2), dbias.dtype), xp.zeros((B, H, n * offsets), dbias.dtype)
        drows[..., :n] = dbias[:, :, self.patches, self.patches]
        dline[..., n - 1 : -1] = drows.reshape(B, H, -1)
        dlogits = dline.reshape(B, H, n, offsets)
        # logits = q @ reversedᵀ
        dreversed = dlogits.reshape(-1, offsets).T @ q.reshape(-1, K)
        ctx.add_grad(self, pos_embed_offsets=dreversed[::-1])
        dq = ctx.lend(self, "dq", (B, H, N, K), like=dbias)
        dq.fill(0)
        dq[:, :, self.patches] = dlogits @ self.pos_embed_offsets[::-1]
        return dq
