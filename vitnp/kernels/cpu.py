"""Kernels for NumPy arrays of float32 and float64.

Two things make them faster than the plain formulas: results go into memory that is used again (a fresh large array
costs a page fault for every 4 KB), and chains of elementwise operations run over blocks that stay in the cache.
Row sums are products with a vector, which BLAS does faster than a reduction over a short axis.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitnp.context import Memory
from vitnp.layers.gelu import CUBIC, SQRT_2_OVER_PI
from vitnp.layers.gelu import gelu_erf as plain_gelu_erf

BLOCK = 1 << 17  # elements, 512 KB of float32: small enough for the cache of a core, and few calls for two threads
SATURATED = 100.0  # beyond it GELU is x or 0, and its slope 1 or 0, to the last digit
LARGE = 1e20  # of a sum of squares: far below it, no x overflows on the way to GELU's slope
OFF_CENTRE = 16.0  # a mean so many deviations from zero costs four bits when it is subtracted
SAFE = 1e15  # between 1/SAFE and SAFE, a row's sum has neither overflowed nor lost a term that counts


def gelu_tanh(x: np.ndarray, *, memory: Memory) -> tuple[np.ndarray, np.ndarray | None]:
    """See vitnp/layers/gelu.py. With h = ½ (1 + t), 1 − t² = 4 h (1 − h): the slope is h + 2 y (1 − h) u'.

    Where nothing is recorded there will be no backward, and no slope is computed.
    """
    y, slope = memory.empty("y", x.shape, like=x), _recorded("slope", x, memory)
    for x_, y_, slope_ in _blocks(x, y, slope if slope is not None else y):
        h = memory.scratch("h", x_.shape, like=x)
        within = x_ if x_ @ x_ < LARGE else np.clip(x_, -SATURATED, SATURATED)
        np.multiply(within, within, out=slope_)
        np.multiply(slope_, CUBIC * SQRT_2_OVER_PI, out=h)
        h += SQRT_2_OVER_PI
        h *= within
        np.tanh(h, out=h)
        h += 1
        h *= 0.5
        np.multiply(within, h, out=y_)
        if slope is not None:
            slope_ *= 6 * CUBIC * SQRT_2_OVER_PI
            slope_ += 2 * SQRT_2_OVER_PI  # 2 u'
            slope_ *= y_
            np.subtract(1, h, out=(rest := memory.scratch("1 - h", x_.shape, like=x)))
            slope_ *= rest
            slope_ += h
        if within is not x_:
            np.multiply(x_, h, out=y_)
    return y, slope


def gelu_erf(x: np.ndarray, *, memory: Memory) -> tuple[np.ndarray, np.ndarray | None]:
    """See vitnp/layers/gelu.py: the plain formula, block by block."""
    y, slope = memory.empty("y", x.shape, like=x), _recorded("slope", x, memory)
    for x_, y_, slope_ in _blocks(x, y, slope if slope is not None else y):
        value, slope_[...] = plain_gelu_erf.__wrapped__(x_)
        y_[...] = value  # last, for slope_ is y_ where nothing is recorded
    return y, slope


def _recorded(name: str, x: np.ndarray, memory: Memory) -> np.ndarray | None:
    """Memory for what only a backward reads, if there can be one."""
    return memory.empty(name, x.shape, like=x) if memory.ctx.record else None


def layer_norm(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, *, memory: Memory
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See vitnp/layers/layer_norm.py."""
    dim = x.shape[-1]
    y, x_hat = memory.empty("y", x.shape, like=x), memory.empty("x_hat", x.shape, like=x)
    rstd = memory.empty("rstd", (*x.shape[:-1], 1), like=x)
    mean_weights = np.full(dim, 1 / dim, x.dtype)
    for x_, y_, x_hat_, rstd_ in _row_blocks(dim, x, y, x_hat, rstd):
        mean = x_ @ mean_weights
        np.subtract(x_, mean[:, None], out=x_hat_)
        squares = np.vecdot(x_hat_, x_hat_)
        if not (dim * mean * mean <= OFF_CENTRE**2 * squares).all():  # then what rounding has left of it counts
            x_hat_ -= (x_hat_ @ mean_weights)[:, None]
            squares = np.vecdot(x_hat_, x_hat_)
        variance = squares / dim
        np.divide(1, np.sqrt(variance + eps)[:, None], out=rstd_)
        x_hat_ *= rstd_
        np.multiply(x_hat_, gamma, out=y_)
        y_ += beta
    return y, x_hat, rstd


