"""Softmax over the last axis.

Forward     p_i = e^(x_i − m) / Σ_j e^(x_j − m),   m = max x of the row
            The shift by m cancels in the quotient, so it changes nothing but the range: e^0 = 1 is the largest term.

Backward    ∂p_i/∂x_j = p_i (δ_ij − p_j): the Jacobian of a row is diag(p) − p pᵀ. It is symmetric, and applying it
            to dp needs no matrix,
                dx = p · (dp − Σ_j dp_j p_j)

Shapes      x, p, dx, dp (..., N)
Saves       p
"""

from __future__ import annotations

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.kernels import tuned
from vitnp.layer import Layer


@tuned
def softmax(x: Array) -> Array:
    """Return p."""
    # The maximum is a constant shift: of a complex number, as the gradient check has it, only the real part counts.
    p = array_module(x).exp(x - x.real.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@tuned
def softmax_backward(dp: Array, p: Array) -> Array:
    """Return dx."""
    return p * (dp - (dp * p).sum(-1, keepdims=True))


class Softmax(Layer):
    """Rows of scores -> rows of probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.built(rng=None)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (..., N) -> p (..., N), each row at least 0 and of sum 1."""
        p = softmax(x, memory=ctx.memory(self))
        ctx.save(self, p=p)
        return p

    def backward(self, dp: Array, ctx: Context) -> Array:
        """dp (..., N) -> dx (..., N)."""
        return softmax_backward(dp, ctx.saved(self).p, memory=ctx.memory(self))
