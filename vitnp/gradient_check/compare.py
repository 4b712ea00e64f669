"""Numeric derivatives of a problem, and their comparison with the claimed gradients, one tensor at a time.

A difference is wrong by more than rounding where the function has a kink within its step, or bends strongly; so before
a gradient fails, the place is looked at again, with smaller steps and from both sides. And a complex step is wrong
where a function loses imaginary parts, on one way of many: so before a gradient fails by it, differences with the
narrowest error bars that there are must side with it. Where they side with the gradient, differences decide the tensor.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.gradient_check.derivatives import METHODS, REFEREE, Estimate, Method, rounding, scatter
from vitnp.gradient_check.hints import explain, explain_samples
from vitnp.gradient_check.problems import Problem, first_place
from vitnp.gradient_check.report import Row

LOCATE_BUDGET_S = 10.0  # for the worst elements of tensors that have failed
SUSPECTS_BUDGET_S = 10.0  # for looking again at what differs in one tensor; what is left then is said to be left
EXPLAIN_BUDGET_S = 3.0  # for the numeric gradient of one of them
EXPLAINED = 3  # of them, the nearest to the loss
SAMPLES = 24  # coordinates of a tensor that is too large for that
NEGLIGIBLE = 1e-12  # of the largest gradient: below it, a tensor's gradient is called zero
FLOOR = 1e-8  # of the largest gradient: what an error is measured against at least
NOISE = 1e-14  # of the largest gradient: what rounding may do to one that is the difference of such
TRUSTED = 10  # error bars by which a difference may be off
WIDE = 1e-3  # of a gradient: a wider error bar cannot tell right from wrong, unless the tolerance is wider still
SHRINKS = (1.0, 0.1, 0.01)  # of a difference's step, as long as it does not agree
JUDGED = (*SHRINKS, 1e-3, 1e-4)  # of the referee's, before it condemns
LOST = "LOST"  # forward loses imaginary parts on the way from this tensor; `settle` turns it into a verdict
SCATTER_STEPS = (1e-7, 1e-5)  # of the arrays: far below what differences need, above the rounding of float32
FLOAT32 = 1e-9  # of a value: more noise is what float32 leaves, even after a mean over many
AWAY = 1e-3  # of the arrays: so far from the point itself, which may be a kink, the scatter is measured
JITTER = 1e-14  # of the arrays: enough to draw all rounding anew, too little to change a derivative


class Found(NamedTuple):
    """The numeric gradient of a tensor, in every coordinate, and the error bars of its entries."""

    numeric: Array
    bars: Array


@dataclass
class _Size:
    """How large are a tensor's claimed gradient, the larger of both, their gap, an error bar, and the direction."""

    analytic: float
    own: float
    apart: float
    bar: float
    length: float


