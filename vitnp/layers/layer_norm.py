"""Layer normalisation over the last axis (Ba et al., arXiv 1607.06450).

Forward     x̂ = (x − mean) · rstd,   rstd = 1/√(var + ε),   y = γ x̂ + β
            var is the biased variance, mean((x − mean)²): the deviations are formed first, for E[x²] − E[x]² loses
            every digit where the mean is large.

Backward    Let ĝ = γ dy. Changing one x_j moves x̂ three ways: directly, through the mean (every x̂_i falls by rstd/D)
            and through the variance (every x̂_i falls by rstd · x̂_i x̂_j / D). Collecting the three,
                dx = rstd · (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂))
            γ and β are shared by every row:   dγ = Σ dy x̂,   dβ = Σ dy

Shapes      x, y, dx, dy (..., D)    γ, β (D,)    rstd (..., 1)
Saves       x̂, rstd                  x itself is not needed
"""

from __future__ import annotations

from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import constant
from vitnp.kernels import tuned
from vitnp.layer import Layer


@tuned
def layer_norm(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return y, x_hat and rstd."""
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / array_module(x).sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    x_hat = centred * rstd
    return gamma * x_hat + beta, x_hat, rstd


@tuned
def layer_norm_backward(dy: Array, gamma: Array, x_hat: Array, rstd: Array) -> tuple[Array, Array]:
    """Return dx, and dy * x_hat, whose sum over the rows is dgamma."""
    dx_hat = gamma * dy
    dx = rstd * (dx_hat - dx_hat.mean(-1, keepdims=True) - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))
    return dx, dy * x_hat


class LayerNorm(Layer):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, for each row of `dim` numbers alone."""

    gamma: Array
    beta: Array

    def __init__(self, dim: int, *, eps: float = 1e-6, rng: int | None = 0, dtype: DTypeLike = "float32") -> None:
        super().__init__()
        self.eps = eps
        self.declare("gamma", (dim,), dtype, constant(1))
        self.declare("beta", (dim,), dtype, constant(0))
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (..., D) -> y (..., D)."""
        y, x_hat, rstd = layer_norm(x, self.gamma, self.beta, self.eps, memory=ctx.memory(self))
        ctx.save(self, x_hat=x_hat, rstd=rstd)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., D) -> dx (..., D)."""
        saved, dim = ctx.saved(self), dy.shape[-1]
        dx, dgamma_rows = layer_norm_backward(dy, self.gamma, saved.x_hat, saved.rstd, memory=ctx.memory(self))
        ctx.add_row_sum(self, "gamma", dgamma_rows.reshape(-1, dim))
        ctx.add_row_sum(self, "beta", dy.reshape(-1, dim))
        return dx
