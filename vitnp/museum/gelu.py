"""Mistakes in GELU: beside vitnp/layers/gelu.py. Forward is right; the slope that it keeps for backward is not.

Right       y = ½ x (1 + t),   t = tanh(u),   u = √(2/π) (x + a x³),   a = 0.044715
            y' = ½ (1 + t) + ½ x (1 − t²) u',   u' = √(2/π) (1 + 3 a x²)
"""

from __future__ import annotations

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layers import GELU
from vitnp.layers.gelu import CUBIC, SQRT_2_OVER_PI, gelu_erf, gelu_tanh
from vitnp.museum.exhibit import Exhibit


class WrongSlope(GELU):
    """GELU that keeps the slope which a mistake below has."""

    def forward(self, x: Array, ctx: Context) -> Array:
        """x -> y of the same shape."""
        y = super().forward(x, ctx)
        if ctx.record:
            ctx.saved(self).slope = self._slope(x)
        return y

    def _slope(self, x: Array) -> Array:
        raise NotImplementedError


class OtherForm(WrongSlope):
    """GELU in one form with the derivative of the other."""

    def _slope(self, x: Array) -> Array:
        other = gelu_erf if self.form == "tanh" else gelu_tanh
        slope: Array = other(x)[1]
        return slope


class SixDigits(WrongSlope):
    """GELU whose derivative was multiplied out, and its coefficients rounded."""

    def _slope(self, x: Array) -> Array:
        cube = x * x * x
        t = array_module(x).tanh(0.797885 * x + 0.0356774 * cube)
        return 0.5 + 0.5 * t + (0.398942 * x + 0.0535161 * cube) * (1 - t * t)


class CubeForSquare(WrongSlope):
    """GELU with x³ in u' where x² belongs."""

    def _slope(self, x: Array) -> Array:
        t = array_module(x).tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
        du = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x * x * x)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du


class Forgotten(WrongSlope):
    """GELU that backward passes over."""

    def _slope(self, x: Array) -> Array:
        return array_module(x).ones_like(x)


EXHIBITS = (
    Exhibit(
        name="gelu-other-form",
        title="GELU in its tanh form with the derivative of its exact form, or the other way round",
        wrong="y' = Φ(x) + x φ(x),   where y is the tanh form",
        why="The two forms differ by 5e-4 at most, and their slopes by little more. Tolerances of 1e-3 see nothing.",
        right="y' = ½ (1 + t) + ½ x (1 − t²) u'",
        first="blocks.1.mlp.fc1",
        layer=OtherForm,
        replaces=GELU,
    ),
    Exhibit(
        name="gelu-six-digits",
        title="The constants of GELU's derivative are rounded to six digits",
        wrong="y' = ½ + ½ t + (0.398942 x + 0.0535161 x³) (1 − t²),   t = tanh(0.797885 x + 0.0356774 x³)",
        why="The formula as it is passed on. Training loses nothing by it, a check every digit beyond the sixth.",
        right="y' = ½ (1 + t) + ½ x (1 − t²) u', with √(2/π) computed",
        first="blocks.1.mlp.fc1",
        layer=SixDigits,
        replaces=GELU,
    ),
    Exhibit(
        name="gelu-cube-for-square",
        title="The inner derivative of GELU has x³ where x² belongs",
        wrong="u' = √(2/π) (1 + 3 a x³)",
        why="The power was copied with its factor. Near 0 the two are alike, and there most activations are.",
        right="u' = √(2/π) (1 + 3 a x²)",
        first="blocks.1.mlp.fc1",
        layer=CubeForSquare,
        replaces=GELU,
    ),
    Exhibit(
        name="gelu-forgotten",
        title="Backward passes over the activation",
        wrong="dx = dy",
        why="The activation is a line of forward, and no line of backward stands beside it.",
        right="dx = dy · y'(x)",
        first="blocks.1.mlp.fc1",
        layer=Forgotten,
        replaces=GELU,
    ),
)