class Checker:
    """Compares the gradients of a problem with derivatives by one method. `grads` are finite, and there is one."""

    def __init__(
        self,
        problem: Problem,
        grads: Mapping[str, Array],
        method: str,
        tolerance: float | None,
        rng: np.random.Generator,
    ) -> None:
        self.problem, self.grads, self.method, self.rng = problem, grads, method, rng
        self.how = REFEREE if method == "referee" else METHODS[method]
        self.tolerance = self.how.tolerance if tolerance is None else tolerance
        self.wide = max(WIDE, self.tolerance)
        self.largest = max(float(abs(grad).max()) for grad in grads.values())
        self.rounding = NOISE * max(self.largest, problem.upstream)
        self.leaky = False  # whether imaginary parts are known to get lost somewhere
        self._failed: dict[str, tuple[Array, float]] = {}  # direction, difference along it
        self._last: tuple[Mapping[str, Array], Estimate] | None = None  # complex step: `everywhere` is asked for twice
        self.errors: dict[str, Array] = {}  # relative, of every coordinate, where all were compared

    # -- derivatives ------------------------------------------------------------------------------------------------

    def derivative(
        self,
        directions: Mapping[str, Array],
        how: Method | None = None,
        shrink: float = 1.0,
        start: Mapping[str, Array] | None = None,
        noise: float | None = None,
    ) -> Estimate:
        """Return the derivative of the loss when the arrays of these names move along these directions.

        `start` is where all arrays are instead of where they are, `noise` that of the values, measured unless given.
        """
        how, arrays = how or self.how, start or self.problem.arrays

        def f(t: complex) -> complex:
            still = {} if start is None else {name: array + 0 * t for name, array in start.items()}
            moved = {name: arrays[name] + t * along for name, along in directions.items()}
            value: complex = self.problem.value(still | moved)
            return value

        if how is METHODS["complex"]:
            if start is not None or self._last is None or self._last[0] is not directions:
                self._last = (directions if start is None else {}), how.estimate(f, how.step, 0.0)
            return self._last[1]
        noise = self.noise if noise is None else noise
        return how.estimate(f, how.step * shrink * self._size(directions), noise)

    def _size(self, directions: Mapping[str, Array]) -> float:
        return min(self.sizes[name] for name in directions)

    @cached_property
    def sizes(self) -> dict[str, float]:
        """The root mean square of each array, against which steps are measured.

        An array that starts at zero or nearly so, as biases do, is as large as a hundredth of the largest.
        """
        rms = {name: math.sqrt(float((array * array).mean())) for name, array in self.problem.arrays.items()}
        floor = max(rms.values()) / 100 or 1.0
        return {name: max(size, floor) for name, size in rms.items()}

    def coordinate(self, name: str, index: int) -> Estimate:
        """Return the partial derivative by one element, counted in the flattened array."""
        return self.derivative({name: self._unit(name, index)})

    @cached_property
    def noise(self) -> float:
        """By how much the function's values scatter: little more than nothing, unless forward rounds to float32.

        They are taken along a random direction in all arrays, of their own size.
        """
        arrays, rng = self.problem.arrays, self.rng.spawn(1)[0]
        along = {
            name: array_module(array).asarray(rng.standard_normal(array.shape)) * self.sizes[name]
            for name, array in arrays.items()
        }

        def f(t: complex) -> complex:
            value: complex = self.problem.value({name: arrays[name] + (AWAY + t) * along[name] for name in arrays})
            return value

        for step in SCATTER_STEPS:
            found = scatter(f, step)
            if found > 0:  # else the step is too small to change anything
                return found if math.isfinite(found) else 0.0
        return 0.0

    @cached_property
    def is_coarse(self) -> bool:
        """Whether differences suffer from values that are known no better than if something were float32."""
        return self.method != "complex" and self.noise > FLOAT32 * self._here > 0

    @cached_property
    def _here(self) -> float:
        """The size of the function's value."""
        return abs(float(self.problem.value(self.problem.arrays).real))

    def about_noise(self) -> str:
        """The note on values that are known so badly, or ""."""
        return COARSE.format(self.noise / self._here) if self.is_coarse else ""

    def _normal(self, array: Array) -> Array:
        return array_module(array).asarray(self.rng.standard_normal(array.shape))

    def _unit(self, name: str, index: int) -> Array:
        array = self.problem.arrays[name]
        direction = array_module(array).zeros(array.shape, array.dtype)
        direction.reshape(-1)[index] = 1
        return direction

    @cached_property
    def everywhere(self) -> dict[str, Array]:
        """A random direction, of about unit length, for every array that has a gradient."""
        return {name: self._normal(grad) / math.sqrt(grad.size) for name, grad in self.grads.items()}

    def seconds_a_coordinate(self) -> float:
        """Return how long the derivative by one element takes."""
        name = next(iter(self.problem.arrays))
        if self.method != "complex":
            self.coordinate(name, 0)  # it measures the noise, once
        start = time.perf_counter()
        self.coordinate(name, 0)
        return time.perf_counter() - start

    def _every_coordinate(self, name: str) -> Found:
        xp, array = array_module(self.problem.arrays[name]), self.problem.arrays[name]
        found = [self.coordinate(name, index) for index in range(array.size)]
        return Found(*(xp.asarray(np.array(column)).reshape(array.shape) for column in zip(*found, strict=True)))

    # -- one tensor -------------------------------------------------------------------------------------------------

    def row(self, name: str, mode: str, directions: int) -> Row:
        """Check one tensor."""
        if self.leaky and self.method == "complex":
            direction = self._normal(self.grads[name]) / math.sqrt(self.grads[name].size)
            if self.disagreement({name: direction}):
                return Row(name, direction.shape, "", 0.0, None, 0.0, 0.0, LOST, LOSES)
        return self.full(name) if mode == "full" else self.along(name, directions)

    def full(self, name: str) -> Row:
        """Compare every coordinate."""
        analytic, (numeric, bars) = self.grads[name], self._every_coordinate(name)
        xp = array_module(numeric)
        own = max(float(abs(analytic).max()), _largest(numeric))
        scale = max(own, FLOOR * self.largest)
        self._measure_again(name, numeric, bars, scale)
        known = xp.isfinite(numeric)
        gap, bars = xp.where(known, abs(analytic - numeric), 0.0), xp.where(known, bars, 0.0)
        excess = gap - TRUSTED * bars - self.rounding
        fails = float(excess.max()) > self.tolerance * scale
        worst = int((excess if fails else gap).argmax())
        apart, n = (float(array.reshape(-1)[worst]) for array in (gap, numeric))
        row = self._row(name, f"all {analytic.size}", apart / scale if scale else 0.0, worst, n)
        self.errors[name] = gap / scale if scale else gap
        if not bool(known.all()):
            self._set_element(row, int((~known).reshape(-1).argmax()), math.nan)
            row.verdict, row.hint = "INCONCLUSIVE", NOT_FINITE
        if fails:
            self._judge_all(row, _places(excess > self.tolerance * scale, worst))
            if row.verdict == "FAIL":
                row.hint = explain(name, analytic, numeric, self.problem.batch, scale, self.tolerance)
        elif row.verdict == "PASS":
            size = _Size(float(abs(analytic).max()), own, apart, float(bars.max()), 1.0)
            self._qualify(row, {name: self._unit(name, worst)}, size)
        return row

    def _measure_again(self, name: str, numeric: Array, bars: Array, scale: float) -> None:
        """Take differences that do not agree again with smaller steps, in place, until one is wrong after all."""
        if self.method == "complex":
            return
        allowed = self.tolerance * scale + TRUSTED * bars + self.rounding
        suspect = ~((abs(self.grads[name] - numeric) <= allowed) & (TRUSTED * bars <= self.wide * scale))
        for index in _places(suspect):
            claimed = float(self.grads[name].reshape(-1)[index])
            (value, bar), verdict = self._measured({name: self._unit(name, index)}, claimed, scale, 1.0)
            if verdict == "FAIL":
                return
            numeric.reshape(-1)[index], bars.reshape(-1)[index] = value, bar

    def along(self, name: str, directions: int) -> Row:
        """Compare the derivative along random directions."""
        analytic = self.grads[name]
        length, rms = math.sqrt(analytic.size), math.sqrt(float((analytic * analytic).mean()))
        row = self._row(name, f"{directions} direction{'s' if directions > 1 else ''}", -1.0, None, 0.0)
        found = dict[str, str]()
        for _ in range(directions):
            direction = {name: self._normal(analytic)}
            claimed, floor = float((analytic * direction[name]).sum()), length * max(rms, FLOOR * self.largest)
            (numeric, bar), verdict = self._measured(direction, claimed, floor, length)
            apart, size = abs(claimed - numeric), abs(numeric) if math.isfinite(numeric) else 0.0
            scale = max(floor, size)
            error = math.inf if math.isnan(apart) else apart / scale if scale else 0.0
            if error > row.error:
                row.error, row.analytic, row.numeric = error, claimed, numeric
            if verdict == "FAIL":
                row.verdict, row.hint = "FAIL", ""
                self._failed[name] = direction[name], claimed - numeric
                return row
            one = dataclasses.replace(row, verdict=verdict, error=error, analytic=claimed, numeric=numeric)
            self._qualify(one, direction, _Size(length * rms, max(length * rms, size), apart, bar, length))
            found.setdefault(one.verdict, one.hint)
        row.verdict = next(verdict for verdict in ("INCONCLUSIVE", "PASS", "ZERO") if verdict in found)
        row.error, row.hint = 0.0 if row.verdict == "ZERO" else row.error, found[row.verdict]
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
            if not math.isfinite(found.value):
                tried.append((found, "INCONCLUSIVE"))
                continue
            limit = max(scale, abs(found.value))
            allowed = self.tolerance * limit + TRUSTED * found.bar + self.rounding * length
            if abs(claimed - found.value) <= allowed and TRUSTED * found.bar <= self.wide * limit:
                return found, "PASS"
            tried.append((found, "INCONCLUSIVE" if abs(claimed - found.value) <= allowed else "FAIL"))
        return next((one for one in tried if math.isfinite(one[0].value)), tried[0])

    def together(self, name: str) -> Row:
        """Compare the derivative when all tensors move at once, each along its own random direction."""
        directions = self.everywhere
        claimed = sum(float((self.grads[tensor] * along).sum()) for tensor, along in directions.items())
        floor = math.sqrt(sum(float((grad * grad).mean()) for grad in self.grads.values()))
        (numeric, bar), verdict = self._measured(directions, claimed, floor, 1.0)
        gap, scale = abs(claimed - numeric), max(floor, abs(numeric)) if math.isfinite(numeric) else floor
        error = gap / scale if gap else 0.0
        row = Row(name, (), "together", math.inf if math.isnan(error) else error, None, claimed, numeric, verdict)
        if scale == 0:
            row.verdict = "ZERO"
        elif verdict == "FAIL":
            row.verdict, row.hint = self._judge(directions, claimed, numeric)
        elif verdict == "INCONCLUSIVE":
            row.hint = TOO_WIDE.format(TRUSTED * bar / scale) if math.isfinite(numeric) else NOT_FINITE
        return row

    def _qualify(self, row: Row, direction: Mapping[str, Array], size: _Size) -> None:
        """Say of a row that does not fail by what it passes, if not by the tolerance, and whether it was seen at all.

        Where a tensor's gradient is far below others', rounding of theirs may hide all of it.
        """
        bar, largest = TRUSTED * size.bar, size.length * self.largest
        allowed = bar + self.rounding * size.length
        seen = size.apart <= self.tolerance * size.own and bar <= self.wide * size.own
        if not math.isfinite(row.numeric):
            row.verdict, row.hint = "INCONCLUSIVE", NOT_FINITE
        elif size.own == 0:
            row.verdict, row.error, row.hint = "ZERO", 0.0, ""
        elif size.apart > self.tolerance * size.own + bar and self._is_no_rounding(direction):
            row.verdict, row.hint = "INCONCLUSIVE", DIFFERS.format(size.own / max(size.own, largest))
        elif size.analytic <= NEGLIGIBLE * largest and size.own <= NEGLIGIBLE * largest + bar and not seen:
            row.verdict, row.error, row.hint = "ZERO", 0.0, NOT_COMPARED
        elif bar > self.wide * max(size.own, FLOOR * largest) or (self.is_coarse and row.error > self.tolerance):
            row.verdict, row.hint = "INCONCLUSIVE", TOO_WIDE.format(bar / size.own)
        elif allowed > self.wide * size.own and not seen:
            row.hint = NOT_COMPARED
        elif row.error > self.tolerance:
            what = "its own error bar" if bar > self.rounding * size.length else "the rounding of the largest gradient"
            row.hint = f"above the tolerance, but within {what}, {allowed / size.own:.0e}"

    def _is_no_rounding(self, direction: Mapping[str, Array]) -> bool:
        """Whether the derivative is more than rounding, and differs by more from what is claimed, however small it is.

        Rounding changes with the last digits of the arrays; a derivative hardly does.
        """
        (name, along), *_ = direction.items()
        claimed, (numeric, bar) = float((self.grads[name] * along).sum()), self.derivative(direction)
        spread = bar
        for _ in range(3):
            start = {key: array * (1 + JITTER * self._normal(array)) for key, array in self.problem.arrays.items()}
            spread = max(spread, abs(self.derivative(direction, start=start).value - numeric))
        return min(abs(claimed - numeric), abs(numeric)) > TRUSTED * spread

    def _row(self, name: str, checked: str, error: float, worst: int | None, numeric: float) -> Row:
        row = Row(name, self.problem.arrays[name].shape, checked, error, None, 0.0, 0.0, "PASS")
        if worst is not None:
            self._set_element(row, worst, numeric)
        return row

    def _set_element(self, row: Row, index: int, numeric: float) -> None:
        row.index = tuple(int(i) for i in np.unravel_index(index, row.shape))
        row.analytic, row.numeric = float(self.grads[row.name].reshape(-1)[index]), numeric

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

    def _locate(self, row: Row, direction: Array, difference: float) -> None:
        """Name the worst element, or say why the difference is not the gradient's fault."""
        worst = self._halve(row.name, direction, difference)
        self._set_element(row, worst, self.coordinate(row.name, worst).value)
        row.verdict, row.hint = self._judge({row.name: self._unit(row.name, worst)}, row.analytic, row.numeric)
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

    def _judge_all(self, row: Row, suspects: list[int]) -> None:
        """Give the row its verdict: FAIL at the first suspect element that has no excuse, else the gravest excuse."""
        start, found = time.perf_counter(), {row.verdict: row.hint}
        for done, index in enumerate(suspects):
            if done and time.perf_counter() - start > SUSPECTS_BUDGET_S:
                found.setdefault("INCONCLUSIVE", f"{len(suspects) - done} more that differ are left for want of time")
                break
            claimed, numeric = float(self.grads[row.name].reshape(-1)[index]), self.coordinate(row.name, index).value
            verdict, hint = self._judge({row.name: self._unit(row.name, index)}, claimed, numeric)
            found.setdefault(verdict, hint)
            if verdict in ("FAIL", LOST):
                self._set_element(row, index, numeric)
                row.error = float(self.errors[row.name].reshape(-1)[index])
                break
        row.verdict = next(verdict for verdict in ("FAIL", LOST, "INCONCLUSIVE", "KINK") if verdict in found)
        row.hint = found[row.verdict]

    def _judge(self, direction: Mapping[str, Array], claimed: float, numeric: float) -> tuple[str, str]:
        """Return the verdict on an element that differs, or a direction, and its excuse if it has one."""
        slopes = self.slopes(direction)
        return _at_kink(*slopes, claimed) if slopes else self._refereed(direction, claimed, numeric)

    def _refereed(self, direction: Mapping[str, Array], claimed: float, numeric: float) -> tuple[str, str]:
        """Return FAIL, unless differences with the narrowest bars side with the gradient, or with nobody."""
        excuse = (LOST, LOSES) if self.method == "complex" else ("INCONCLUSIVE", BENDS)
        seen = undecided = False
        for shrink in JUDGED:
            value, bar = self.derivative(direction, REFEREE, shrink)
            allowed = TRUSTED * bar + self.rounding
            claimed_fits, numeric_fits = abs(claimed - value) <= allowed, abs(numeric - value) <= allowed
            if claimed_fits != numeric_fits:
                return excuse if claimed_fits else ("FAIL", "")
            seen, undecided = seen or math.isfinite(value), undecided or claimed_fits
        if self.method != "complex":
            return excuse if undecided else ("FAIL", "")
        # A complex step knows what differences cannot see, unless imaginary parts are known to get lost.
        return excuse if seen and (self.leaky or not undecided) else ("FAIL", "")

    def slopes(self, direction: Mapping[str, Array]) -> tuple[float, float, float] | None:
        """Return the slopes on the left and on the right, and how well they are known, where they stay apart.

        Those of a smooth function come together with the step.
        """
        found, size = [], self._size(direction)
        for h in (1e-4 * size, 5e-5 * size):
            left, here, right = (self._value(direction, step) for step in (-h, 0.0, h))
            found.append(((here - left) / h, (right - here) / h))
        (left, right), (nearer_left, nearer_right) = found
        bar = TRUSTED * rounding(h, self.noise, left, here, right)
        gap, nearer = abs(right - left), abs(nearer_right - nearer_left)
        if not (gap > bar and 0.75 * gap < nearer < 1.25 * gap):  # half of it: it bends; twice: it jumps
            return None
        return nearer_left, nearer_right, bar + abs(nearer_left - left) + abs(nearer_right - right)

    def _value(self, direction: Mapping[str, Array], step: float) -> float:
        moved = {name: self.problem.arrays[name] + step * along for name, along in direction.items()}
        return float(self.problem.value(moved).real)

    def disagreement(self, directions: Mapping[str, Array], how: Method = REFEREE) -> tuple[float, float] | None:
        """Return a complex step and a difference along these directions, unless they agree.

        A kink within the step is no disagreement, so they need agree with one step only. The noise of the values is
        measured once it matters.
        """
        found, last = self.derivative(directions, METHODS["complex"]).value, None
        for shrink, noise in ((1.0, 0.0), *((shrink, None) for shrink in SHRINKS)):
            value, bar = self.derivative(directions, how, shrink, noise=noise)
            if math.isfinite(value):
                last = found, value
                if abs(found - value) <= TRUSTED * bar + self.rounding * len(directions):
                    return None
        return last

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


