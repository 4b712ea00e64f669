"""Encoder block: attention and MLP, each after a layer norm and beside a skip (Dosovitskiy et al., equations 2, 3).

Forward     z = x + dropout(attention(norm1(x)))
            y = z + mlp(norm2(z))
            With `positions`, x is what they make of the block's input (Table 8: in every layer).
Backward    A sum passes its gradient to both terms, so the skip adds dy to what comes back through the branch:
                dz = dy + norm2ᵀ(mlpᵀ(dy)),   dx = dz + norm1ᵀ(attentionᵀ(dropoutᵀ(dz)))

Shapes      x, y, z and gradients (B, N, D)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer
from vitnp.layers.attention import Attention
from vitnp.layers.dropout import Dropout
from vitnp.layers.layer_norm import LayerNorm
from vitnp.layers.mlp import MLP
from vitnp.layers.positions import Positions
from vitnp.layers.relative_positions import RelativePositions


class Block(Layer):
    """A pre-norm encoder block of the Vision Transformer.

    `positions` are added to its input; `relative` is that of `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        gelu: str = "tanh",
        layer_norm_eps: float = 1e-6,
        positions: Positions | None = None,
        relative: RelativePositions | None = None,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.positions = positions
        self.norm1 = LayerNorm(dim, eps=layer_norm_eps, rng=None, dtype=dtype)
        self.attn = Attention(dim, num_heads, dropout=attention_dropout, relative=relative, rng=None, dtype=dtype)
        self.dropout = Dropout(dropout)
        self.norm2 = LayerNorm(dim, eps=layer_norm_eps, rng=None, dtype=dtype)
        self.mlp = MLP(dim, mlp_dim, gelu=gelu, dropout=dropout, rng=None, dtype=dtype)
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> y (B, N, D)."""
        if self.positions is not None:
            x = self.positions.forward(x, ctx)
        branch = self.dropout.forward(self.attn.forward(self.norm1.forward(x, ctx), ctx), ctx)
        z = self._add("z", x, branch, ctx)
        return self._add("y", z, self.mlp.forward(self.norm2.forward(z, ctx), ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, N, D)."""
        dz = self._add("dz", dy, self.norm2.backward(self.mlp.backward(dy, ctx), ctx), ctx)
        dbranch = self.norm1.backward(self.attn.backward(self.dropout.backward(dz, ctx), ctx), ctx)
        dx = self._add("dx", dz, dbranch, ctx)
        return dx if self.positions is None else self.positions.backward(dx, ctx)

    def _add(self, name: str, a: Array, b: Array, ctx: Context) -> Array:
        # z and dz are this block's own affair; y and dx people look at, block by block.
        allocate = ctx.lend if name in ("z", "dz") else ctx.empty
        return array_module(a).add(a, b, out=allocate(self, name, a.shape, like=a))
