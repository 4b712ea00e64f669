"""Stochastic depth: a sample may pass a block by its skip alone (Huang et al., arXiv 1603.09382, section 3).

Forward     y = x · m,   m = 1/(1 − rate) with probability 1 − rate, else 0, one number for all of a sample's branch x
Backward    dx = dy · m

It is dropout of whole branches, and as there the scale is in training: with it the expectation of y is x, and
evaluation is the identity (the paper scales by 1 − rate in evaluation instead). The mask is a function of seed, step,
layer and row in the global batch. In a network of L blocks the rate grows from 0 in the first to that of the last:
rate · l / (L − 1) in block l = 0, …, L − 1, for early blocks make what all later ones use.

Shapes      x, y, dx, dy (B, ...)    m (B, 1, ...)
Saves       m                        nothing where nothing is dropped
"""

from __future__ import annotations

from vitnp.backend import Array
from vitnp.layers.dropout import Dropout


class StochasticDepth(Dropout):
    """Zero each sample as a whole with probability `rate` in training; 0 <= rate < 1."""

    def _mask_shape(self, x: Array) -> tuple[int, ...]:
        return (len(x), *(1 for _ in x.shape[1:]))
