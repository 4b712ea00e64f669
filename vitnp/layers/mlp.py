"""The MLP of an encoder block: two linear layers with GELU between, dropout after each (Dosovitskiy et al., B.1).

Forward     y = dropout(dropout(gelu(x W_1 + b_1)) W_2 + b_2)
Backward    the chain rule, last layer first

Shapes      x, y, dx, dy (B, N, D)    hidden (B, N, M)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.initializers import normal
from vitnp.layer import Layer
from vitnp.layers.dropout import Dropout
from vitnp.layers.gelu import GELU
from vitnp.layers.linear import Linear


class MLP(Layer):
    """fc1, GELU, dropout, fc2, dropout."""

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        *,
        gelu: str = "tanh",
        dropout: float = 0.0,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, mlp_dim, bias_init=normal(1e-6), rng=None, dtype=dtype)
        self.gelu = GELU(gelu)
        self.dropout1 = Dropout(dropout)
        self.fc2 = Linear(mlp_dim, dim, bias_init=normal(1e-6), rng=None, dtype=dtype)
        self.dropout2 = Dropout(dropout)
        self.fc1.lends = self.fc2.lends = True  # GELU keeps its slope, and the sum behind the block nothing
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> y (B, N, D)."""
        hidden = self.dropout1.forward(self.gelu.forward(self.fc1.forward(x, ctx), ctx), ctx)
        return self.dropout2.forward(self.fc2.forward(hidden, ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, N, D)."""
        dhidden = self.fc2.backward(self.dropout2.backward(dy, ctx), ctx)
        return self.fc1.backward(self.gelu.backward(self.dropout1.backward(dhidden, ctx), ctx), ctx)
