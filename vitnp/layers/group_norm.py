"""Group normalisation (Wu and He, arXiv 1803.08494): an image's channels in groups, each normalised over all places.

Forward     x̂ = (x − mean) · rstd,   rstd = 1/√(var + ε),   y = γ x̂ + β
            mean and var are those of the C/G channels of a group at all H W places of one image.

Backward    As layer norm's, with the mean taken over a group. Let ĝ = γ dy:
                dx = rstd · (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂))
            γ and β are of one channel, so both means and both gradients come from the same sums over places,
                a = Σ dy,   b = Σ dy x̂       (B, C)
                mean(ĝ) = mean of γ a over the group's channels / H W,   mean(ĝ x̂) = that of γ b
                dγ = Σ_images b,   dβ = Σ_images a

Shapes      x, y, dx, dy (B, H, W, C)    γ, β (C,)    rstd (B, 1, C), the same for the channels of a group
Saves       x̂ (B, H W, C), rstd         x itself is not needed
"""

from __future__ import annotations

from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import constant
from vitnp.layer import Layer


class GroupNorm(Layer):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, in `groups` groups of neighbouring channels.

    `gamma` is what gamma starts at. Raises ValueError where the groups do not divide the channels.
    """

    gamma: Array
    beta: Array

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        *,
        eps: float = 1e-6,
        gamma: float = 1.0,
        rng: int | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"{groups} groups do not divide {channels} channels: use a multiple of {groups} channels")
        self.groups, self.eps = groups, eps
        self.declare("gamma", (channels,), dtype, constant(gamma))
        self.declare("beta", (channels,), dtype, constant(0))
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, H, W, C) -> y (B, H, W, C)."""
        xp, places = array_module(x), x.reshape(len(x), -1, x.shape[-1])
        x_hat, y = ctx.empty(self, "x_hat", places.shape, like=x), ctx.lend(self, "y", places.shape, like=x)
        xp.subtract(places, self._group_mean(_sum(places), places), out=x_hat)
        square = xp.multiply(x_hat, x_hat, out=y)  # y's memory, until y itself is there
        rstd = 1 / xp.sqrt(self._group_mean(_sum(square), places) + self.eps)
        x_hat *= rstd
        xp.multiply(x_hat, self.gamma, out=y)
        y += self.beta
        ctx.save(self, x_hat=x_hat, rstd=rstd)
        return y.reshape(x.shape)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, H, W, C) -> dx (B, H, W, C)."""
        xp, x_hat, rstd = array_module(dy), ctx.saved(self).x_hat, ctx.saved(self).rstd
        dplaces, dx = dy.reshape(x_hat.shape), ctx.lend(self, "dx", x_hat.shape, like=dy)
        a, b = _sum(dplaces), _sum(xp.multiply(dplaces, x_hat, out=dx))  # dx's memory, until dx itself is there
        ctx.add_grad(self, gamma=b.sum((0, 1)), beta=a.sum((0, 1)))
        mean_g, mean_gx = self._group_mean(self.gamma * a, dplaces), self._group_mean(self.gamma * b, dplaces)
        # rstd · (ĝ − mean(ĝ) − x̂ · mean(ĝ x̂)), the large arrays once each
        xp.multiply(x_hat, -rstd * mean_gx, out=dx)
        dx -= rstd * mean_g
        dx += xp.multiply(dplaces, self.gamma * rstd, out=ctx.scratch("product", dx.shape, like=dx))
        return dx.reshape(dy.shape)

    def _group_mean(self, sums: Array, places: Array) -> Array:
        """Sums over places (B, 1, C) -> the mean of each channel's group, (B, 1, C)."""
        B, n, C = places.shape
        members = array_module(sums).ones(C // self.groups, sums.dtype)
        mean = sums.reshape(B, 1, self.groups, -1).sum(-1, keepdims=True) / (n * len(members))
        return (mean * members).reshape(B, 1, C)


def _sum(places: Array) -> Array:
    """(B, n, C) -> (B, 1, C): as a product with ones, which is faster and rounds less than sum(1)."""
    return array_module(places).ones((1, places.shape[1]), places.dtype) @ places
