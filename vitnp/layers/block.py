"""Encoder block: attention and MLP, each after a layer norm and beside a skip (Dosovitskiy et al., equations 2, 3).

Forward     z = x + dropout(attention(norm1(x)))
            y = z + mlp(norm2(z))
            With `positions`, x is what they make of the block's input (Table 8: in every layer). Layer scale and
            stochastic depth are the last that each of the two branches passes before its sum.
Backward    A sum passes its gradient to both terms, so the skip adds dy to what comes back through the branch:
                dz = dy + norm2ᵀ(mlpᵀ(dy)),   dx = dz + norm1ᵀ(attentionᵀ(dropoutᵀ(dz)))

Shapes      x, y, z and gradients (B, N, D)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer
from vitnp.layers.attention import Attention
from vitnp.layers.dropout import Dropout
from vitnp.layers.layer_norm import LayerNorm
from vitnp.layers.layer_scale import LayerScale
from vitnp.layers.mlp import MLP
from vitnp.layers.positions import Positions
from vitnp.layers.raster_positions import RasterPositions
from vitnp.layers.relative_positions import RelativePositions
from vitnp.layers.stochastic_depth import StochasticDepth


class Block(Layer):
    """A pre-norm encoder block of the Vision Transformer.

    `positions` are added to its input, `relative` is that of `Attention`, which with `qk_norm` has norms of q and k;
    `layer_scale` is where every gamma of `LayerScale` starts, `stochastic_depth` the rate of `StochasticDepth`.
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
        relative: RelativePositions | RasterPositions | None = None,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        stochastic_depth: float = 0.0,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.positions = positions
        self.norm1 = LayerNorm(dim, eps=layer_norm_eps, rng=None, dtype=dtype)
        more: dict[str, Any] = {"rng": None, "dtype": dtype, "relative": relative}
        if qk_norm:
            size = dim // num_heads
            more |= {name: LayerNorm(size, eps=layer_norm_eps, rng=None, dtype=dtype) for name in ("q_norm", "k_norm")}
        self.attn = Attention(dim, num_heads, dropout=attention_dropout, **more)
        self.dropout = Dropout(dropout)
        self.ls1 = None if layer_scale is None else LayerScale(dim, layer_scale, rng=None, dtype=dtype)
        self.drop_path1 = StochasticDepth(stochastic_depth) if stochastic_depth else None
        self.norm2 = LayerNorm(dim, eps=layer_norm_eps, rng=None, dtype=dtype)
        self.mlp = MLP(dim, mlp_dim, gelu=gelu, dropout=dropout, rng=None, dtype=dtype)
        self.ls2 = None if layer_scale is None else LayerScale(dim, layer_scale, rng=None, dtype=dtype)
        self.drop_path2 = StochasticDepth(stochastic_depth) if stochastic_depth else None
        if layer_scale is not None:
            self.attn.proj.lends = self.mlp.fc2.lends = False  # layer scale keeps what it is given
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> y (B, N, D)."""
        if self.positions is not None:
            x = self.positions.forward(x, ctx)
        branch = self.dropout.forward(self.attn.forward(self.norm1.forward(x, ctx), ctx), ctx)
        z = self._add("z", x, self._weigh(branch, 1, ctx), ctx)
        branch = self.mlp.forward(self.norm2.forward(z, ctx), ctx)
        return self._add("y", z, self._weigh(branch, 2, ctx), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, N, D)."""
        dbranch = self.mlp.backward(self._weigh_backward(dy, 2, ctx), ctx)
        dz = self._add("dz", dy, self.norm2.backward(dbranch, ctx), ctx)
        dbranch = self.attn.backward(self.dropout.backward(self._weigh_backward(dz, 1, ctx), ctx), ctx)
        dx = self._add("dx", dz, self.norm1.backward(dbranch, ctx), ctx)
        return dx if self.positions is None else self.positions.backward(dx, ctx)

    def _weigh(self, branch: Array, which: int, ctx: Context) -> Array:
        """The end of the first or second branch: layer scale, then stochastic depth."""
        for layer in self._ends[which - 1]:
            branch = layer.forward(branch, ctx)
        return branch

    def _weigh_backward(self, dbranch: Array, which: int, ctx: Context) -> Array:
        for layer in reversed(self._ends[which - 1]):
            dbranch = layer.backward(dbranch, ctx)
        return dbranch

    @property
    def _ends(self) -> list[list[Layer]]:
        both = (self.ls1, self.drop_path1), (self.ls2, self.drop_path2)
        return [[layer for layer in layers if layer is not None] for layers in both]

    def _add(self, name: str, a: Array, b: Array, ctx: Context) -> Array:
        # z and dz are this block's own affair; y and dx people look at, block by block.
        allocate = ctx.lend if name in ("z", "dz") else ctx.empty
        return array_module(a).add(a, b, out=allocate(self, name, a.shape, like=a))
