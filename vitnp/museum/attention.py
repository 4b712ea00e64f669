"""Mistakes in attention: beside vitnp/layers/attention.py, whose backward stands here in steps that can go wrong alone.

Right       scores = q kᵀ / √K,   heads = weights v
            dweights = dheads vᵀ,   dv = weightsᵀ dheads,   dq = dscores k / √K,   dk = dscoresᵀ q / √K
"""

from __future__ import annotations

import math
from types import SimpleNamespace

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layers import Attention
from vitnp.museum.exhibit import Exhibit


class InSteps(Attention):
    """The right attention. Each mistake below replaces one step of its backward."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, N, D)."""
        s = ctx.saved(self)
        dheads = self._by_head(self.proj.backward(dy, ctx))
        dweights, dv = self._weights_and_values(dheads, s)
        dscores = self.softmax.backward(self.dropout.backward(dweights, ctx), ctx)
        dq, dk = self._queries_and_keys(dscores, s)
        return self._input(dq, dk, dv, ctx)

    def _weights_and_values(self, dheads: Array, s: SimpleNamespace) -> tuple[Array, Array]:
        return dheads @ s.v.swapaxes(-1, -2), s.weights.swapaxes(-1, -2) @ dheads

    def _queries_and_keys(self, dscores: Array, s: SimpleNamespace) -> tuple[Array, Array]:
        return dscores @ s.k * self.scale, dscores.swapaxes(-1, -2) @ s.q * self.scale

    def _input(self, dq: Array, dk: Array, dv: Array, ctx: Context) -> Array:
        dqkv = array_module(dq).concatenate([_side_by_side(dq), _side_by_side(dk), _side_by_side(dv)], -1)
        return self.qkv.backward(dqkv, ctx)


class ScaleForgotten(InSteps):
    """Attention whose forward divides by √K and whose backward does not."""

    def _queries_and_keys(self, dscores: Array, s: SimpleNamespace) -> tuple[Array, Array]:
        return dscores @ s.k, dscores.swapaxes(-1, -2) @ s.q


class KeysUntransposed(InSteps):
    """Attention in which the gradient of the keys lacks a transpose."""

    def _queries_and_keys(self, dscores: Array, s: SimpleNamespace) -> tuple[Array, Array]:
        return dscores @ s.k * self.scale, dscores @ s.q * self.scale


class ValuesUntransposed(InSteps):
    """Attention in which the gradient of the values lacks a transpose."""

    def _weights_and_values(self, dheads: Array, s: SimpleNamespace) -> tuple[Array, Array]:
        return dheads @ s.v.swapaxes(-1, -2), s.weights @ dheads


class ReturnsValues(InSteps):
    """Attention that returns the gradient of its values as that of its input."""

    def _input(self, dq: Array, dk: Array, dv: Array, ctx: Context) -> Array:
        super()._input(dq, dk, dv, ctx)
        return _side_by_side(dv)


class Unscaled(Attention):
    """Attention without 1/√K, forward and backward."""

    @property
    def scale(self) -> float:  # type: ignore[override]
        """1, whatever K."""
        return 1.0


class ScaledByWidth(Attention):
    """Attention that divides by √D, forward and backward."""

    @property
    def scale(self) -> float:  # type: ignore[override]
        """1/√D, where it should be 1/√K."""
        return 1 / math.sqrt(len(self.proj.bias))


def _side_by_side(x: Array) -> Array:
    """(B, H, N, K) -> (B, N, D), head by head."""
    B, H, N, K = x.shape
    return x.swapaxes(1, 2).reshape(B, N, H * K)


EXHIBITS = (
    Exhibit(
        name="attention-scale-forgotten",
        title="Attention's backward forgets the factor 1/√K of its forward",
        wrong="dq = dscores k,   dk = dscoresᵀ q",
        why="Queries and keys get gradients that are √K times too large: Adam takes the same step all the same.",
        right="dq = dscores k / √K,   dk = dscoresᵀ q / √K",
        first="blocks.1.attn.qkv",
        layer=ScaleForgotten,
        replaces=Attention,
    ),
    Exhibit(
        name="attention-keys-untransposed",
        title="The gradient of the keys lacks a transpose",
        wrong="dk = dscores q / √K",
        why="Row i of dscores belongs to query i; its keys are the columns. It is square, so both shapes fit.",
        right="dk = dscoresᵀ q / √K",
        first="blocks.1.attn.qkv",
        layer=KeysUntransposed,
        replaces=Attention,
    ),
    Exhibit(
        name="attention-values-untransposed",
        title="The gradient of the values lacks a transpose",
        wrong="dv = weights dheads",
        why="Value j goes to all queries that look at it: that is column j of the weights, not row j.",
        right="dv = weightsᵀ dheads",
        first="blocks.1.attn.qkv",
        layer=ValuesUntransposed,
        replaces=Attention,
    ),
    Exhibit(
        name="attention-returns-values",
        title="Attention returns the gradient of its values as that of its input",
        wrong="dx = [dv, heads side by side]",
        why="It has the shape of x, and W_qkv still gets its own gradient. What lies below learns from another.",
        right="dx = [dq, dk, dv] W_qkvᵀ",
        first="blocks.1.norm1",
        layer=ReturnsValues,
        replaces=Attention,
    ),
    Exhibit(
        name="attention-unscaled",
        title="The factor 1/√K is missing, forward and backward",
        wrong="scores = q kᵀ, and its right derivative",
        why="Scores grow with √K and softmax saturates. A gradient check agrees with every digit of it.",
        right="scores = q kᵀ / √K",
        kind="function",
        layer=Unscaled,
        replaces=Attention,
    ),
    Exhibit(
        name="attention-scaled-by-width",
        title="Scores are divided by the root of the width, not of a head's size",
        wrong="scores = q kᵀ / √D, and its right derivative",
        why="With one head the two are the same, and then the code is cut into heads.",
        right="scores = q kᵀ / √K,   K = D/H",
        kind="function",
        layer=ScaledByWidth,
        replaces=Attention,
    ),
)
