"""Mistakes in softmax: beside vitnp/layers/softmax.py.

Right       p_i = e^(x_i − m) / Σ_j e^(x_j − m),   dx = p · (dp − Σ_j dp_j p_j)
"""

from __future__ import annotations

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layers import Softmax
from vitnp.museum.exhibit import Exhibit


class Diagonal(Softmax):
    """Softmax that is differentiated as a sigmoid is, each element for itself."""

    def backward(self, dp: Array, ctx: Context) -> Array:
        """dp (..., N) -> dx (..., N)."""
        p = ctx.saved(self).p
        return dp * p * (1 - p)


class ShiftedColumns(Softmax):
    """Softmax whose shift is not the same along a row, and so does not cancel."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (..., N, N) -> p (..., N, N)."""
        return super().forward(x - x.max(-1)[..., None, :], ctx)  # the maximum of row j, taken from column j


class OverQueries(Softmax):
    """Softmax over the axis of the queries: every column has the sum 1, rows have any."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (..., N, N) -> p (..., N, N)."""
        return super().forward(x.swapaxes(-1, -2), ctx).swapaxes(-1, -2)

    def backward(self, dp: Array, ctx: Context) -> Array:
        """dp (..., N, N) -> dx (..., N, N)."""
        return super().backward(dp.swapaxes(-1, -2), ctx).swapaxes(-1, -2)


class OfFirstSample(Softmax):
    """Softmax of the first sample alone, which the others are given too."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, ..., N) -> p (B, ..., N)."""
        return array_module(x).broadcast_to(super().forward(x[:1], ctx), x.shape)

    def backward(self, dp: Array, ctx: Context) -> Array:
        """dp (B, ..., N) -> dx (B, ..., N)."""
        dx = array_module(dp).zeros_like(dp)
        dx[:1] = super().backward(dp.sum(0, keepdims=True), ctx)
        return dx


EXHIBITS = (
    Exhibit(
        name="softmax-diagonal",
        title="Softmax backward keeps only the diagonal of its Jacobian",
        wrong="dx = p (1 − p) dp",
        why="Each p_i depends on every x_j, through the sum; this is the derivative of a sigmoid.",
        right="dx = p (dp − Σ_j dp_j p_j)",
        first="blocks.1.attn.qkv",
        layer=Diagonal,
        replaces=Softmax,
    ),
    Exhibit(
        name="softmax-shifted-columns",
        title="Softmax subtracts the maximum of row j from column j",
        wrong="e = exp(x − x.max(-1)[..., None, :])",
        why="The axis of the maxima was put back in the wrong place. Rows still sum to 1, so all looks well.",
        right="e = exp(x − x.max(-1)[..., :, None]), a constant along each row, which cancels",
        kind="both",
        first="blocks.1.attn.qkv",
        layer=ShiftedColumns,
        replaces=Softmax,
    ),
    Exhibit(
        name="softmax-over-queries",
        title="Softmax runs over the queries, not over the keys",
        wrong="p_ij = e^x_ij / Σ_i e^x_ij, and its right derivative",
        why="The scores are square, so no shape tells; but now the queries compete for each key.",
        right="p_ij = e^x_ij / Σ_j e^x_ij",
        kind="function",
        layer=OverQueries,
        replaces=Softmax,
    ),
    Exhibit(
        name="softmax-of-first-sample",
        title="All samples attend as the first one of the batch does",
        wrong="probs = softmax(scores)[0], broadcast, and its right derivative",
        why="An index that was left in from a test with one image. A batch of one never shows it.",
        right="probs_b = softmax(scores_b)",
        kind="function",
        layer=OfFirstSample,
        replaces=Softmax,
    ),
)
