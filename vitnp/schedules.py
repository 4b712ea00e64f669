"""Learning rates over a run: linear warm-up, then cosine or linear decay (Dosovitskiy et al., appendix B.1)."""

from __future__ import annotations

import math

DECAYS = ("cosine", "linear")


def warmup_decay(
    step: int, *, peak: float, total_steps: int, warmup_steps: int = 0, decay: str = "cosine", final: float = 0.0
) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly, reaches `peak` with the last of the warm-up steps, and falls to `final` at `total_steps`: along
    half a cosine, or in a straight line. Raises ValueError where the warm-up does not fit or the decay is unknown.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay is {decay!r}; choose one of {', '.join(map(repr, DECAYS))}")
    if not 0 <= warmup_steps < max(total_steps, 1):
        raise ValueError(f"warmup_steps is {warmup_steps}; it must be at least 0 and below the {total_steps} steps")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    remaining = (1 + math.cos(math.pi * progress)) / 2 if decay == "cosine" else 1 - progress
    return final + (peak - final) * remaining
