"""The V-curve: how wrong each way to differentiate is, for every step from large to tiny.

From the right, truncation: a difference is a secant, and its error falls with the step, as h for the forward
difference, h² for the central, h⁴ for the 5-point and Richardson's. From the left, rounding: the values are known to
1e-16 of themselves, the quotient to 1e-16/h, and a smaller step is worse. At the bottom of the V lies the best that a
difference can do. The complex step has no left arm: it subtracts nothing.
"""

from __future__ import annotations

import importlib.util
import math
import os
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.gradient_check.compare import Checker
from vitnp.gradient_check.derivatives import METHODS, forward
from vitnp.gradient_check.options import check_integer
from vitnp.gradient_check.probe import probe
from vitnp.gradient_check.problems import DIRECTIONS, LayerProblem
from vitnp.gradient_check.report import WIDTH
from vitnp.layer import Layer

ESTIMATES = {
    "forward": forward,
    **{name: METHODS[name].estimate for name in ("central", "5point", "richardson", "complex")},
}
PLATEAU = 1e-6  # relative: more than rounding, and more than the best of all methods leaves of a right gradient
STEPS = [10.0 ** -(k / 2) for k in range(41)]  # 1 to 1e-20


@dataclass
class VCurve:
    """Relative errors of a derivative: `errors[method][i]` with the step `steps[i]`; `note` says what is left out."""

    title: str
    steps: list[float]
    errors: dict[str, list[float]]
    note: str = ""

    @property
    def has_truncation(self) -> bool:
        """Whether the error of a central difference falls with the step; not where the loss has no third derivative."""
        return self.errors["central"][0] > PLATEAU

    def best(self, method: str) -> tuple[float, float]:
        """Return (step, error) at the bottom of a method's curve."""
        error, step = min(zip(self.errors[method], self.steps, strict=True))
        return step, error

    def __str__(self) -> str:
        """A row a decade, the best of each method below."""
        names = list(self.errors)
        lines = [self.title, "    step  " + "".join(f"{name:>12}" for name in names)]
        for i in range(0, len(self.steps), 2):
            lines.append(f"{self.steps[i]:8.0e}  " + "".join(f"{self.errors[name][i]:12.0e}" for name in names))
        lines.append("    best  " + "".join(f"{self.best(name)[1]:12.0e}" for name in names))
        lines.append("    with  " + "".join(f"{self.best(name)[0]:12.0e}" for name in names))
        return "\n".join([*lines, *textwrap.wrap(self.note, WIDTH)])

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Write the curves as a picture. Raises ImportError without matplotlib, FileExistsError over a file."""
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError("the picture of the V-curve needs matplotlib: pip install 'vitnp[plots]'")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for name, errors in self.errors.items():
            axes.plot(self.steps, np.maximum(errors, 1e-17), "o-", markersize=3, label=name)
        axes.set(
            xscale="log", yscale="log", xlabel="step h", ylabel="relative error", title=self.title, ylim=(3e-18, 30)
        )
        axes.text(0.98, 0.05, "truncation: the step is too large", ha="right", transform=axes.transAxes, color="0.4")
        axes.text(0.02, 0.75, "rounding: the step is too small", va="top", transform=axes.transAxes, color="0.4")
        axes.grid(alpha=0.3)
        axes.legend(loc=(0.02, 0.3))
        with open(path, "xb") as file:  # x: never over a file
            figure.savefig(file, format="png", dpi=120)


def v_curve(layer: Layer, x: Array, labels: Any = None, *, seed: int = 0) -> VCurve:
    """Differentiate a float64 layer's loss along one random direction in all its arrays, five ways, with 41 steps.

    layer, x, labels, seed are as in `gradcheck`. The direction is a tenth as long as the arrays, so that a step of 1 is
    large but not absurd, and uphill in every array, so that nothing cancels. Errors are those against the gradient that
    backward claims. The complex step is left out where forward loses imaginary parts.

    Raises TypeError, ValueError as `gradcheck`, and for a layer whose gradients cannot be compared at all.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"the layer is a {type(layer).__name__}; expected a layer: a function has no V-curve here")
    check_integer("seed", seed, 0)
    rng = np.random.default_rng([seed, DIRECTIONS])
    problem = LayerProblem(layer, x, labels, 0.0, None, seed)
    grads, faults = problem.claims()
    if faults:
        raise ValueError(f"{layer!r} cannot be differentiated: {faults[0].where}: {faults[0]}")
    directions, true = dict[str, Array](), 0.0
    for name, array in problem.arrays.items():
        size = math.sqrt(float((array * array).mean())) or 0.01
        along = array_module(array).asarray(rng.standard_normal(array.shape)) * (size / 10)
        part = float((grads[name] * along).sum())
        directions[name] = along if part >= 0 else -along
        true += abs(part)

    if not true > 0:
        raise ValueError(f"the gradient of {layer!r} is zero here, and no error can be relative to it: use another x")

    def f(t: complex) -> complex:
        value: complex = problem.value({name: problem.arrays[name] + t * along for name, along in directions.items()})
        return value

    tried = probe(Checker(problem, grads, "complex", None, rng))
    shown = {name: estimate for name, estimate in ESTIMATES.items() if name != "complex" or not tried.reason}
    errors = {name: [abs(estimate(f, h, 0.0).value - true) / true for h in STEPS] for name, estimate in shown.items()}
    note = f"complex is left out: {tried.reason}" if tried.reason else ""
    best = min(error for found in errors.values() for error, step in zip(found, STEPS, strict=True) if step > 1e-6)
    if best > PLATEAU:
        note = (
            f"no method comes nearer than {best:.0e}: the gradient is wrong, to which they are compared; use gradcheck"
        )
    return VCurve(f"derivative of {layer!r} along a random direction", STEPS, errors, note)
