"""Numeric derivatives of a problem, and their comparison with the claimed gradients, one tensor at a time.

A difference is wrong by more than rounding where the function has a kink within its step, or bends strongly; so before
a gradient fails, the place is looked at again, with smaller steps and from both sides. And before it fails by a complex
step, a difference must agree that it is wrong, for a function may lose imaginary parts on one way of many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.gradient_check.derivatives import EPSILON, METHODS, Estimate
from vitnp.gradient_check.hints import explain, explain_samples
from vitnp.gradient_check.problems import Problem
from vitnp.gradient_check.report import Row

LOCATE_BUDGET_S = 10.0  # for the worst elements of tensors that have failed
EXPLAIN_BUDGET_S = 3.0  # for the numeric gradient of one of them
EXPLAINED = 3  # of them, the nearest to the loss
SAMPLES = 24  # coordinates of a tensor that is too large for that
NEGLIGIBLE = 1e-12  # of the largest gradient: below it, a tensor's gradient is called zero
FLOOR = 1e-8  # of the largest gradient: what an error is measured against at least
NOISE = 1e-14  # of the largest gradient: what rounding may do to one that is the difference of such
TRUSTED = 10  # error bars by which a difference may be off
WIDE = 1e-3  # of a gradient: a wider error bar cannot tell right from wrong
SHRINKS = (1.0, 0.1, 0.01)  # of a difference's step, as long as it does not agree
SUSPECTS = 50  # elements of a tensor that are looked at again
LOST = "LOST"  # the verdict on the method, where forward loses imaginary parts on the way from one tensor
ROUGHLY = 1e-5  # of a gradient: how closely another method must agree to acquit it


class Found(NamedTuple):
    """The numeric gradient of a tensor, in every coordinate, and the error bars of its entries."""

    numeric: Array
    bars: Array


class Checker:
    """Compares the gradients of a problem with derivatives by one method."""

    def __init__(
        self,
        problem: Problem,
        grads: Mapping[str, Array],
        method: str,
        tolerance: float | None,
        rng: np.random.Generator,
    ) -> None:
        self.problem, self.grads, self.method, self.rng = problem, grads, method, rng
        self.tolerance = METHODS[method].tolerance if tolerance is None else tolerance
        self.evaluations = 0
        self.epsilon = EPSILON  # to which the function's values are known
        self.largest = max(float(abs(grad).max()) for grad in grads.values())
        self.noise = NOISE * max(self.largest, problem.upstream)
        self.sizes = _sizes(problem.arrays)
        self._failed: dict[str, tuple[Array, float, float]] = {}  # direction, difference along it, scale
        self.errors: dict[str, Array] = {}  # relative, of every coordinate, where all were compared

    # -- derivatives ------------------------------------------------------------------------------------------------

    def derivative(self, directions: Mapping[str, Array], method: str | None = None, shrink: float = 1.0) -> Estimate:
        """Return the derivative of the loss when the arrays of these names move along these directions."""
        how, arrays = METHODS[method or self.method], self.problem.arrays

        def f(t: complex) -> complex:
            self.evaluations += 1
            value: complex = self.problem.value({name: arrays[name] + t * along for name, along in directions.items()})
            return value

        size = 1.0 if how is METHODS["complex"] else min(self.sizes[name] for name in directions)
        return how.estimate(f, how.step * size * shrink, self.epsilon)

    def coordinate(self, name: str, index: int, method: str | None = None, shrink: float = 1.0) -> Estimate:
        """Return the partial derivative by one element, counted in the flattened array."""
        return self.derivative({name: self._unit(name, index)}, method, shrink)

    def _unit(self, name: str, index: int) -> Array:
        array = self.problem.arrays[name]
        direction = array_module(array).zeros(array.shape, array.dtype)
        direction.reshape(-1)[index] = 1
        return direction

    def seconds_a_coordinate(self) -> float:
        """Return how long the derivative by one element takes."""
        start = time.perf_counter()
        self.coordinate(next(iter(self.problem.arrays)), 0)
        return time.perf_counter() - start

    def _every_coordinate(self, name: str) -> Found:
        xp, array = array_module(self.problem.arrays[name]), self.problem.arrays[name]
        found = [self.coordinate(name, index) for index in range(array.size)]
        return Found(*(xp.asarray(np.array(column)).reshape(array.shape) for column in zip(*found, strict=True)))

    # -- one tensor -------------------------------------------------------------------------------------------------

    def row(self, name: str, mode: str, directions: int) -> Row:
        """Check one tensor."""
        return self.full(name) if mode == "full" else self.along(name, directions)

    def full(self, name: str) -> Row:
        """Compare every coordinate."""
        analytic, (numeric, bars) = self.grads[name], self._every_coordinate(name)
        scale = max(float(abs(analytic).max()), float(abs(numeric).max()), FLOOR * self.largest)
        self._measure_again(name, numeric, bars, scale)
        gap = abs(analytic - numeric)
        excess = gap - TRUSTED * bars - self.noise
        worst = int(excess.argmax())
        at = [float(array.reshape(-1)[worst]) for array in (analytic, numeric, gap, excess)]
        row = self._row(name, f"all {analytic.size}", at[2] / scale if scale else 0.0, worst, at[0], at[1])
        wide, zero = TRUSTED * float(bars.max()), NEGLIGIBLE * self.largest
        if float(abs(analytic).max()) <= zero and float((abs(numeric) - TRUSTED * bars).max()) <= zero:
            row.verdict, row.error = "ZERO", 0.0
            return row
        self.errors[name] = gap / scale if scale else gap
        if not at[3] <= self.tolerance * scale:
            others = _first(excess > self.tolerance * scale, SUSPECTS)
            self._acquit(row, [worst, *(index for index in others if index != worst)], scale)
            if row.verdict == "FAIL":
                row.hint = explain(name, analytic, numeric, self.problem.batch, scale, self.tolerance)
        elif wide > WIDE * scale:
            row.verdict, row.hint = "INCONCLUSIVE", _too_wide(wide / scale)
        return row

    def _measure_again(self, name: str, numeric: Array, bars: Array, scale: float) -> None:
        """Take differences that do not agree again with smaller steps, in place, until one is wrong after all."""
        if self.method == "complex":
            return
        allowed = self.tolerance * scale + TRUSTED * bars + self.noise
        suspect = ~((abs(self.grads[name] - numeric) <= allowed) & (TRUSTED * bars <= WIDE * scale))
        for index in _first(suspect, suspect.size):
            claimed = float(self.grads[name].reshape(-1)[index])
            (value, bar), verdict = self._measured({name: self._unit(name, index)}, claimed, scale, 1.0)
            if verdict == "FAIL":
                return
            numeric.reshape(-1)[index], bars.reshape(-1)[index] = value, bar

    def along(self, name: str, directions: int) -> Row:
        """Compare the derivative along random directions."""
        analytic = self.grads[name]
        xp, length = array_module(analytic), math.sqrt(analytic.size)  # of a direction, on average
        rms = math.sqrt(float((analytic * analytic).mean()))
        row = self._row(name, f"{directions} direction{'s' if directions > 1 else ''}", -1.0, None, 0.0, 0.0)
        zeros, zero = 0, length * NEGLIGIBLE * self.largest
        for _ in range(directions):
            direction = xp.asarray(self.rng.standard_normal(analytic.shape))
            claimed, floor = float((analytic * direction).sum()), length * max(rms, FLOOR * self.largest)
            (numeric, bar), verdict = self._measured({name: direction}, claimed, floor, length)
            scale = max(floor, abs(numeric))
            error = abs(claimed - numeric) / scale if scale else 0.0
            if not error <= row.error:
                row.error, row.analytic, row.numeric = math.inf if math.isnan(error) else error, claimed, numeric
            zeros += length * rms <= zero and abs(numeric) - TRUSTED * bar <= zero
            if verdict == "FAIL":
                row.verdict = "FAIL"
                self._failed[name] = direction, claimed - numeric, scale / length
                return row
            if verdict == "INCONCLUSIVE":
                row.verdict, row.hint = verdict, _too_wide(TRUSTED * bar / scale)
        if zeros == directions:
            row.verdict, row.error, row.hint = "ZERO", 0.0, ""
        return row

    def _measured(
        self, directions: Mapping[str, Array], claimed: float, scale: float, length: float
    ) -> tuple[Estimate, str]:
        """Return a derivative along directions of this length, and PASS, FAIL or INCONCLUSIVE.

        A difference that does not agree is taken again with smaller steps: there may be a kink within the step, or so
        strong a curvature that its error bar is too wide. The rounding of sums is allowed for: where a gradient is what
        two large ones have left, it has no more digits than they.
        """
        tried = []
        for shrink in SHRINKS if self.method != "complex" else (1.0,):
            found = self.derivative(directions, shrink=shrink)
            limit = max(scale, abs(found.value))
            allowed = self.tolerance * limit + TRUSTED * found.bar + self.noise * length
            if abs(claimed - found.value) <= allowed and TRUSTED * found.bar <= WIDE * limit:
                return found, "PASS"
            tried.append((found, "INCONCLUSIVE" if abs(claimed - found.value) <= allowed else "FAIL"))
        return tried[0]

    def together(self, name: str) -> Row:
        """Compare the derivative when all tensors move at once, each along its own random direction."""
        directions = {
            tensor: array_module(grad).asarray(self.rng.standard_normal(grad.shape) / math.sqrt(grad.size))
            for tensor, grad in self.grads.items()
        }
        claimed = sum(float((self.grads[tensor] * along).sum()) for tensor, along in directions.items())
        floor = math.sqrt(sum(float((grad * grad).mean()) for grad in self.grads.values()))
        (numeric, _), verdict = self._measured(directions, claimed, floor, 1.0)
        gap = abs(claimed - numeric)
        error = gap / max(floor, abs(numeric)) if gap else 0.0
        return Row(name, (), "together", math.inf if math.isnan(error) else error, None, claimed, numeric, verdict)

    def _row(self, name: str, checked: str, error: float, worst: int | None, analytic: float, numeric: float) -> Row:
        shape = self.problem.arrays[name].shape
        index = None if worst is None else tuple(int(i) for i in np.unravel_index(worst, shape))
        return Row(name, shape, checked, math.inf if math.isnan(error) else error, index, analytic, numeric, "PASS")

    # -- a tensor that fails ----------------------------------------------------------------------------------------

    def locate(self, rows: list[Row]) -> None:
        """Find the worst elements of tensors whose direction has failed, the nearest to the loss first.

        There the cause is; what lies before inherits the error, and is looked at as long as there is time.
        """
        start = time.perf_counter()
        failed = [row for row in reversed(rows) if row.name in self._failed]
        for i, row in enumerate(failed):
            if i < EXPLAINED or time.perf_counter() - start < LOCATE_BUDGET_S:
                self._locate(row, *self._failed[row.name])
            if i < EXPLAINED and row.verdict == "FAIL":
                self._explain(row)

    def _locate(self, row: Row, direction: Array, difference: float, scale: float) -> None:
        """Name the worst element, or say why the difference is not the gradient's fault."""
        name = row.name
        worst = self._halve(name, direction, difference)
        row.index = tuple(int(i) for i in np.unravel_index(worst, row.shape))
        row.analytic, row.numeric = float(self.grads[name].reshape(-1)[worst]), self.coordinate(name, worst).value
        self._acquit(row, [worst], max(scale, abs(row.analytic), abs(row.numeric)))
        if row.verdict == "KINK":  # at one element; the others have not been looked at
            row.verdict, row.hint = "INCONCLUSIVE", f"{row.hint}; use mode full"

    def _halve(self, name: str, direction: Array, difference: float) -> int:
        """Halve the direction, keep the half in which the derivatives differ more, until one element is left."""
        analytic, along = self.grads[name].reshape(-1), direction.reshape(-1)
        low, high = 0, analytic.size
        while high - low > 1:
            middle = (low + high) // 2
            half = array_module(direction).zeros(direction.shape, direction.dtype)
            half.reshape(-1)[low:middle] = along[low:middle]
            lower = float((analytic[low:middle] * along[low:middle]).sum()) - self.derivative({name: half}).value
            upper = difference - lower  # derivatives along parts of a direction add up
            low, high, difference = (low, middle, lower) if abs(lower) >= abs(upper) else (middle, high, upper)
        return low

    def _acquit(self, row: Row, suspects: list[int], scale: float) -> None:
        """Give the row its verdict: FAIL at the first suspect element that has no excuse, else what excuses them."""
        for index in suspects:
            kink = self._kink(row.name, index, scale)
            lost = self._lost(row.name, index, scale) if self.method == "complex" and not kink else ""
            row.verdict, row.hint = ("KINK", kink) if kink else (LOST, lost) if lost else ("FAIL", "")
            if row.verdict == "FAIL":
                row.index = tuple(int(i) for i in np.unravel_index(index, row.shape))
                row.analytic = float(self.grads[row.name].reshape(-1)[index])
                row.numeric = self.coordinate(row.name, index).value
                return

    def _kink(self, name: str, index: int, scale: float) -> str:
        """Return the two slopes where they stay apart however small the step, and the gradient lies between them."""
        analytic, direction = float(self.grads[name].reshape(-1)[index]), self._unit(name, index)
        slopes = []
        for h in (1e-4 * self.sizes[name], 5e-5 * self.sizes[name]):
            left, here, right = (self._value(name, direction, step) for step in (-h, 0.0, h))
            slopes.append(((here - left) / h, (right - here) / h))
        (left, right), (nearer_left, nearer_right) = slopes
        gap, nearer = abs(right - left), abs(nearer_right - nearer_left)
        low, high = sorted((nearer_left, nearer_right))
        if gap > WIDE * scale and nearer > 0.75 * gap and low - WIDE * scale <= analytic <= high + WIDE * scale:
            return f"a kink: the slope is {nearer_left:.4g} on the left, {nearer_right:.4g} on the right"
        return ""

    def _value(self, name: str, direction: Array, step: float) -> float:
        self.evaluations += 1
        return float(self.problem.value({name: self.problem.arrays[name] + step * direction}).real)

    def _lost(self, name: str, index: int, scale: float) -> str:
        """Return an excuse where a difference sides with the gradient against the complex step."""
        analytic = float(self.grads[name].reshape(-1)[index])
        claimed, (numeric, bar) = self.coordinate(name, index).value, self.coordinate(name, index, "richardson")
        if abs(claimed - analytic) <= TRUSTED * bar + ROUGHLY * scale:
            return ""  # the error is too small for differences to see
        if TRUSTED * bar <= WIDE * scale and abs(analytic - numeric) <= TRUSTED * bar + ROUGHLY * scale:
            return "a difference agrees with the gradient: forward loses imaginary parts here; use method richardson"
        return ""

    def _explain(self, row: Row) -> None:
        """Find what the error of a large tensor looks like, in all coordinates if there is time, else in a sample."""
        start, analytic = time.perf_counter(), self.grads[row.name]
        self.coordinate(row.name, 0)
        if analytic.size * (time.perf_counter() - start) <= EXPLAIN_BUDGET_S:
            numeric = self._every_coordinate(row.name).numeric
            scale = max(float(abs(analytic).max()), float(abs(numeric).max()), FLOOR * self.largest)
            self.errors[row.name] = abs(analytic - numeric) / scale
            row.hint = explain(row.name, analytic, numeric, self.problem.batch, scale, self.tolerance)
            return
        chosen = self.rng.choice(analytic.size, min(SAMPLES, analytic.size), replace=False).tolist()
        claimed = np.array([float(analytic.reshape(-1)[i]) for i in chosen])
        row.hint = explain_samples(
            claimed, np.array([self.coordinate(row.name, i).value for i in chosen]), self.problem.batch
        )


def _too_wide(bar: float) -> str:
    return (
        f"the difference is known to {bar:.0e} only, for rounding or a kink within the step: use complex, or mode full"
    )


def _first(mask: Array, most: int) -> list[int]:
    """Return the first places in the flattened mask where it is true, `most` at most."""
    return [int(place) for place in mask.reshape(-1).nonzero()[0][:most]]


def _sizes(arrays: Mapping[str, Array]) -> dict[str, float]:
    """Return the root mean square of each array, against which steps are measured.

    An array that starts at zero or nearly so, as biases do, is as large as a hundredth of the largest.
    """
    rms = {name: math.sqrt(float((array * array).mean())) for name, array in arrays.items()}
    floor = max(rms.values()) / 100 or 1.0
    return {name: max(size, floor) for name, size in rms.items()}