def _at_kink(left: float, right: float, slack: float, claimed: float) -> tuple[str, str]:
    """Return KINK for a gradient between the slopes of both sides, FAIL for one that no convention gives.

    Where several units have their kinks at once, as those of a ReLU layer whose input is zero, conventions give
    anything between nothing and the sum of both slopes; whether that is right cannot be seen from outside.
    """
    text = f"the slope is {left:.4g} on the left, {right:.4g} on the right"
    if min(left, right) - slack <= claimed <= max(left, right) + slack:
        return "KINK", f"a kink: {text}"
    if min(0.0, left + right) - slack <= claimed <= max(0.0, left + right) + slack:
        return "INCONCLUSIVE", f"several kinks at once: {text}"
    return "FAIL", ""


def settle(
    rows: list[Row], checker: Checker, tolerance: float | None, fall_back: bool, again: Callable[[Checker, Row], Row]
) -> list[str]:
    """Turn every LOST among the rows, in place, into a verdict; return the names of what differences have decided.

    With `fall_back` it is that of Richardson's differences, as `again` checks a row by them; without, it stays open.
    """
    lost = [place for place, row in enumerate(rows) if row.verdict == LOST]
    if not lost:
        return []
    by_differences = Checker(checker.problem, checker.grads, "referee", tolerance, checker.rng)
    by_differences.errors = checker.errors
    for place in lost:
        if fall_back:
            rows[place] = again(by_differences, rows[place])
        else:
            rows[place].verdict = "INCONCLUSIVE"
    by_differences.locate(rows)
    return [rows[place].name for place in lost] if fall_back else []


