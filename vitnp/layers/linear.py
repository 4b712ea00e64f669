"""Linear: the same affine map for every row.

Forward     y = x W + b

Backward    Small changes δx, δW, δb change y by δx W + x δW + δb, and so the loss by Σ dy · (δx W + x δW + δb), summed
            over all entries. What stands beside each change is its gradient:
                dx = dy Wᵀ,   dW = xᵀ dy,   db = Σ dy over the rows

Shapes      x, dx (..., d_in)    y, dy (..., d_out)    W (d_in, d_out)    b (d_out,)
Saves       x, seen as a matrix of rows
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import constant, xavier_uniform
from vitnp.layer import Initializer, Layer


class Linear(Layer):
    """y = x @ weight + bias.

    Args:
        d_in, d_out: widths of the input and of the output.
        weight_init, bias_init: how the parameters start: Xavier-uniform and zero unless said.
        rng: seed or generator; None leaves the parameters unset.
    """

    weight: Array
    bias: Array

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.declare("weight", (d_in, d_out), dtype, weight_init or xavier_uniform(d_in, d_out), decay=True)
        self.declare("bias", (d_out,), dtype, bias_init or constant(0))
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (..., d_in) -> y (..., d_out)."""
        rows = x.reshape(-1, x.shape[-1])  # one large product, whatever the axes of x
        y = (ctx.lend if self.lends else ctx.empty)(self, "y", (len(rows), len(self.bias)), like=rows)
        array_module(x).matmul(rows, self.weight, out=y)
        y += self.bias
        ctx.save(self, rows=rows)
        return y.reshape(*x.shape[:-1], -1)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (..., d_out) -> dx (..., d_in)."""
        drows = dy.reshape(-1, dy.shape[-1])
        self.add_grads(drows, ctx)
        dx = ctx.lend(self, "dx", (len(drows), len(self.weight)), like=drows)
        array_module(dy).matmul(drows, self.weight.T, out=dx)
        return dx.reshape(*dy.shape[:-1], -1)

    def add_grads(self, drows: Array, ctx: Context) -> None:
        """Add dW and db, from dy as a matrix of rows: all of backward but dx."""
        rows = ctx.saved(self).rows
        ctx.add_product(self, "weight", rows.T, drows)
        ctx.add_row_sum(self, "bias", drows)
