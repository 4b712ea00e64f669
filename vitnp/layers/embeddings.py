"""Class token and position embedding (Dosovitskiy et al., equation 1).

Forward     y = [cls; x_1; …; x_n] + pos     without a class token, y = x + pos
            Registers come last: learned tokens without a position, that take part in attention and no classifier reads
            (Darcet et al., arXiv 2309.16588). y = [[cls; x_1; …; x_n] + pos; reg_1; …]
Backward    Every sample adds the same cls and pos, so their gradients sum over the batch:
                dpos = Σ_b dy,   dcls = Σ_b dy[:, 0],   dx = dy without its first token
            and where there are registers, dpos and dx are those of the tokens before them, dreg = Σ_b of the last

Shapes      x, dx (B, n, D)    y, dy (B, N, D)    cls (1, 1, D)    pos (1, N, D),   N = n + 1 with a class token
            reg (1, registers, D)
Saves       nothing
"""

from __future__ import annotations

from numpy.typing import DTypeLike

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.initializers import constant, normal
from vitnp.layer import Initializer, Layer


class Embeddings(Layer):
    """Put the class token first (`class_token=True`), then add a learned vector for each position.

    `pos_init` is how the vectors start, N(0, 0.02²) unless said; with `positions=False` none are added. Each
    of the `registers` starts as a vector of that kind, too: if they were alike, they would stay alike.
    """

    cls_token: Array
    pos_embed: Array
    reg_token: Array
    inline = True  # as everywhere, the names are `cls_token` and `pos_embed`

    def __init__(
        self,
        patches: int,
        dim: int,
        *,
        class_token: bool = True,
        registers: int = 0,
        positions: bool = True,
        pos_init: Initializer | None = None,
        rng: int | None = 0,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.first, self.registers, self.positions = (
            int(class_token),
            registers,
            positions,
        )  # the patches begin at `first`
        if class_token:
            self.declare("cls_token", (1, 1, dim), dtype, constant(0))
        if positions:
            self.declare("pos_embed", (1, patches + self.first, dim), dtype, pos_init or normal(0.02))
        if registers:
            self.declare("reg_token", (1, registers, dim), dtype, normal(0.02))
        self.built(rng)

    def forward(self, x: Array, ctx: Context) -> Array:
        """x (B, n, D) -> y (B, N, D)."""
        B, n, D = x.shape
        stop = self.first + n
        y = ctx.empty(self, "y", (B, stop + self.registers, D), like=x)
        if self.first:
            y[:, :1] = self.cls_token
        y[:, self.first : stop] = x
        if self.registers:
            y[:, stop:] = self.reg_token
        if self.positions:
            y[:, :stop] += self.pos_embed
        ctx.save(self)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dy (B, N, D) -> dx (B, n, D)."""
        ctx.saved(self)  # nothing to read, but a backward without its forward is an error here too
        stop = dy.shape[1] - self.registers
        if self.registers:
            ctx.add_row_sum(self, "reg_token", dy[:, stop:].reshape(len(dy), -1))
        if self.positions:
            ctx.add_row_sum(self, "pos_embed", dy[:, :stop].reshape(len(dy), -1))
        if self.first:
            ctx.add_row_sum(self, "cls_token", dy[:, 0])
        return dy[:, self.first : stop]
