"""Classifier head: final norm, one vector from all tokens, logits (Dosovitskiy et al., equation 4, section 3.1, D.3).

Forward     1  pooled = norm(x)[:, 0]            pool="token": the class token
                      = mean over n of norm(x)   pool="mean", without the registers, which come last
                      = norm(mean over n of x)   pool="mean-norm", without them, too
            2  r      = tanh(pooled W_r + b_r) only with representation_size, as in pre-training
            3  y      = r W + b

Backward    1  the class token alone reached the output, so dnorm[:, 0] = dpooled and every other token has 0;
               in a mean each of N tokens had the share 1/N, so each has 1/N of the mean's gradient: that is dpooled,
               or dnorm where the norm comes after the mean; registers have 0
            2, 3  `Tanh` and `Linear`

Shapes      x, dx (B, N, D)    pooled (B, D)    r (B, R)    y (B, classes)
Saves       x, the last block's tokens
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.initializers import constant, lecun_normal
from vitnp.layer import Layer
from vitnp.layers.layer_norm import LayerNorm
from vitnp.layers.linear import Linear
from vitnp.layers.tanh import Tanh


class ClassifierHead(Layer):
    """Tokens to logits; the last linear layer starts at zero, so that at first every class is equally likely."""

    inline = True  # as everywhere, the names are `norm.gamma`, `pre_logits.weight`, `head.weight`

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        pool: str = "token",
        representation_size: int | None = None,
        registers: int = 0,
        layer_norm_eps: float = 1e-6,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        if pool not in ("token", "mean", "mean-norm"):
            raise ValueError(f'pool is {pool!r}; choose "token", "mean" or "mean-norm"')
        self.pool, self.registers = pool, registers
        self.norm = LayerNorm(dim, eps=layer_norm_eps, rng=None, dtype=dtype)
        self.pre_logits: Linear | None = None
        if representation_size is not None:
            self.pre_logits = Linear(dim, representation_size, weight_init=lecun_normal(dim), rng=None, dtype=dtype)
            self.tanh = Tanh()
        self.head = Linear(representation_size or dim, num_classes, weight_init=constant(0), rng=None, dtype=dtype)
        self.built(rng)

    def pooled(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> (B, D): the class token, or the mean of all tokens, normalised."""
        ctx.save(self, tokens=x)
        x = x[:, : x.shape[1] - self.registers]
        if self.pool == "mean":
            return self.norm.forward(x, ctx).mean(1)
        # The norm treats each token alone, so the class token needs no other's.
        return self.norm.forward(x[:, 0] if self.pool == "token" else x.mean(1), ctx)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> logits (B, classes)."""
        pooled = self.pooled(x, ctx)
        if self.pre_logits is not None:
            pooled = self.tanh.forward(self.pre_logits.forward(pooled, ctx), ctx)
        return self.head.forward(pooled, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dlogits (B, classes) -> dx (B, N, D)."""
        tokens = ctx.saved(self).tokens
        dpooled = self.head.backward(dy, ctx)
        if self.pre_logits is not None:
            dpooled = self.pre_logits.backward(self.tanh.backward(dpooled, ctx), ctx)
        dx = ctx.empty(self, "dx", tokens.shape, like=tokens)
        if self.pool == "token":
            dx.fill(0)
            dx[:, 0] = self.norm.backward(dpooled, ctx)
            return dx
        stop = tokens.shape[1] - self.registers
        if self.pool == "mean-norm":
            dx[:, :stop], dx[:, stop:] = self.norm.backward(dpooled, ctx)[:, None] / stop, 0
            return dx
        dx[:, :stop] = dpooled[:, None] / stop
        if not self.registers:
            return self.norm.backward(dx, ctx)
        dx[:, :stop], dx[:, stop:] = self.norm.backward(dx[:, :stop], ctx), 0
        return dx
