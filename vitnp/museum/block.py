"""Mistakes around whole blocks and the loss: beside vitnp/layers/block.py and vitnp/losses.py.

Right       z = x + attention(norm1(x)),   dx = dz + norm1ᵀ(attentionᵀ(dz))
            y = z + mlp(norm2(z)),         dz = dy + norm2ᵀ(mlpᵀ(dy))
"""

from __future__ import annotations

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.layers import Block, ClassifierHead
from vitnp.museum.exhibit import Exhibit


class ResidualDropped(Block):
    """Block whose backward knows nothing of its skips."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, N, D)."""
        dz = self.norm2.backward(self.mlp.backward(dy, ctx), ctx)
        return self.norm1.backward(self.attn.backward(self.dropout.backward(dz, ctx), ctx), ctx)


class ResidualInNorm(Block):
    """Block whose backward adds the skip's gradient before the norm, not after it."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, N, D)."""
        dz = self.norm2.backward(dy + self.mlp.backward(dy, ctx), ctx)
        return self.norm1.backward(dz + self.attn.backward(self.dropout.backward(dz, ctx), ctx), ctx)


class UnnormalisedInput(Block):
    """Block whose projection to queries, keys and values keeps x, and not norm1(x)."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, N, D) -> y (B, N, D)."""
        y = super().forward(x, ctx)
        if ctx.record:
            ctx.saved(self.attn.qkv).rows = x.reshape(-1, x.shape[-1])
        return y


class SumForMean(ClassifierHead):
    """Head to which the loss passes the gradient of its sum, while it reports its mean."""

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dlogits (B, classes) -> dx (B, N, D)."""
        return super().backward(dy * len(dy), ctx)


EXHIBITS = (
    Exhibit(
        name="residual-dropped",
        title="Backward forgets the skips",
        wrong="dz = norm2ᵀ(mlpᵀ(dy)),   dx = norm1ᵀ(attentionᵀ(dz))",
        why="The short way down is closed, which skips are there to keep open; the deeper, the less arrives.",
        right="dz = dy + norm2ᵀ(mlpᵀ(dy)),   dx = dz + norm1ᵀ(attentionᵀ(dz))",
        first="blocks.1.attn.proj",
        layer=ResidualDropped,
        replaces=Block,
    ),
    Exhibit(
        name="residual-in-norm",
        title="Backward adds the skip before the norm",
        wrong="dz = norm2ᵀ(dy + mlpᵀ(dy)),   dx = norm1ᵀ(dz + attentionᵀ(dz))",
        why="The right terms in the wrong order: the skip goes around the norm, too.",
        right="dz = dy + norm2ᵀ(mlpᵀ(dy)),   dx = dz + norm1ᵀ(attentionᵀ(dz))",
        first="blocks.1.norm2",
        layer=ResidualInNorm,
        replaces=Block,
    ),
    Exhibit(
        name="block-unnormalised-input",
        title="The gradient of the queries, keys and values is formed with x, not with norm1(x)",
        wrong="dW_qkv = xᵀ dqkv",
        why="The block has x at hand, and it has the same shape. Other layers do not notice.",
        right="dW_qkv = norm1(x)ᵀ dqkv",
        first="blocks.1.attn.qkv.weight",
        layer=UnnormalisedInput,
        replaces=Block,
    ),
    Exhibit(
        name="loss-sum-for-mean",
        title="The loss is the mean over the batch, its gradient that of the sum",
        wrong="dlogits = p − t",
        why="Every gradient is B times too large, and a learning rate found for one batch size fits no other.",
        right="dlogits = (p − t) / B",
        first="head",
        layer=SumForMean,
        replaces=ClassifierHead,
    ),
)