def only_finite(grads: Mapping[str, Array]) -> tuple[dict[str, Array], list[Row]]:
    """Return the gradients that are finite, and a row for each that is not: its NaN would spoil the others' scale."""
    good, rows = {}, []
    for name, grad in grads.items():
        wrong = ~array_module(grad).isfinite(grad)
        if bool(wrong.any()):
            place = first_place(wrong)
            value = float(grad[place])
            hint = f"it has NaN or inf: {value} at {place}"
            rows.append(Row(name, grad.shape, "", math.inf, place, value, math.nan, "FAIL", hint))
        else:
            good[name] = grad
    return good, rows


def check_tolerance(tolerance: Any) -> None:
    """Raise TypeError or ValueError for what is no relative error."""
    if tolerance is None:
        return
    if isinstance(tolerance, bool | str) or not hasattr(tolerance, "__float__"):
        raise TypeError(f"tolerance is {tolerance!r}; it must be a number, as 1e-8")
    if not 0 <= float(tolerance) < math.inf:
        raise ValueError(f"tolerance is {tolerance}; it must be a number from 0, as 1e-8")


def not_compared(rows: list[Row]) -> str:
    """The note on tensors whose gradient is too small beside others' to be seen, or ""."""
    names = [row.name for row in rows if row.hint == NOT_COMPARED]
    return f"{_first_of(names)}: {NOT_COMPARED}" if names else ""


