"""The exponential moving average of a model's parameters (Polyak and Juditsky, 1992; the paper's section 4.1, 0.9999).

After each step t = 1, 2, …, with the parameters p that it left,

    a ← a + (1 − d) (p − a)       d = min(decay, (1 + t) / (10 + t))

With a constant d the parameters of i steps ago have the weight (1 − d) dⁱ, so the average is over some 1 / (1 − d)
steps: 10,000 for 0.9999, more than many runs here have, whose average would be mostly their start. So d rises, as in
TensorFlow's `ExponentialMovingAverage` with `num_updates`: until (1 + t) / (10 + t) reaches `decay`, 1 / (1 − d) is
(10 + t) / 9, and the average is over the last ninth of the run, however long that is. What stands still is in the
average to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from vitnp.backend import array_module
from vitnp.optim import in_one_part
from vitnp.vit import VisionTransformer


class MovingAverage:
    """The moving average of a model's parameters.

    Args:
        model: what is averaged, as it trains.
        decay: d, above 0 and below 1, once it has risen.

    Attributes:
        averaged: a copy of the model, with the average for its parameters: evaluate it, save it, predict with it.
        updates: t, how often it was updated.

    Raises ValueError for a decay outside its range, TypeError for what is no VisionTransformer.
    """

    def __init__(self, model: VisionTransformer, decay: float = 0.9999) -> None:
        if not isinstance(model, VisionTransformer):
            raise TypeError(f"MovingAverage averages a VisionTransformer's one vector; this is {model!r}")
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; it must be above 0 and below 1")
        self.model, self.decay, self.averaged = model, float(decay), copy.deepcopy(model)
        self.updates = 0

    def update(self, in_parts: Callable[[Callable[[int, int], None], int], Any] | None = None) -> None:
        """Take in the parameters as they are now: call it after each step; `in_parts` as in an optimizer's `step`."""
        self.updates += 1
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        p, a = self.model.flat, self.averaged.flat
        block = 1 << 15 if array_module(p) is np else p.size

        def work(start: int, end: int) -> None:
            for first in range(start, end, block):
                part = slice(first, min(first + block, end))
                a[part] += (1 - kept) * (p[part] - a[part])

        (in_parts or in_one_part)(work, p.size)
