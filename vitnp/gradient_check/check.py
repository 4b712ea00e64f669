"""gradcheck: claimed gradients against numeric ones, tensor by tensor.

One derivative along a random direction u, ⟨gradient, u⟩, checks a whole tensor at the price of one forward: a wrong
element shows unless u happens to be orthogonal to the error. Each tensor gets directions of its own, so that a failure
has a name; then the direction is halved, and halved again, down to the worst element. Samples of coordinates leave
holes, which directions do not, and serve to explain a failure only.

An error is measured against the largest entry of its tensor's gradient. Element by element it would fail on every right
network, for some entries are zero by nature.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitnp.backend import Array
from vitnp.gradient_check.compare import Checker, only_finite, settle
from vitnp.gradient_check.derivatives import METHODS
from vitnp.gradient_check.hints import start_here
from vitnp.gradient_check.locate import locate
from vitnp.gradient_check.measure import Measure
from vitnp.gradient_check.notes import by_richardson, hardly_seen
from vitnp.gradient_check.options import check_choice, check_integer, check_smoothing, check_tolerance
from vitnp.gradient_check.probe import Probe, probe
from vitnp.gradient_check.problems import DIRECTIONS, FunctionProblem, LayerProblem, LossProblem, Problem, is_array
from vitnp.gradient_check.report import Report, Row, grave
from vitnp.layer import Layer

FULL_BUDGET_S = 10.0  # mode="auto" takes every coordinate where that takes no longer


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
            random cotangent. Those of a model are what it trains on: of a MaskedPatchPrediction the colours of all
            patches.
        grads: for a function, its gradients, by name or in order: arrays; or a function that returns them, called as f
            is, and with the gradient dy of f's value first where that value is an array.
        method: "complex", "richardson", "5point", "central", or "auto": complex unless a probe finds that the function
            loses imaginary parts, else richardson; a tensor on the way from which they get lost is checked again.
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
        TypeError: float32 without `upcast`, as its rounding hides what a check looks for; a function without gradients;
            functions that do not take or return what is said above.
        ValueError: unknown names of methods, modes, or gradients; arrays that are empty or not finite; options that
            do not go together.
    """
    _check_options(method, mode, tolerance, directions, label_smoothing, seed)
    start = time.perf_counter()
    if upcast:
        target, inputs = _upcast(target, inputs)
    problem = _make_problem(target, inputs, labels, grads, label_smoothing, cotangent, seed)
    title = repr(target) if isinstance(target, Layer) else getattr(target, "__name__", type(target).__name__)
    limit = None if tolerance is None else float(tolerance)
    report = _check(problem, title, method, mode, limit, directions, np.random.default_rng([seed, DIRECTIONS]))
    if not isinstance(target, Layer):
        report.advice = "check at a point, and with a cotangent, where they are not"
    report.evaluations, report.seconds = problem.evaluations, time.perf_counter() - start
    return report


def _check(
    problem: Problem,
    title: str,
    method: str,
    mode: str,
    tolerance: float | None,
    directions: int,
    rng: np.random.Generator,
) -> Report:
    """Return the report on a problem."""
    claimed, faults = problem.claims()
    grads, rows = only_finite(claimed)
    rows += [grave(fault.where, fault.verdict, str(fault)) for fault in faults]
    report = Report(title, "", "", tolerance or 0.0, rows)
    if not grads:
        return report
    measure = Measure(problem, grads, rng)
    tried = probe(Checker(problem, grads, "complex", None, rng, measure)) if method == "auto" else Probe(method)
    checker = Checker(problem, grads, tried.method, tolerance, rng, measure)
    if mode == "auto":
        mode = "full" if problem.size * checker.seconds_a_coordinate() <= FULL_BUDGET_S else "directions"
    report.method, report.mode, report.tolerance = tried.method, mode, checker.tolerance
    report.errors = checker.errors
    rows += [checker.row(name, mode, directions) for name in grads]
    order = list(problem.arrays)
    rows.sort(key=lambda row: order.index(row.name) if row.name in order else -1)
    locate(checker, _from_input(rows))
    again = settle(rows, checker, tolerance, method == "auto", lambda other, row: other.row(row.name, mode, directions))
    notes = tried.note, checker.about_noise(), by_richardson(again, tolerance), *hardly_seen(rows)
    report.notes = [note for note in notes if note]
    failing = {row.name for row in rows if row.verdict in ("FAIL", "MISSING", "SHAPE")}
    if isinstance(problem, LayerProblem) and len(problem.arrays) > 2:
        report.start_here = start_here([row.name for row in _from_input(rows)], failing)
    return report


def _check_options(method: Any, mode: Any, tolerance: Any, directions: Any, smoothing: Any, seed: Any) -> None:
    """Raise TypeError or ValueError for options that nothing can be made of."""
    check_choice("method", method, ("auto", *METHODS))
    check_choice("mode", mode, ("auto", "full", "directions"))
    check_integer("directions", directions, 1)
    check_integer("seed", seed, 0)
    check_tolerance(tolerance)
    check_smoothing(smoothing)


def _make_problem(
    target: Any, inputs: Any, labels: Any, grads: Any, smoothing: float, cotangent: Any, seed: int
) -> Problem:
    """Return what is to be checked; TypeError or ValueError for what does not go together."""
    layer = isinstance(target, Layer)
    if layer and grads is not None:
        raise ValueError("grads are given for a layer, whose own backward computes them: leave them out")
    if not layer and labels is not None and grads is not None:
        raise ValueError(
            "both labels and grads are given: a loss(x, labels) returns its gradient, a function has grads"
        )
    if smoothing and not (layer and labels is not None):
        raise ValueError(f"label_smoothing is {smoothing}; only the loss of a layer with labels has one")
    if cotangent is not None and labels is not None:
        raise ValueError(
            "both cotangent and labels are given: with labels the loss is a number, and needs no cotangent"
        )
    if layer:
        return LayerProblem(target, inputs, labels, smoothing, cotangent, seed)
    if labels is not None:
        return LossProblem(target, inputs, labels)
    return FunctionProblem(target, inputs, grads, cotangent, seed)


def _from_input(rows: list[Row]) -> list[Row]:
    """The rows in forward order: the input, which comes last in a table, is the farthest from the loss."""
    return sorted(rows, key=lambda row: row.name != "input")


def _upcast(target: Any, inputs: Any) -> tuple[Any, Any]:
    """Both as float64 copies."""

    def copy(array: Any) -> Any:
        return array.astype("float64") if is_array(array) and array.dtype.kind in "fiub" else array

    if isinstance(target, Layer):
        target = target.astype("float64")
    if isinstance(inputs, Mapping):
        return target, {name: copy(array) for name, array in inputs.items()}
    return target, [copy(array) for array in inputs] if isinstance(inputs, tuple | list) else copy(inputs)
