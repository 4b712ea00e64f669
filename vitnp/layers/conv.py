"""Convolution with standardised weights (Qiao et al., arXiv 1903.10520), without bias, as in BiT (arXiv 1912.11370).

Forward     ŵ = (w − mean) / s,   s = σ + ε      over all that one output channel reads; ε is outside the root
            y = columns @ ŵ
            A row of the columns has the k k C numbers that one output reads, in (row, column, channel) order, with
            zeros where its window hangs over the edge of the image.

Backward    dŵ = columnsᵀ dy, and dcolumns = dy ŵᵀ, each number of which goes back to the place that it was read from.
            A change of w moves ŵ directly, through the mean, and through the standard deviation σ, whose gradient by
            the i-th of n deviations c is c_i / (n σ). Collecting the three, as for layer norm,
                dw = (dŵ − mean(dŵ) − ŵ · mean(dŵ ŵ) · s / σ) / s
            Where all w are equal, ŵ is c / ε to the first order, and the last term is 0 as ŵ is.

Shapes      x, dx (B, H, W, C)    w (k, k, C, C_out)    y, dy (B, ⌈H/stride⌉, ⌈W/stride⌉, C_out)    σ (C_out,)
Saves       x, ŵ, σ               not the columns, k k times as large as x: backward makes them again
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import lecun_normal
from vitnp.layer import Layer
from vitnp.layers.windows import pad, padded, taps

EPS = 1e-5  # the original's
COLUMNS = 1 << 21  # numbers in the columns at a time, or those of one image: 8 MB of float32


class StdConv(Layer):
    """A convolution of `kernel` x `kernel` places whose weights are standardised in every pass."""

    weight: Array
    reads_input = False  # what a pass is given, whose gradient a context may do without; true in a root

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        rng: int | np.random.Generator | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.gathers = kernel > 1 or stride > 1  # else the columns are the image, place by place
        start = lecun_normal(kernel * kernel * c_in)
        self.declare("weight", (kernel, kernel, c_in, c_out), dtype, start, decay=True)
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, H, W, C) -> y (B, ⌈H/stride⌉, ⌈W/stride⌉, C_out)."""
        w_hat, sigma = self._standardised(ctx)
        h, w = (-(-size // self.stride) for size in x.shape[1:3])
        y = ctx.lend(self, "y", (len(x), h, w, w_hat.shape[1]), like=x)
        for part in self._parts(y):
            array_module(x).matmul(self._columns(x[part], ctx), w_hat, out=y[part].reshape(-1, w_hat.shape[1]))
        ctx.save(self, x=x, w_hat=w_hat, sigma=sigma)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, ⌈H/stride⌉, ⌈W/stride⌉, C_out) -> dx (B, H, W, C), or None in a context that does without."""
        xp, saved = array_module(dy), ctx.saved(self)
        x, w_hat, dw_hat = saved.x, saved.w_hat, xp.zeros_like(saved.w_hat)
        dx = None if self.reads_input and not ctx.input_grad else ctx.lend(self, "dx", x.shape, like=dy)
        for part in self._parts(dy):
            columns, drows = self._columns(x[part], ctx), dy[part].reshape(-1, w_hat.shape[1])
            dw_hat += xp.matmul(columns.T, drows, out=ctx.scratch("product", w_hat.shape, like=dy))
            if dx is not None:
                self._put_back(drows, w_hat, dx[part], ctx)
        s, divisor = saved.sigma + EPS, xp.where(saved.sigma.real > 0, saved.sigma, 1)
        dw = (dw_hat - dw_hat.mean(0) - w_hat * (dw_hat * w_hat).mean(0) * (s / divisor)) / s
        ctx.add_grad(self, weight=dw.reshape(self.weight.shape))
        return dx

    def _standardised(self, ctx: Context) -> tuple[Array, Array]:
        """Return ŵ (k k C, C_out) and σ (C_out,)."""
        xp, w = array_module(self.weight), self.weight.reshape(-1, self.weight.shape[-1])
        w_hat = xp.subtract(w, w.mean(0), out=ctx.empty(self, "w_hat", w.shape, like=w))
        sigma = xp.sqrt((w_hat * w_hat).mean(0))
        w_hat /= sigma + EPS
        return w_hat, sigma

    def _parts(self, y: Array) -> Iterator[slice]:
        """Yield as many images at a time as the columns have room for."""
        images = max(1, COLUMNS // (y[0, :, :, 0].size * self.weight[..., 0].size))
        yield from (slice(first, first + images) for first in range(0, len(y), images))

    def _columns(self, x: Array, ctx: Context) -> Array:
        """Images (B, H, W, C) -> a row for each output, (B h w, k k C)."""
        if not self.gathers:
            return x.reshape(-1, x.shape[3])
        places = list(taps(pad(x, self.kernel, self.stride, 0, ctx), self.kernel, self.stride))
        columns = ctx.scratch("columns", (*places[0].shape[:3], len(places), x.shape[3]), like=x)
        for i, place in enumerate(places):
            columns[..., i, :] = place
        return columns.reshape(-1, len(places) * x.shape[3])

    def _put_back(self, drows: Array, w_hat: Array, dx: Array, ctx: Context) -> None:
        """Write into dx (B, H, W, C) the sum of what stands in dcolumns = drows @ ŵᵀ for each of its places."""
        xp = array_module(dx)
        if not self.gathers:
            xp.matmul(drows, w_hat.T, out=dx.reshape(len(drows), -1))
            return
        dcolumns = ctx.scratch("columns", (len(drows), len(w_hat)), like=dx)
        by_place = xp.matmul(drows, w_hat.T, out=dcolumns).reshape(len(dx), -1, self.kernel**2, dx.shape[3])
        shape, inside = padded(dx.shape, self.kernel, self.stride)
        around = ctx.scratch("padded", shape, like=dx)
        around.fill(0)
        for i, place in enumerate(taps(around, self.kernel, self.stride)):
            place += by_place[:, :, i].reshape(place.shape)
        dx[...] = around[inside]
