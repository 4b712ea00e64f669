"""gradcheck: claimed gradients against numeric ones, tensor by tensor.

One derivative along a random direction u, ⟨gradient, u⟩, checks a whole tensor at the price of one forward: a wrong
element shows unless u happens to be orthogonal to the error. Each tensor gets directions of its own, so that a failure
has a name; then the direction is halved, and halved again, down to the worst element. Samples of coordinates leave
holes, which directions do not, and serve to explain a failure only.

An error is measured against the largest entry of its tensor's gradient. Element by element it would fail on every right
network, for some entries are zero by nature.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.gradient_check.compare import LOST, Checker
from vitnp.gradient_check.derivatives import METHODS
from vitnp.gradient_check.hints import start_here
from vitnp.gradient_check.problems import FunctionProblem, LayerProblem, LossProblem, Problem
from vitnp.gradient_check.report import Report, Row
from vitnp.layer import Layer

FULL_BUDGET_S = 10.0  # mode="auto" takes every coordinate where that takes no longer
PROBED = 1e-4  # how closely complex step and difference must agree for the complex step to be used


def gradcheck(
    target: Layer | Callable[..., Any],
    inputs: Array | Mapping[str, Array] | Sequence[Array],
    labels: Any = None,
    *,
    grads: Any = None,
    method: str = "auto",
    mode: str = "auto",
    tolerance: float | None = None,
    directions: int = 1,
    label_smoothing: float = 0.0,
    cotangent: Array | None = None,
    upcast: bool = False,
    seed: int = 0,
) -> Report:
    """Check hand-written gradients against numeric ones, in float64.

    Args:
        target: a layer or a model, checked in training mode with its dropout masks held; or any function f of arrays
            (with `grads`); or a loss(x, labels) that returns its value and its gradient (with `labels`).
        inputs: the layer's input, the model's images (B, H, W, C), the loss's logits, or the function's arrays: by
            name, called f(**arrays), or in order, called f(*arrays).
        labels: with them the loss of a layer is the cross-entropy of its output; without, the output's product with a
            random cotangent.
        grads: for a function, its gradients, by name or in order: arrays; or a function that returns them, called as f
            is, and with the gradient dy of f's value first where that value is an array.
        method: "complex", "richardson", "5point", "central", or "auto": complex unless a probe finds that the function
            loses imaginary parts, else richardson.
        mode: "full" (every coordinate), "directions" (random ones of each tensor), or "auto" by the time it takes.
        tolerance: the largest relative error allowed; unless said 1e-10 for complex, 1e-8 for richardson and 5point,
            1e-6 for central. Differences may also be off by their own error bars.
        directions: how many a tensor, in that mode.
        label_smoothing: of the cross-entropy.
        cotangent: the gradient of the loss with respect to the value, instead of a random one.
        upcast: check a float64 copy of what has another dtype.
        seed: of directions, cotangent and dropout.

    Returns:
        a Report.

    Raises:
        TypeError: float32 without `upcast`, as its rounding hides what a check looks for; a function without gradients.
        ValueError: unknown names of methods, modes, or gradients.
    """
    for name, value, valid in (("method", method, METHODS), ("mode", mode, ("full", "directions"))):
        if value not in ("auto", *valid):
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(('auto', *valid))}")
    if directions < 1:
        raise ValueError(f"directions is {directions}; it must be at least 1")
    start, rng = time.perf_counter(), np.random.default_rng(seed)
    if upcast:
        target, inputs = _upcast(target, inputs)
    problem: Problem
    if isinstance(target, Layer):
        problem = LayerProblem(target, inputs, labels, label_smoothing, cotangent, rng, seed)
    elif labels is not None and grads is None:
        problem = LossProblem(target, inputs, labels)
    else:
        problem = FunctionProblem(target, inputs, grads, cotangent, rng)
    title = repr(target) if isinstance(target, Layer) else getattr(target, "__name__", type(target).__name__)
    report = check(problem, title, method, mode, tolerance, directions, rng)
    report.seconds = time.perf_counter() - start
    return report


def check(
    problem: Problem,
    title: str,
    method: str,
    mode: str,
    tolerance: float | None,
    directions: int,
    rng: np.random.Generator,
) -> Report:
    """Return the report on a problem."""
    grads, faults = problem.claims()
    rows = [Row(f.where, (), "", math.inf, None, math.nan, math.nan, f.verdict, str(f)) for f in faults]
    if not grads or any(row.verdict == "NONDETERMINISTIC" for row in rows):
        return Report(title, "nothing compared", "2 forwards", tolerance or 0.0, rows, evaluations=2)
    notes: list[str] = []
    chosen = _probe(problem, grads, rng, notes) if method == "auto" else method
    checker = Checker(problem, grads, chosen, tolerance, rng)
    if chosen != "complex" and _is_float32(problem, rng):
        checker.epsilon = 2.0**-23
        notes.append("the function's values are float32: its derivative may drown in their rounding; use float64")
    if mode == "auto":
        mode = "full" if problem.size * checker.seconds_a_coordinate() <= FULL_BUDGET_S else "directions"
    report = Report(title, chosen, mode, checker.tolerance, rows, notes, errors=checker.errors)
    rows += [checker.row(name, mode, directions) for name in grads]
    checker.locate(_from_input(rows))
    if any(row.verdict == LOST for row in rows):
        checker = _without_complex_steps(problem, grads, method, mode, directions, rng, report, checker)
    failing = {row.name for row in rows if row.verdict in ("FAIL", "MISSING", "SHAPE")}
    if isinstance(problem, LayerProblem) and len(problem.arrays) > 2:
        report.start_here = start_here([row.name for row in _from_input(rows)], failing)
    report.evaluations = 2 + checker.evaluations
    return report


def _from_input(rows: list[Row]) -> list[Row]:
    """The rows in forward order: the input, which comes last in a table, is the farthest from the loss."""
    return sorted(rows, key=lambda row: row.name != "input")


def _without_complex_steps(
    problem: Problem,
    grads: Mapping[str, Array],
    method: str,
    mode: str,
    directions: int,
    rng: np.random.Generator,
    report: Report,
    checker: Checker,
) -> Checker:
    """Check again by differences what loses imaginary parts; leave it open if a complex step was asked for."""
    again = Checker(problem, grads, "richardson", None, rng)
    again.errors, again.evaluations = checker.errors, checker.evaluations
    for i, row in enumerate(report.rows):
        if row.verdict == LOST and method == "auto":
            report.rows[i] = again.row(row.name, mode, directions)
            again.locate([report.rows[i]])
            report.notes.append(f"{row.name} by richardson: forward loses imaginary parts on the way from it")
        elif row.verdict == LOST:
            row.verdict = "INCONCLUSIVE"
    return again


def _upcast(target: Any, inputs: Any) -> tuple[Any, Any]:
    """Both as float64 copies."""

    def copy(array: Any) -> Any:
        return array.astype("float64") if getattr(array, "dtype", np.dtype("O")).kind == "f" else array

    if isinstance(target, Layer):
        target = target.astype("float64")
    if isinstance(inputs, Mapping):
        return target, {name: copy(array) for name, array in inputs.items()}
    return target, [copy(array) for array in inputs] if isinstance(inputs, tuple | list) else copy(inputs)


def _probe(problem: Problem, grads: Mapping[str, Array], rng: np.random.Generator, notes: list[str]) -> str:
    """Return "complex" if a complex step agrees with a difference when all arrays move, else "richardson" and why."""
    directions = _everywhere(problem, rng)
    checkers = {method: Checker(problem, grads, method, None, rng) for method in ("complex", "richardson")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            found = checkers["complex"].derivative(directions).value
    except np.exceptions.ComplexWarning:
        notes.append("richardson, for a complex step is not possible: forward casts complex numbers to real ones")
    except (TypeError, ValueError, AttributeError) as error:
        notes.append(f"richardson, for a complex step is not possible: {type(error).__name__}: {error}")
    else:
        numeric, bar = checkers["richardson"].derivative(directions)
        if abs(found - numeric) <= PROBED * max(abs(found), abs(numeric)) + 10 * bar:
            return "complex"
        notes.append(
            f"richardson, for forward loses imaginary parts (complex step {found:.3g}, difference {numeric:.3g}): "
            "np.var, np.abs and np.linalg.norm do"
        )
    return "richardson"


def _everywhere(problem: Problem, rng: np.random.Generator) -> dict[str, Array]:
    """A random direction, of about unit length, for every array."""
    return {
        name: array_module(array).asarray(rng.standard_normal(array.shape) / math.sqrt(array.size))
        for name, array in problem.arrays.items()
    }


def _is_float32(problem: Problem, rng: np.random.Generator) -> bool:
    """Whether the values at two random places are numbers that float32 has, which is no accident."""
    directions = _everywhere(problem, rng)
    values = [
        float(problem.value({name: problem.arrays[name] + t * along for name, along in directions.items()}).real)
        for t in (1e-3, 2e-3)
    ]
    return all(value == float(np.float32(value)) and value != round(value) for value in values)
