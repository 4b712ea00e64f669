"""Multi-head self-attention (Vaswani et al., arXiv 1706.03762, section 3.2; Dosovitskiy et al., appendix A).

Forward     1  q, k, v = x W_qkv + b                        H heads of K = D/H columns each
            2  scores  = q kᵀ / √K                          with relative positions (q kᵀ + their bias) / √K
            3  probs   = softmax(scores)                    each query's weights over all tokens
            4  heads   = dropout(probs) v
            5  y       = [heads side by side] W_proj + b
            Norms of q and k come before 2, so that no score grows without bound (Dehghani et al., arXiv 2302.05442).

Backward    the same five, last line first. Where a product appears, as in scores = s · q kᵀ, each factor's gradient is
            the product's gradient times the other factor:  dq = s · dscores k,   dk = s · dscoresᵀ q

Shapes      x, y, dx, dy (B, N, D)    q, k, v, heads (B, H, N, K)    scores, probs (B, H, N, N)
Saves       q, k (after their norms), v, probs (after softmax), weights (after dropout)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import xavier_uniform
from vitnp.kernels import tuned
from vitnp.layer import Layer
from vitnp.layers.dropout import Dropout
from vitnp.layers.layer_norm import LayerNorm
from vitnp.layers.linear import Linear
from vitnp.layers.raster_positions import RasterPositions
from vitnp.layers.relative_positions import RelativePositions
from vitnp.layers.softmax import Softmax


@tuned
def product_transposed(a: Array, b: Array, scale: float = 1.0) -> Array:
    """Return a bᵀ · scale of the last two axes: (..., N, K) and (..., M, K) -> (..., N, M)."""
    return a @ b.swapaxes(-1, -2) * scale


class Attention(Layer):
    """Self-attention over N tokens with `num_heads` heads; `dropout` applies to the attention weights.

    `relative` adds offsets between patches to the scores; `q_norm` and `k_norm`, of width K, serve all heads' q and k.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        relative: RelativePositions | RasterPositions | None = None,
        q_norm: LayerNorm | None = None,
        k_norm: LayerNorm | None = None,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.scale = num_heads, 1 / math.sqrt(dim // num_heads)
        # The fused weight holds three D x D projections side by side, each initialised as one of its own.
        self.qkv = Linear(dim, 3 * dim, weight_init=xavier_uniform(dim, dim), rng=None, dtype=dtype)
        self.q_norm, self.k_norm, self.relative = q_norm, k_norm, relative
        self.softmax, self.dropout = Softmax(), Dropout(dropout)
        self.proj = Linear(dim, dim, rng=None, dtype=dtype)
        self.proj.lends = True  # the sum behind it keeps nothing
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> y (B, N, D)."""
        xp, (B, N, D) = array_module(x), x.shape
        q, k, v = self._split(self.qkv.forward(x, ctx))
        if self.q_norm and self.k_norm:
            q, k = self.q_norm.forward(q, ctx), self.k_norm.forward(k, ctx)
        scores = product_transposed(q, k, self.scale, memory=ctx.memory(self))
        if self.relative is not None:
            scores += self.relative.forward(q * self.scale, ctx)
        probs = self.softmax.forward(scores, ctx)
        weights = self.dropout.forward(probs, ctx)
        merged = ctx.empty(self, "heads", (B, N, D), like=x)
        xp.matmul(weights, v, out=self._by_head(merged))
        ctx.save(self, q=q, k=k, v=v, probs=probs, weights=weights)
        return self.proj.forward(merged, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, N, D)."""
        s, xp, (B, N, D) = ctx.saved(self), array_module(dy), dy.shape
        dqkv = ctx.lend(self, "dqkv", (B, N, 3 * D), like=dy)
        dq, dk, dv = self._split(dqkv)  # views: what is written to them is in its place
        # 5  y = merged heads @ W_proj + b
        dheads = self._by_head(self.proj.backward(dy, ctx))
        # 4  heads = weights @ v
        dweights = product_transposed(dheads, s.v, memory=ctx.memory(self))
        xp.matmul(s.weights.swapaxes(-1, -2), dheads, out=dv)
        # 3  probs = softmax(scores), weights = dropout(probs)
        dscores = self.softmax.backward(self.dropout.backward(dweights, ctx), ctx)
        # 2  scores = q @ kᵀ · scale
        xp.matmul(dscores, s.k, out=dq)
        if self.relative is not None:
            dq += self.relative.backward(dscores, ctx)
        xp.matmul(dscores.swapaxes(-1, -2), s.q, out=dk)
        dqkv[..., : 2 * D] *= self.scale
        if self.q_norm and self.k_norm:
            dq[...], dk[...] = self.q_norm.backward(dq, ctx), self.k_norm.backward(dk, ctx)
        # 1  qkv = x @ W_qkv + b
        return self.qkv.backward(dqkv, ctx)

    def _split(self, qkv: Array) -> tuple[Array, Array, Array]:
        """(B, N, 3 D) -> three views (B, H, N, K): the columns are all of q, then k, then v, head by head in each."""
        D = qkv.shape[-1] // 3
        return self._by_head(qkv[..., :D]), self._by_head(qkv[..., D : 2 * D]), self._by_head(qkv[..., 2 * D :])

    def _by_head(self, x: Array) -> Array:
        """(B, N, D) -> a view (B, H, N, K)."""
        B, N, D = x.shape
        return x.reshape(B, N, self.num_heads, D // self.num_heads).swapaxes(1, 2)
