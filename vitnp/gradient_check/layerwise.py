"""check_layers: every layer of a model on its own, with the input and the upstream gradient that it really has.

In a whole model one wrong backward spoils every gradient before it. Here each layer gets what it was given in a pass of
the whole model, wrong or not, and is held responsible for what it makes of it. So a fault shows in one row: that of the
layer without children that has it; or, where all children are right, that of the layer that puts them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.gradient_check.compare import Checker
from vitnp.gradient_check.derivatives import METHODS
from vitnp.gradient_check.problems import LayerProblem
from vitnp.gradient_check.report import Report, Row
from vitnp.layer import Layer
from vitnp.losses import softmax_cross_entropy


@dataclass
class _Seen:
    """What one layer was given in a pass."""

    layer: Layer
    x: Array | None = None
    dy: Array | None = None


def check_layers(
    model: Layer,
    x: Array,
    labels: Any = None,
    *,
    method: str = "complex",
    tolerance: float | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> Report:
    """Check every layer of a float64 model by itself, along one random direction a tensor.

    Layers without children have a row for each parameter and one for the input. Layers with children have one row: all
    of them move along one direction; it is left out where one of the children is wrong, as it must be wrong with it.

    Args:
        model, x, labels, label_smoothing, seed: as in `gradcheck`.
        method: "complex", "richardson", "5point" or "central".
        tolerance: as in `gradcheck`.

    Returns:
        a Report; the verdict MISSING names a layer whose backward was not called.

    Raises:
        TypeError, ValueError: as `gradcheck`.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    start, rng = time.perf_counter(), np.random.default_rng(seed)
    rows, evaluations, around = list[Row](), 0, 0
    wrong: list[str] = []
    limit = METHODS[method].tolerance if tolerance is None else tolerance
    for seen in reversed(_record(model, x, labels, label_smoothing, rng, seed)):  # children after their parents
        found, count = _check_one(seen, method, limit, seed, rng)
        evaluations += count
        path = seen.layer.path
        if _has_children(seen.layer) and any(_is_within(place, path) for place in wrong):
            around += any(row.verdict not in ("PASS", "ZERO") for row in found)
            continue
        rows += found
        wrong += [path for row in found if row.verdict not in ("PASS", "ZERO")]
    notes = [f"{around} layers around it are wrong with it"] if around else []
    report = Report(f"each layer of {model!r}", method, "directions", limit, rows[::-1], notes)
    report.evaluations, report.seconds = evaluations, time.perf_counter() - start
    return report


def _record(model: Layer, x: Array, labels: Any, smoothing: float, rng: np.random.Generator, seed: int) -> list[_Seen]:
    """Take a pass through a copy of the model, and return what each of its layers was given, parents first."""
    copy = model.astype("float64") if x.dtype == np.float64 else model
    layers = [_Seen(layer) for layer in copy.layers()]
    for seen in layers:
        _watch(seen)
    ctx = Context(train=True, rng=seed)
    y = copy.forward(x, ctx)
    dy = rng.standard_normal(y.shape) if labels is None else softmax_cross_entropy(y, labels, smoothing)[1]
    copy.backward(dy, ctx)
    for seen in layers:
        del seen.layer.forward, seen.layer.backward  # the wrappers, not the methods of the class
    return layers


def _watch(seen: _Seen) -> None:
    """Wrap the two methods of a layer so that what they are given is kept."""
    forward, backward = seen.layer.forward, seen.layer.backward

    def keep_x(x: Array, ctx: Context) -> Array:
        seen.x = x.copy()
        return forward(x, ctx)

    def keep_dy(dy: Array, ctx: Context) -> Array:
        seen.dy = dy.copy()
        return backward(dy, ctx)

    _replace(seen.layer, forward=keep_x, backward=keep_dy)


def _replace(layer: Layer, **methods: Callable[..., Array]) -> None:
    for name, method in methods.items():
        setattr(layer, name, method)


def _check_one(
    seen: _Seen, method: str, tolerance: float, seed: int, rng: np.random.Generator
) -> tuple[list[Row], int]:
    layer, name = seen.layer, seen.layer.path or "the whole"
    if seen.x is None:
        return [], 0  # it takes no part, as a dropout of rate 0 may
    if seen.dy is None:
        return [_grave(name, "MISSING", "its backward was not called")], 0
    problem = LayerProblem(layer, seen.x, None, 0.0, seen.dy, rng, seed)
    grads, faults = problem.claims()
    rows = [_grave(fault.where, fault.verdict, str(fault)) for fault in faults]
    checker = Checker(problem, grads, method, tolerance, rng)
    if _has_children(layer):
        rows.append(checker.together(name))
    else:
        rows += [checker.along(tensor, 1) for tensor in grads]
        checker.locate(rows)
        for row in rows:
            row.name = f"{name}, input" if row.name == "input" else row.name
    return rows, checker.evaluations


def _grave(name: str, verdict: str, text: str) -> Row:
    return Row(name, (), "", float("inf"), None, float("nan"), float("nan"), verdict, text)


def _has_children(layer: Layer) -> bool:
    return len(list(layer.layers())) > 1


def _is_within(path: str, around: str) -> bool:
    return not around or path.startswith(f"{around}.")
