"""Mistakes in dropout: beside vitnp/layers/dropout.py, and vitnp/layers/mlp.py for the last.

Right       y = x · m,   dx = dy · m,   m = 1/(1 − rate) with probability 1 − rate, else 0

Where nothing is dropped, no mistake shows.
"""

from __future__ import annotations

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.layers import MLP, Dropout
from vitnp.museum.exhibit import Exhibit


class Redrawn(Dropout):
    """Dropout whose backward draws a mask of its own."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, ...) -> dx (B, ...)."""
        if ctx.saved(self).mask is None:
            return dy
        ctx.step = ~ctx.step  # so that other bits come, as they do from a generator that has moved on
        bits = ctx.random_bits(self, dy.shape, like=dy)
        ctx.step = ~ctx.step
        return dy * (bits >= self.rate * 2**32) / (1 - self.rate)


class Unmasked(Dropout):
    """Dropout that backward passes over."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, ...) -> dx (B, ...)."""
        return dy


class UndroppedInput(MLP):
    """MLP whose second layer keeps the activations from before the dropout."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> y (B, N, D)."""
        activations = self.gelu.forward(self.fc1.forward(x, ctx), ctx)
        y = self.fc2.forward(self.dropout1.forward(activations, ctx), ctx)
        if ctx.record:
            ctx.saved(self.fc2).rows = activations.reshape(-1, activations.shape[-1])
        return self.dropout2.forward(y, ctx)


EXHIBITS = (
    Exhibit(
        name="dropout-redrawn",
        title="Backward draws a new dropout mask",
        wrong="dx = dy · m',   m' drawn anew",
        why="Gradients flow where forward was cut, and are cut where it flowed. At rate 0 the layer is right.",
        right="dx = dy · m, the mask of forward",
        first="blocks.1.mlp.fc2",
        layer=Redrawn,
        replaces=Dropout,
    ),
    Exhibit(
        name="dropout-unmasked",
        title="Backward passes over dropout",
        wrong="dx = dy",
        why="What was dropped is told to change, though it had no part in the loss.",
        right="dx = dy · m",
        first="blocks.1.mlp.fc2",
        layer=Unmasked,
        replaces=Dropout,
    ),
    Exhibit(
        name="dropout-undropped-input",
        title="A layer after dropout keeps what went into the dropout, not what came out",
        wrong="dW_2 = gelu(x W_1 + b_1)ᵀ dy",
        why="Two arrays of one shape, and the wrong one was kept.",
        right="dW_2 = dropout(gelu(x W_1 + b_1))ᵀ dy",
        first="blocks.1.mlp.fc2.weight",
        layer=UndroppedInput,
        replaces=MLP,
    ),
)
