"""check_layers: every layer of a model on its own, with the input and the upstream gradient that it really has.

In a whole model one wrong backward spoils every gradient before it. Here each layer gets what it was given in a pass of
the whole model, wrong or not, and is held responsible for what it makes of it. So a fault shows in one row: that of the
layer without children that has it; or, where all children are right, that of the layer that puts them together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.gradient_check.compare import Checker, only_finite, settle
from vitnp.gradient_check.derivatives import METHODS
from vitnp.gradient_check.locate import locate
from vitnp.gradient_check.measure import Measure
from vitnp.gradient_check.notes import by_richardson, hardly_seen
from vitnp.gradient_check.options import check_choice, check_integer, check_smoothing, check_tolerance
from vitnp.gradient_check.probe import probe
from vitnp.gradient_check.problems import DIRECTIONS, LayerProblem, check_array, cotangent_for, targets_of
from vitnp.gradient_check.report import GOOD, Report, Row, grave
from vitnp.layer import Layer
from vitnp.losses import softmax_cross_entropy


@dataclass
class _Seen:
    """What one layer was given in a pass."""

    layer: Layer
    x: Array | None = None
    x_shape: tuple[int, ...] = ()
    y_shape: tuple[int, ...] = ()
    dy: Array | None = None
    forgets: bool = False  # whether its backward returns nothing, so that no layer around it can be checked


@dataclass
class _Options:
    """How to check each of them; `by_richardson` collects what complex steps could not decide."""

    method: str
    tolerance: float | None
    seed: int
    rng: np.random.Generator
    by_richardson: list[str]
    takes_complex: bool | None = None  # whether forward does, everywhere; None: not known yet

    @property
    def first(self) -> str:
        return "complex" if self.method == "auto" else self.method


def check_layers(
    model: Layer,
    x: Array,
    labels: Any = None,
    *,
    method: str = "auto",
    tolerance: float | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> Report:
    """Check every layer of a float64 model by itself, along one random direction a tensor.

    Layers without children have a row for each parameter and one for the input. Layers with children have one row: all
    of them move along one direction; it is left out where one of the children is wrong, as it must be wrong with it.

    Args:
        model, x, labels, label_smoothing, seed: as in `gradcheck`.
        method: "complex", "richardson", "5point" or "central", or "auto": complex, but richardson for a layer whose
            forward loses imaginary parts.
        tolerance: as in `gradcheck`.

    Returns:
        a Report; the verdict MISSING names a layer whose backward was not called.

    Raises:
        TypeError, ValueError: as `gradcheck`.
    """
    check_choice("method", method, ("auto", *METHODS))
    check_integer("seed", seed, 0)
    check_tolerance(tolerance)
    check_smoothing(label_smoothing)
    if not isinstance(model, Layer):
        raise TypeError(f"the model is a {type(model).__name__}; expected a layer: for a function use gradcheck")
    if label_smoothing and labels is None:
        raise ValueError(f"label_smoothing is {label_smoothing}; only the loss with labels has one")
    start, rng = time.perf_counter(), np.random.default_rng([seed, DIRECTIONS])
    limit = None if tolerance is None else float(tolerance)
    options = _Options(method, limit, seed, rng, [])
    outermost, *inner = _record(model, x, labels, label_smoothing, seed)
    last = _check_one(outermost, options)
    if options.takes_complex is None:  # it could not be asked: ask each
        options.takes_complex = False
    found = [(seen.layer, *_check_one(seen, options)) for seen in reversed(inner)] + [(outermost.layer, *last)]
    rows, notes = _innermost([(layer, rows) for layer, rows, _ in found])
    notes += [by_richardson(options.by_richardson, options.tolerance), *hardly_seen(rows)]
    limit = METHODS[options.first].tolerance if limit is None else limit
    report = Report(f"each layer of {model!r}", options.first, "directions", limit, rows[::-1])
    report.notes = [note for note in notes if note]
    report.evaluations, report.seconds = sum(count for *_, count in found), time.perf_counter() - start
    return report


def _innermost(found: list[tuple[Layer, list[Row]]]) -> tuple[list[Row], list[str]]:
    """Leave out the rows of layers around a wrong one, children coming before their parents; say so in a note."""
    rows, around, wrong = list[Row](), 0, dict[str, bool]()  # wrong: whether more is known than that it is open
    for layer, of_layer in found:
        bad = [row.verdict for row in of_layer if row.verdict not in GOOD]
        known = any(verdict != "INCONCLUSIVE" for verdict in bad)
        within = [sure for path, sure in wrong.items() if _is_within(path, layer.path)]
        if _has_children(layer) and (any(within) or (within and not known)):
            around += bool(bad)
            continue
        rows += of_layer
        if bad:
            wrong[layer.path] = known
    are = f"{around} layers around it are" if around > 1 else "1 layer around it is"
    return rows, [f"{are} wrong with it"] if around else []


def _record(model: Layer, x: Array, labels: Any, smoothing: float, seed: int) -> list[_Seen]:
    """Take a pass through a copy of the model, and return what each of its layers was given, parents first."""
    for name, array in {**model.parameters(), "input": x}.items():
        check_array(name, array)
    copy = model.astype("float64")
    layers = [_Seen(layer) for layer in copy.layers()]
    for seen in layers:
        _watch(seen)
    ctx = Context(train=True, rng=seed)
    y = copy.forward(x, ctx)
    targets = targets_of(copy, labels, ctx)
    dy = cotangent_for(y, None, seed) if labels is None else softmax_cross_entropy(y, targets, smoothing)[1]
    copy.backward(dy, ctx)
    forgetful = [seen.layer.path for seen in layers if seen.forgets]
    for seen in layers:
        seen.forgets |= any(_is_within(path, seen.layer.path) for path in forgetful)
        del seen.layer.forward, seen.layer.backward  # the wrappers, not the methods of the class
    return layers


def _watch(seen: _Seen) -> None:
    """Wrap the two methods of a layer so that what they are given is kept."""
    forward, backward = seen.layer.forward, seen.layer.backward

    def keep_x(x: Array, ctx: Context) -> Array:
        seen.x, seen.x_shape = x.copy(), x.shape
        y = forward(x, ctx)
        seen.y_shape = y.shape
        return y

    def keep_dy(dy: Array, ctx: Context) -> Array:
        seen.dy = dy.copy()
        dx: Array | None = backward(dy, ctx)
        if dx is None:  # it forgets to return it; the layers before this one are checked without it
            seen.forgets = True
            dx = array_module(dy).zeros(seen.x_shape) + math.nan
        return dx

    _replace(seen.layer, forward=keep_x, backward=keep_dy)


def _replace(layer: Layer, **methods: Callable[..., Array]) -> None:
    for name, method in methods.items():
        setattr(layer, name, method)


def _check_one(seen: _Seen, options: _Options) -> tuple[list[Row], int]:
    """Return the rows of one layer, and how many forwards they took."""
    layer, name = seen.layer, seen.layer.path or "the whole"
    if seen.x is None:
        return [], 0  # it takes no part, as a dropout of rate 0 may
    if seen.forgets and _has_children(layer):
        return [], 0  # its row is that of the layer within that forgets to return
    if seen.dy is None:
        return [grave(name, "MISSING", "its backward was not called")], 0
    if seen.dy.shape != seen.y_shape:
        return [grave(name, "SHAPE", f"its backward is given dy of shape {seen.dy.shape}; expected {seen.y_shape}")], 0
    finite = array_module(seen.x).isfinite
    if not bool(finite(seen.x).all()):
        return [grave(name, "INCONCLUSIVE", "its input has NaN or inf")], 0
    dy = seen.dy if bool(finite(seen.dy).all()) else None  # else another layer's fault would show here, too
    problem = LayerProblem(layer, seen.x, None, 0.0, dy, options.seed)
    claimed, faults = problem.claims()
    grads, rows = only_finite(claimed)
    rows += [grave(fault.where, fault.verdict, str(fault)) for fault in faults]
    if grads:
        rows += _compared(problem, grads, name, _has_children(layer), options)
    for row in rows:
        if row.name not in layer.parameters() and row.name != name:
            row.name = f"{name}, {row.name}"
    return rows, problem.evaluations


def _compared(problem: LayerProblem, grads: dict[str, Array], name: str, whole: bool, options: _Options) -> list[Row]:
    """The rows of the tensors, or of a whole layer as one."""
    measure = Measure(problem, grads, options.rng)

    def start(method: str) -> Checker:
        return Checker(problem, grads, method, options.tolerance, options.rng, measure)

    def check(checker: Checker, tensor: str, confirm: bool = True) -> Row:
        return checker.together(tensor, confirm) if whole else checker.along(tensor, 1, confirm)

    auto, tensors = options.method == "auto", [name] if whole else [*grads]
    checker = start(options.first)
    if auto and not _takes_complex(checker, options):
        checker = start("referee")
    outermost = not problem.layer.path
    rows = [check(checker, tensor, outermost and whole) for tensor in tensors]
    if checker.is_complex and not whole and not checker.confirmed_together():
        rows = [check(checker, tensor) for tensor in tensors]
    locate(checker, rows)
    again = settle(rows, checker, options.tolerance, auto, lambda other, row: check(other, row.name))
    if checker.method == "referee":
        again = [row.name for row in rows]
    options.by_richardson += [f"{name}, input" if tensor == "input" else tensor for tensor in again]
    return rows


def _takes_complex(checker: Checker, options: _Options) -> bool:
    """Whether a layer's forward takes complex numbers; no layer is asked if the outermost, which is the first, does."""
    if options.takes_complex:
        return True
    taken = not probe(checker).reason
    if options.takes_complex is None:
        options.takes_complex = taken
    return taken


def _has_children(layer: Layer) -> bool:
    return len(list(layer.layers())) > 1


def _is_within(path: str, around: str) -> bool:
    return not around or path.startswith(f"{around}.")
