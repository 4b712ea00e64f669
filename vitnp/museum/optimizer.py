"""Mistakes in the optimizer: beside vitnp/optim.py. Every gradient is right, so a gradient check has nothing to find.

Right       m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   p ← p − lr · m̂ / (√v̂ + ε)
            m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)
"""

from __future__ import annotations

from typing import Any

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.museum.exhibit import Exhibit
from vitnp.optim import Adam


class FrozenAdam(Adam):
    """Adam whose corrections are those of the first step, for ever."""

    def _update(self, p: Array, g: Array, m: Array, v: Array, t: int) -> None:
        super()._update(p, g, m, v, 1)


class UnclearedAdam(Adam):
    """Adam whose gradients are never set to zero, so that each step adds to those of all before it."""

    total: Array | float = 0.0

    def step(self, ctx: Context, in_parts: Any = None) -> None:
        """Update every parameter by the sum of all gradients so far."""
        gradients = ctx.flat_grad(self.model.layout, like=self.model.flat)
        self.total = self.total + gradients
        gradients[...] = self.total
        super().step(ctx, in_parts)


EXHIBITS = (
    Exhibit(
        name="adam-frozen-step",
        title="Adam's count of steps stays at 1",
        wrong="m̂ = m / (1 − β₁),   v̂ = v / (1 − β₂), at every step",
        why="First the steps come out up to twice too long, in the end three times too short: 10 m / √(1000 v).",
        right="m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)",
        kind="update",
        optimizer=FrozenAdam,
    ),
    Exhibit(
        name="gradients-never-cleared",
        title="Gradients are added up and never set to zero",
        wrong="g ← g + dL/dp, over all steps",
        why="The call of zero_grad is missing. It is a momentum without end: the step heeds what was long ago.",
        right="g = dL/dp, of this step",
        kind="update",
        optimizer=UnclearedAdam,
    ),
)
