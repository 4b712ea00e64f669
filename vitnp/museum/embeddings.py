"""Mistakes in the embeddings: beside vitnp/layers/embeddings.py and vitnp/layers/patch_embed.py.

Right       y = [cls; x_1; …; x_n] + pos,   dpos = Σ_b dy,   dcls = Σ_b dy[:, 0],   dx = dy without its first token
"""

from __future__ import annotations

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.layers import Embeddings, Linear, PatchEmbed
from vitnp.museum.exhibit import Exhibit


class WrongGradients(Embeddings):
    """Embeddings whose dx is right; each mistake below has gradients of cls and pos of its own."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, n, D)."""
        ctx.saved(self)
        self._add_class_token(dy[:, :1], ctx)
        self._add_positions(dy, ctx)
        return dy[:, self.first :]

    def _add_class_token(self, dcls: Array, ctx: Context) -> None:
        if self.first:
            ctx.add_grad(self, cls_token=dcls.sum(0, keepdims=True))

    def _add_positions(self, dy: Array, ctx: Context) -> None:
        ctx.add_grad(self, pos_embed=dy.sum(0, keepdims=True))


class ConstantClassToken(WrongGradients):
    """Embeddings whose class token gets no gradient."""

    def _add_class_token(self, dcls: Array, ctx: Context) -> None:
        pass


class ClassTokenTwice(WrongGradients):
    """Embeddings whose class token gets its gradient twice."""

    def _add_class_token(self, dcls: Array, ctx: Context) -> None:
        super()._add_class_token(dcls, ctx)
        super()._add_class_token(dcls, ctx)


class ConstantPositions(WrongGradients):
    """Embeddings whose positions get no gradient."""

    def _add_positions(self, dy: Array, ctx: Context) -> None:
        pass


class PositionsOfFirstSample(WrongGradients):
    """Embeddings whose positions get the gradient of one sample."""

    def _add_positions(self, dy: Array, ctx: Context) -> None:
        super()._add_positions(dy[:1], ctx)


class RawImage(PatchEmbed):
    """Patch embedding that multiplies dy by the image as it lies in memory, not by its patches."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """images (B, H, W, C) -> y (B, N, D)."""
        y = super().forward(x, ctx)
        if ctx.record:
            ctx.saved(self).rows = x.reshape(-1, len(self.weight))
        return y


class Scrambled(PatchEmbed):
    """Patch embedding that cuts the image by a reshape alone."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """images (B, H, W, C) -> y (B, N, D)."""
        return Linear.forward(self, x.reshape(len(x), -1, len(self.weight)), ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dimages (B, H, W, C)."""
        return Linear.backward(self, dy, ctx).reshape(len(dy), *self.image_size, -1)


EXHIBITS = (
    Exhibit(
        name="class-token-constant",
        title="The class token gets no gradient",
        wrong="dcls = 0",
        why="It stays at zero. The class token's position is learned and added to it, so nothing is lost but the name.",
        right="dcls = Σ_b dy[:, 0]",
        first="cls_token",
        layer=ConstantClassToken,
        replaces=Embeddings,
    ),
    Exhibit(
        name="class-token-twice",
        title="The class token gets its gradient twice",
        wrong="dcls = 2 Σ_b dy[:, 0]",
        why="Its backward is called by two layers that both own it. Adam divides a constant factor out again.",
        right="dcls = Σ_b dy[:, 0]",
        first="cls_token",
        layer=ClassTokenTwice,
        replaces=Embeddings,
    ),
    Exhibit(
        name="positions-constant",
        title="The position embedding gets no gradient",
        wrong="dpos = 0",
        why="Its backward exists, and is never called. Random positions that stay are positions, too.",
        right="dpos = Σ_b dy",
        first="pos_embed",
        layer=ConstantPositions,
        replaces=Embeddings,
    ),
    Exhibit(
        name="positions-of-first-sample",
        title="The gradient of the positions is not summed over the batch",
        wrong="dpos = dy[0]",
        why="Each sample has added the same positions; here they learn from one of them.",
        right="dpos = Σ_b dy",
        first="pos_embed",
        layer=PositionsOfFirstSample,
        replaces=Embeddings,
    ),
    Exhibit(
        name="patches-raw-image",
        title="The patch projection is given the image where its patches belong",
        wrong="dW = image.reshape(−1, P P C)ᵀ dy",
        why="A patch is not a run of memory: rows of several patches are mixed up. The shape is right.",
        right="dW = patchesᵀ dy",
        first="patch_embed.weight",
        layer=RawImage,
        replaces=PatchEmbed,
    ),
    Exhibit(
        name="patches-scrambled",
        title="Patches are cut by a reshape, without moving an axis",
        wrong="patches = image.reshape(B, n, P P C), and its right derivative",
        why="Each token sees a few whole rows of the image. It is a network, and learns; it is no Vision Transformer.",
        right="patches = image.reshape(B, H/P, P, W/P, P, C).swapaxes(2, 3).reshape(B, n, P P C)",
        kind="function",
        layer=Scrambled,
        replaces=PatchEmbed,
    ),
)
