"""Mistakes in layer normalisation: beside vitnp/layers/layer_norm.py.

Right       x̂ = (x − mean) · rstd,   y = γ x̂ + β
            ĝ = γ dy,   dx = rstd · (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂)),   dγ = Σ dy x̂,   dβ = Σ dy
"""

from __future__ import annotations

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layers import LayerNorm
from vitnp.layers.layer_norm import layer_norm_backward
from vitnp.museum.exhibit import Exhibit

STEP = 0.1  # of the optimizer that sits in the backward of UpdatedGamma


class ConstantStatistics(LayerNorm):
    """Layer norm whose backward takes mean and variance for constants."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., D) -> dx (..., D)."""
        super().backward(dy, ctx)  # dgamma and dbeta are right
        return ctx.saved(self).rstd * (self.gamma * dy)


class ConstantVariance(LayerNorm):
    """Layer norm whose backward takes the variance for a constant."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., D) -> dx (..., D)."""
        super().backward(dy, ctx)  # dgamma and dbeta are right
        dx_hat = self.gamma * dy
        return ctx.saved(self).rstd * (dx_hat - dx_hat.mean(-1, keepdims=True))


class UpdatedGamma(LayerNorm):
    """Layer norm whose backward updates γ first, and uses what has come out of it."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., D) -> dx (..., D)."""
        super().backward(dy, ctx)  # dgamma and dbeta are right
        saved, dim = ctx.saved(self), dy.shape[-1]
        dgamma = (dy * saved.x_hat).reshape(-1, dim).sum(0)
        return layer_norm_backward(dy, self.gamma - STEP * dgamma, saved.x_hat, saved.rstd)[0]


class UnbiasedVariance(LayerNorm):
    """Layer norm that divides the sum of squares by D − 1, forward and backward."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (..., D) -> y (..., D)."""
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).sum(-1, keepdims=True) / (x.shape[-1] - 1)
        rstd = 1 / array_module(x).sqrt(variance + self.eps)
        ctx.save(self, x_hat=centred * rstd, rstd=rstd)
        return self.gamma * (centred * rstd) + self.beta

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., D) -> dx (..., D)."""
        super().backward(dy, ctx)  # dgamma and dbeta are right
        saved, dx_hat = ctx.saved(self), self.gamma * dy
        through_variance = (dx_hat * saved.x_hat).sum(-1, keepdims=True) / (dy.shape[-1] - 1)
        return saved.rstd * (dx_hat - dx_hat.mean(-1, keepdims=True) - saved.x_hat * through_variance)


EXHIBITS = (
    Exhibit(
        name="layer-norm-constant-statistics",
        title="Layer norm's backward lacks both terms of the means",
        wrong="dx = rstd · ĝ",
        why="Mean and variance are taken for constants, as they are in batch norm at evaluation.",
        right="dx = rstd · (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂))",
        first="blocks.1.mlp.fc2",
        layer=ConstantStatistics,
        replaces=LayerNorm,
    ),
    Exhibit(
        name="layer-norm-constant-variance",
        title="Layer norm's backward lacks the term of the variance",
        wrong="dx = rstd · (ĝ − mean(ĝ))",
        why="The mean is seen to depend on x, the variance is not.",
        right="dx = rstd · (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂))",
        first="blocks.1.mlp.fc2",
        layer=ConstantVariance,
        replaces=LayerNorm,
    ),
    Exhibit(
        name="layer-norm-updated-gamma",
        title="The gain is updated in backward, before it is used there",
        wrong="γ ← γ − lr dγ,   then ĝ = γ dy",
        why="An optimizer within the layer, one line too early. Weights fare the same: W is updated, then dx = dy Wᵀ.",
        right="ĝ = γ dy with the γ of forward; no parameter moves until backward has ended",
        first="blocks.1.mlp.fc2",
        layer=UpdatedGamma,
        replaces=LayerNorm,
    ),
    Exhibit(
        name="layer-norm-unbiased-variance",
        title="Layer norm divides by D − 1, forward and backward",
        wrong="var = Σ (x − mean)² / (D − 1), and its right derivative",
        why="It is the default of other libraries' `std`. γ makes up for it, so only another network's weights tell.",
        right="var = Σ (x − mean)² / D",
        kind="function",
        layer=UnbiasedVariance,
        replaces=LayerNorm,
    ),
)
