"""Patch corruption: what masked patch prediction hides from the network (Dosovitskiy et al., appendix B.1.2).

Half of an image's n patch embeddings, ⌊n/2⌋, are corrupted: of those 80 % become a learned vector, [mask], 10 % the
embedding of another patch of the same image, and 10 % stay as they are. The network has to say what was there.

Forward     y = S x + m ⊗ mask      each row i of S has a single 1, where y_i comes from, or none where m_i = 1:
                S_ii = 1 kept,   S_ij = 1 replaced by patch j,   S_i = 0 and m_i = 1 masked

Backward    y is linear in x and in mask, hence   dx = Sᵀ dy,   dmask = Σ m_i dy_i over all patches of all images.
            A patch that stands elsewhere too, has the gradients of both places; one that is masked, of none.

Which patches they are is a function of the context's seed and step, of this layer, and of the row in the global batch,
as a dropout mask is. They are drawn in every mode: predicting patches makes no sense without.

Shapes      x, y, dx, dy (B, n, D)    S (B, n, n)    m (B, n)    mask (1, 1, D)
Saves       S, m
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.initializers import normal
from vitnp.layer import Layer

MASKED, REPLACED = 0.8, 0.1  # shares of the corrupted patches; the others are kept


class PatchCorruption(Layer):
    """Corrupt half of the patch embeddings; there must be two at least, or none could be replaced by another."""

    mask_token: Array
    inline = True  # its one parameter goes by the name `mask_token`

    def __init__(
        self, patches: int, dim: int, *, rng: int | np.random.Generator | None = 0, dtype: DTypeLike = "float32"
    ) -> None:
        super().__init__()
        if patches < 2:
            raise ValueError(f"there is {patches} patch in an image; expected 2 or more, of which one can be hidden")
        self.patches, self.corrupted = patches, patches // 2
        self.declare("mask_token", (1, 1, dim), dtype, normal(0.02))
        self.built(rng)

    def places(self, samples: int, ctx: Context, like: Array) -> Array:
        """Return which patches of the samples from `ctx.first_row` on are corrupted, integers (samples, ⌊n/2⌋)."""
        return self._bits(samples, ctx, like)[0].argsort(-1)[:, : self.corrupted]

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, n, D) -> y (B, n, D)."""
        (B, n, _), xp = x.shape, array_module(x)
        order, kind, step = self._bits(B, ctx, x)
        corrupted = order.argsort(-1).argsort(-1) < self.corrupted  # the ranks that `places` takes
        masked = corrupted & (kind < int(MASKED * 2**32))
        replaced = corrupted & (kind < int((MASKED + REPLACED) * 2**32))  # by [mask], where it is masked
        own = xp.arange(n)
        source = xp.where(replaced, (own + 1 + step % (n - 1)) % n, own)  # 1 to n − 1 further on: never itself
        S, m = ctx.empty(self, "S", (B, n, n), like=x), ctx.empty(self, "m", (B, n), like=x)
        S[...] = (source[:, :, None] == own) & ~masked[:, :, None]
        m[...] = masked
        ctx.save(self, S=S, m=m)
        y = xp.matmul(S, x, out=ctx.empty(self, "y", x.shape, like=x))
        y += m[:, :, None] * self.mask_token
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, n, D) -> dx (B, n, D)."""
        s = ctx.saved(self)
        ctx.add_product(self, "mask_token", s.m.reshape(1, -1), dy.reshape(-1, dy.shape[-1]))
        dx = ctx.empty(self, "dx", dy.shape, like=dy)
        return array_module(dy).matmul(s.S.swapaxes(-1, -2), dy, out=dx)

    def _bits(self, samples: int, ctx: Context, like: Array) -> Array:
        """Random bits of each patch: for the order in which they are corrupted, for how, and for what takes its place.

        (3, samples, n); the same whenever they are drawn in a pass.
        """
        bits = ctx.random_bits(self, (samples, 3, self.patches), like=like)
        return bits.swapaxes(0, 1)