def layer_norm_backward(
    dy: np.ndarray, gamma: np.ndarray, x_hat: np.ndarray, rstd: np.ndarray, *, memory: Memory
) -> tuple[np.ndarray, np.ndarray]:
    """See vitnp/layers/layer_norm.py. With r = dy x̂, mean(ĝ) = dy · γ/D and mean(ĝ x̂) = r · γ/D."""
    dim = dy.shape[-1]
    dx, dgamma_rows = memory.lend("dx", dy.shape, like=dy), memory.lend("dgamma_rows", dy.shape, like=dy)
    mean_weights = gamma / dim
    for dy_, x_hat_, rstd_, dx_, rows_ in _row_blocks(dim, dy, x_hat, rstd, dx, dgamma_rows):
        np.multiply(dy_, x_hat_, out=rows_)
        np.multiply(dy_, gamma, out=dx_)
        dx_ -= (dy_ @ mean_weights)[:, None]
        term = memory.scratch("term", dx_.shape, like=dy)
        dx_ -= np.multiply(x_hat_, (rows_ @ mean_weights)[:, None], out=term)
        dx_ *= rstd_
    return dx, dgamma_rows


def product_transposed(a: np.ndarray, b: np.ndarray, scale: float = 1.0, *, memory: Memory) -> np.ndarray:
    """See vitnp/layers/attention.py. BLAS multiplies many small matrices twice as fast if none is transposed.

    So b is turned into other memory first, which is when the scale costs nothing. The result of the last call of the
    same layer is lost: attention needs its scores no more when it forms the gradient of its weights.
    """
    (*many, N, _), (M, K) = a.shape, b.shape[-2:]
    turned = memory.scratch("turned", (*many, K, M), like=b)
    np.multiply(b.swapaxes(-1, -2), scale, out=turned)
    product: np.ndarray = memory.lend("product", (*many, N, M), like=a)
    return np.matmul(a, turned, out=product)


def softmax(x: np.ndarray, *, memory: Memory) -> np.ndarray:
    """See vitnp/layers/softmax.py."""
    p: np.ndarray = memory.empty("p", x.shape, like=x)
    ones = np.ones(x.shape[-1], x.dtype)
    for x_, p_ in _row_blocks(x.shape[-1], x, p):
        # The shift by a row's maximum only keeps e^x in range. Scores are seldom so large: try without.
        with np.errstate(over="ignore"):
            np.exp(x_, out=p_)
            sums = p_ @ ones
        if not (sums.min() > 1 / SAFE and sums.max() < SAFE):
            np.subtract(x_, x_.max(-1, keepdims=True), out=p_)
            np.exp(p_, out=p_)
            sums = p_ @ ones
        p_ *= (1 / sums)[:, None]
    return p


def softmax_backward(dp: np.ndarray, p: np.ndarray, *, memory: Memory) -> np.ndarray:
    """See vitnp/layers/softmax.py."""
    dx: np.ndarray = memory.lend("dx", dp.shape, like=dp)
    ones = np.ones(dp.shape[-1], dp.dtype)
    for dp_, p_, dx_ in _row_blocks(dp.shape[-1], dp, p, dx):
        np.multiply(dp_, p_, out=dx_)
        sums = (dx_ @ ones)[:, None]
        dx_ -= np.multiply(p_, sums, out=memory.scratch("term", p_.shape, like=dp))
    return dx


def _blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the arrays, all of one shape, in pieces of BLOCK elements."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(array[start : start + BLOCK] for array in flat)


def _row_blocks(dim: int, *arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the arrays, seen as matrices of the same number of rows, in pieces of about BLOCK / dim rows."""
    matrices = [array.reshape(-1, array.shape[-1]) for array in arrays]
    rows = max(1, BLOCK // dim)
    for start in range(0, len(matrices[0]), rows):
        yield tuple(matrix[start : start + rows] for matrix in matrices)
