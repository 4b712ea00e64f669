"""Relative positions: attention that sees how far apart two patches are, by rows and by columns.

Forward     Relative attention asks a second time with the same query, and embeddings of offsets are the keys. What the
            query of the patch at (r, c) gives for the key of the one at (r', c') is
                bias = q · (rows[r − r'] + columns[c − c'])
            which is added to the score of the two before the softmax. Every distance of rows and every one of columns
            has an embedding, none is clipped, and the heads share them, as in Shaw et al. (arXiv 1803.02155, section
            3.3). A pair of the two distances has none of its own, only their sum. A class token and
            registers are at no place: for pairs with one of them the bias is 0, and content alone decides. (So in the
            last block of a network that reads its class token, these embeddings have no effect.)
            All patches at r have the same offsets to the rows, so each axis is a product of small matrices, r by r:
                A[r, c, r'] = q[r, c] · rows[r − r'],   B[r, c, c'] = q[r, c] · columns[c − c'],   bias = A + B

Not the     Dosovitskiy et al. (appendix D.4) add such logits too, but number the patches in raster order, p = C r + c,
paper's     and learn one embedding for each offset p − p' of that single axis, 2 R C − 1 in all. There the last patch
            of a row and the first of the next are neighbours; here rows and columns stay apart, with 2 R + 2 C − 2
            embeddings. What Table 8 says of relative positions was measured with theirs (raster_positions.py).

Backward    dA = Σ_c' dbias,   dB = Σ_r' dbias,   for A is in the sum once for each c', and B for each r'
            Then as for any product of queries and keys: dq[r, c] = Σ_r' dA[r, c, r'] rows[r − r'] + the same of B,
            and keys[r, r'] = rows[r − r'] get Σ_c dA[r, c, r'] q[r, c]. An offset gathers from all pairs that have it.

Shapes      q, dq (B, H, N, K)    bias, dbias (B, H, N, N)
            rows (2R − 1, K), columns (2C − 1, K)    offset 0 in the middle
Saves       q, by row and by column
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import normal
from vitnp.layer import Layer

AXES = (("pos_embed_rows", 2), ("pos_embed_columns", 3))  # the two of a grid of queries (B, H, R, C, K)


class RelativePositions(Layer):
    """From queries of `size` columns to what relative attention adds to their scores, in a grid (rows, columns)."""

    pos_embed_rows: Array
    pos_embed_columns: Array
    inline = True  # the names are `blocks.0.attn.pos_embed_rows` and `blocks.0.attn.pos_embed_columns`

    def __init__(
        self,
        grid: tuple[int, int],
        size: int,
        *,
        class_token: bool = True,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patches = slice(int(class_token), int(class_token) + math.prod(grid))  # among the tokens
        for (name, _), count in zip(AXES, grid, strict=True):
            self.declare(name, (2 * count - 1, size), dtype, normal(0.02))
        self.built(rng)

    def forward(self, q: Array, ctx: Context) -> Array:
        """q (B, H, N, K) -> bias (B, H, N, N)."""
        B, H, N, K = q.shape
        grid = q[:, :, self.patches].reshape(B, H, *self.grid, K)
        logits, saved = [], []
        for name, axis in AXES:
            lines = grid.swapaxes(0, axis)  # by row (R, H, B, C, K), by column (C, H, R, B, K)
            saved.append(lines.reshape(len(lines), -1, K))
            product = saved[-1] @ self._keys(name).swapaxes(-1, -2)
            logits.append(product.reshape(*lines.shape[:-1], len(lines)).swapaxes(0, axis))
        A, by_column = logits  # (B, H, R, C, R) and (B, H, R, C, C)
        bias = ctx.lend(self, "bias", (B, H, N, N), like=q)
        bias.fill(0)
        n = math.prod(self.grid)
        bias[:, :, self.patches, self.patches] = (A[..., None] + by_column[..., None, :]).reshape(B, H, n, n)
        ctx.save(self, q_by_row=saved[0], q_by_column=saved[1])
        return bias

    def backward(self, dbias: Array, ctx: Context) -> Array:
        """dbias (B, H, N, N) -> dq (B, H, N, K)."""
        xp, s, (B, H, N, _), K = array_module(dbias), ctx.saved(self), dbias.shape, self.pos_embed_rows.shape[-1]
        # bias = A + B
        dpairs = dbias[:, :, self.patches, self.patches].reshape(B, H, *self.grid, *self.grid)
        dgrid = xp.zeros((B, H, *self.grid, K), dbias.dtype)
        sides = zip(AXES, (s.q_by_row, s.q_by_column), (dpairs.sum(-1), dpairs.sum(-2)), strict=True)
        for (name, axis), q, dlogits in sides:
            dlines = dlogits.swapaxes(0, axis)
            dproduct = dlines.reshape(len(dlines), -1, len(dlines))
            # A = q @ keysᵀ, keys = choice @ rows
            dkeys = dproduct.swapaxes(-1, -2) @ q
            ctx.add_product(self, name, self._choice(name).T, dkeys.reshape(-1, K))
            dgrid += (dproduct @ self._keys(name)).reshape(*dlines.shape[:-1], K).swapaxes(0, axis)
        dq = ctx.lend(self, "dq", (B, H, N, K), like=dbias)
        dq.fill(0)
        dq[:, :, self.patches] = dgrid.reshape(B, H, -1, K)
        return dq

    def _keys(self, name: str) -> Array:
        """The embeddings (R, R', K) of the offsets r − r', or those of columns."""
        embeddings = getattr(self, name)
        count = len(embeddings) // 2 + 1
        return (self._choice(name) @ embeddings).reshape(count, count, -1)

    def _choice(self, name: str) -> Array:
        """Zeros and a one in each row (r, r'), where r − r' is among the offsets: (R R', 2R − 1)."""
        embeddings = getattr(self, name)
        xp, offsets = array_module(embeddings), len(embeddings)
        place = xp.arange(offsets // 2 + 1)
        chosen = (place[:, None] - place + offsets // 2).reshape(-1, 1) == xp.arange(offsets)
        return chosen.astype(embeddings.dtype)
