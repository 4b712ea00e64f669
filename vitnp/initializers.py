"""How parameters start, as in the original Vision Transformer (Flax's defaults where the paper is silent).

Each function returns an initializer: a function of (generator, shape) that draws an array in float64.
"""

from __future__ import annotations

import math

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.layer import Initializer


def constant(value: float) -> Initializer:
    """Every element is `value`."""
    return lambda generator, shape: value


def normal(std: float) -> Initializer:
    """N(0, std²)."""
    return lambda generator, shape: std * generator.standard_normal(shape)


def xavier_uniform(d_in: int, d_out: int) -> Initializer:
    """Uniform with variance 2 / (d_in + d_out) (Glorot and Bengio 2010, equation 16).

    The sizes are those of one projection: a fused array of several, as in qkv, is drawn with the limit of each.
    """
    limit = math.sqrt(6 / (d_in + d_out))
    return lambda generator, shape: generator.uniform(-limit, limit, shape)


def sincos_2d(rows: int, columns: int) -> Initializer:
    """Sines and cosines of where a patch is, for positions (1, N, D) of a grid of rows x columns; D a multiple of 4.

    A quarter of the width each for the sine and cosine of the column and of the row, at frequencies that fall from 1 to
    1/100 radian a patch (Vaswani et al., arXiv 1706.03762, section 3.5, once an axis). A class token in front gets
    zeros. Patches that are close begin alike, which small positions drawn at random have to learn first.
    """

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        _, N, D = shape
        row, column = (waves(place.ravel(), D // 2) for place in np.indices((rows, columns)))
        positions = np.zeros(shape)
        positions[0, N - rows * columns :] = np.hstack([column, row])
        return positions

    return draw


def sincos_1d(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Sines and cosines of 0, 1, 2, … for positions (n, D) along one axis of a grid; D is even."""
    return waves(np.arange(shape[0]), shape[1])


def waves(places: Array, width: int) -> Array:
    """Sines, then cosines, of places (n,): (n, width), at width / 2 frequencies from 1 to 1/100 radian a place."""
    xp = array_module(places)
    phases = places[:, None] * 10.0 ** xp.linspace(0, -2, width // 2)
    both = xp.empty((len(places), width))
    both[:, : width // 2], both[:, width // 2 :] = xp.sin(phases), xp.cos(phases)
    return both


def lecun_normal(d_in: int) -> Initializer:
    """Normal, truncated at two standard deviations, with variance 1 / d_in (LeCun et al. 1998, section 4.6)."""
    # A standard normal cut at ±a has variance 1 − 2 a φ(a) / (2 Φ(a) − 1): the wider draw makes up for the cut.
    a = 2.0
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    std = 1 / math.sqrt(d_in * (1 - 2 * a * density / math.erf(a / math.sqrt(2))))

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        values = generator.standard_normal(shape)
        while (outside := np.abs(values) > a).any():
            values[outside] = generator.standard_normal(int(outside.sum()))
        return std * values

    return draw