def by_richardson(names: list[str]) -> str:
    """The note on tensors that differences have decided, or ""."""
    return f"{_first_of(names)} by richardson: forward loses imaginary parts on the way from there" if names else ""


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


COARSE = "forward's values are known to {:.0e} only, as where something is float32: use float64 throughout"
TOO_WIDE = "the difference is known to {:.0e} only, for rounding or kinks within the step; a complex step is not"
NOT_FINITE = "the numeric derivative is not finite: a step from here leaves where forward is defined"
NOT_COMPARED = "not compared in itself, as it is below the rounding of the largest gradient: check it alone"
DIFFERS = "it differs by more than rounding, but is {:.0e} of the largest gradient: check it alone"
BENDS = "smaller steps agree with the gradient: there are kinks within the step; use complex, or mode full"
LOSES = "a difference disagrees with the complex step: forward loses imaginary parts; use method richardson"


def _largest(array: Array) -> float:
    """The largest size of what is finite."""
    xp = array_module(array)
    return float(xp.where(xp.isfinite(array), abs(array), 0.0).max())


def _places(mask: Array, first: int | None = None) -> list[int]:
    """Return the places in the flattened mask where it is true, beginning with one of them."""
    places = [int(place) for place in mask.reshape(-1).nonzero()[0]]
    return places if first is None else [first, *(place for place in places if place != first)]
