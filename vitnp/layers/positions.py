"""Position embeddings beside equation 1 (Dosovitskiy et al., appendix D.4): vectors added for where a token is.

Forward     y = x + pos, where pos is
                learned      a vector for the class token and for each patch in raster order, as in `Embeddings`
                learned-2d   [columns_c; rows_r] for the patch at row r and column c, D/2 numbers each
                sincos       the same, but columns and rows are sines and cosines, and nothing is learned
            A class token is at no row and no column: the last two add nothing to it, whose own vector is learned.
            Tokens behind the patches, registers, have no position at all.

Backward    Every sample adds the same vectors, and in a grid so do all patches of a row, or of a column:
                dx = dy,   dpos = Σ_b dy,   dcolumns_c = Σ_r dpos_rc (first half),   drows_r = Σ_c dpos_rc (second half)

Shapes      x, y, dx, dy (B, N, D)    pos (1, n, D), n with the class token where it has one
            columns (C, D/2)    rows (R, D/2), for R rows of C patches
Saves       nothing
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import normal, waves
from vitnp.layer import Initializer, Layer


class Positions(Layer):
    """Add position embeddings of a `kind`, "learned", "learned-2d" or "sincos", for patches in a grid (rows, columns).

    `pos_init` is how what is learned starts, N(0, 0.02²) unless said.
    """

    pos_embed: Array
    pos_embed_columns: Array
    pos_embed_rows: Array
    inline = True  # the names are `pos_embed`, in a block `blocks.0.pos_embed`

    def __init__(
        self,
        kind: str,
        grid: tuple[int, int],
        dim: int,
        *,
        class_token: bool = True,
        pos_init: Initializer | None = None,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.kind, self.grid = kind, grid
        self.first, self.stop = int(class_token), int(class_token) + math.prod(grid)  # where the patches begin and end
        pos_init = pos_init or normal(0.02)
        if kind == "learned":
            self.first = 0  # here the class token has a vector, too
            self.declare("pos_embed", (1, self.stop, dim), dtype, pos_init)
        elif kind == "learned-2d":
            self.declare("pos_embed_columns", (grid[1], dim // 2), dtype, pos_init)
            self.declare("pos_embed_rows", (grid[0], dim // 2), dtype, pos_init)
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> y (B, N, D)."""
        ctx.save(self)
        return self.add(x, ctx)

    def add(self, x: Array, ctx: Context) -> Array:
        """Return the same without a record: what all but one of several blocks do that share these vectors."""
        y = ctx.lend(self, "placed", x.shape, like=x)
        y[...] = x
        placed, half = y[:, self.first : self.stop], y.shape[-1] // 2
        if self.kind == "learned":
            placed += self.pos_embed
        else:
            columns, rows = self._columns_and_rows(x)
            grid = placed.reshape(len(y), *self.grid, -1)  # the same memory: one axis has become two
            grid[..., :half] += columns
            grid[..., half:] += rows[:, None]
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, N, D)."""
        ctx.saved(self)  # nothing to read, but a backward without its forward is an error here too
        dpos = dy[:, self.first : self.stop]
        if self.kind == "learned":
            ctx.add_row_sum(self, "pos_embed", dpos.reshape(len(dy), -1))
        elif self.kind == "learned-2d":
            grid, half = dpos.sum(0).reshape(*self.grid, -1), dy.shape[-1] // 2
            ctx.add_grad(self, pos_embed_columns=grid[..., :half].sum(0), pos_embed_rows=grid[..., half:].sum(1))
        return dy

    def _columns_and_rows(self, x: Array) -> tuple[Array, Array]:
        """Return (C, D/2) and (R, D/2)."""
        if self.kind == "learned-2d":
            return self.pos_embed_columns, self.pos_embed_rows
        xp, half, (rows, columns) = array_module(x), x.shape[-1] // 2, self.grid
        return waves(xp.arange(columns), half).astype(x.dtype), waves(xp.arange(rows), half).astype(x.dtype)
