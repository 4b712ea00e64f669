"""Claimed against numeric gradients, one tensor at a time; and how a verdict comes about.

1. The claim is compared with the numeric derivative, in every coordinate or along a random direction of the tensor. It
   passes within the tolerance (of the tensor's gradient), ten error bars, and the rounding of the largest gradient.
2. A complex step is held to a difference, along a random direction (`Measure.confirm`). Does it agree, it counts to the
   last digit. Is it LOST, as forward loses imaginary parts, the tensor is checked by differences, and FAILs if it lacks
   the same; where a complex step was asked for, it is INCONCLUSIVE. So it is where no difference is finite.
3. A difference that agrees must do so with a tiny step, too, which sees what a large one jumps over. One that does not,
   or is not known well enough to tell, gives way to what decides in 4; known to a thousandth, that lets a claim pass.
4. Before a claim fails, its worst element (a direction is halved down to it) is looked at by the difference with the
   least step that tells claim and numeric derivative apart (`Measure.resolve`). Do the slopes of both sides differ, it
   is KINK if it is one of them or their mean, INCONCLUSIVE elsewhere between, FAIL beyond. Without a kink it FAILs
   unless it is within a quarter of the gap of that difference; if it is, it is LOST by a complex step, or INCONCLUSIVE.
5. Where no step can tell, a complex step that was confirmed is right; anything else is INCONCLUSIVE.

KINK promises that each of its elements, and all of them moving at once, have a slope that a convention gives. It does
not promise that the convention is the same everywhere, nor what the gradient is beside the kink: check there, too.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.gradient_check import locate
from vitnp.gradient_check.derivatives import METHODS, REFEREE, Estimate, central
from vitnp.gradient_check.hints import explain
from vitnp.gradient_check.measure import FLOOR, ROUGHLY, Measure, Ruling
from vitnp.gradient_check.notes import (
    AS_WRONG,
    COARSE,
    DIFFERS,
    HIDDEN,
    LOSES,
    NOT_COMPARED,
    NOT_FINITE,
    TOO_WIDE,
    UNCONFIRMED,
)
from vitnp.gradient_check.problems import Problem, first_place
from vitnp.gradient_check.report import GOOD, Row

NEGLIGIBLE = 1e-12  # of the largest gradient: below it, a tensor's gradient is called zero
TRUSTED = 10  # error bars by which a difference may be off
WIDE = 1e-3  # of a gradient: a wider error bar cannot tell right from wrong, unless the tolerance is wider still
LOST = "LOST"  # forward loses imaginary parts on the way from this tensor; `settle` turns it into a verdict
CLEARLY = 1e-3  # of a gap: how well the derivative of a claim that fails is to be known, for people to see
JITTER = 1e-14  # of the arrays: enough to draw all rounding anew, too little to change a derivative


class Found(NamedTuple):
    """The numeric gradient of a tensor, in every coordinate, and the error bars of its entries."""

    numeric: Array
    bars: Array


class Ruled(NamedTuple):
    """What a derivative is, PASS, FAIL or INCONCLUSIVE for the claim, and the slopes of both sides of a kink."""

    found: Estimate
    verdict: str
    slopes: tuple[float, float, float] | None = None


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
        measure: Measure | None = None,
    ) -> None:
        self.problem, self.grads, self.method, self.rng = problem, grads, method, rng
        self.measure = measure or Measure(problem, grads, rng)
        self.is_complex = method == "complex"
        self.how = REFEREE if method == "referee" else METHODS[method]
        self.tolerance = self.how.tolerance if tolerance is None else tolerance
        self.wide = max(WIDE, self.tolerance)
        self.rounding, self.largest = self.measure.rounding, self.measure.largest
        self.states: dict[str, str] = {}  # what differences say of a complex step, where it is not that it agrees
        self.as_wrong: dict[str, tuple[Row, Array]] = {}  # claims that lack what complex steps have lost, and direction
        self.failed: dict[str, tuple[Array, float]] = {}  # direction, difference along it
        self.along_each: dict[str, tuple[Array, float]] = {}  # the last direction, and the derivative along it
        self.errors: dict[str, Array] = {}  # relative, of every coordinate, where all were compared

    # -- derivatives ------------------------------------------------------------------------------------------------

    def derivative(self, directions: Mapping[str, Array], start: Mapping[str, Array] | None = None) -> Estimate:
        """Return the derivative of the loss when the arrays of these names move along these directions.

        `start` is where all arrays are instead of where they are.
        """
        f = self.measure.function(directions, start=start)
        if self.is_complex:
            return self.how.estimate(f, self.how.step, 0.0)
        return self.how.estimate(f, self._step(directions), self.measure.noise)

    def _step(self, directions: Mapping[str, Array]) -> float:
        """A difference's step, by the arrays' own size."""
        return self.how.step * self.measure.size(directions)

    def unit(self, name: str, index: int) -> dict[str, Array]:
        """The direction of one element, counted in the flattened array."""
        array = self.problem.arrays[name]
        direction = array_module(array).zeros(array.shape, array.dtype)
        direction.reshape(-1)[index] = 1
        return {name: direction}

    def coordinate(self, name: str, index: int) -> Estimate:
        """Return the partial derivative by one element."""
        return self.derivative(self.unit(name, index))

    def about_noise(self) -> str:
        """The note on values that are known too badly for differences, or ""."""
        coarse = not self.is_complex and self.measure.is_coarse
        return COARSE.format(self.measure.noise / abs(self.measure.here)) if coarse else ""

    def seconds_a_coordinate(self) -> float:
        """Return how long the derivative by one element takes."""
        name = next(iter(self.grads))
        if not self.is_complex:
            self.coordinate(name, 0)  # it measures the noise, once
        start = time.perf_counter()
        self.coordinate(name, 0)
        return time.perf_counter() - start

    def every_coordinate(self, name: str) -> Found:
        """Return the whole numeric gradient of a tensor."""
        xp, array = array_module(self.problem.arrays[name]), self.problem.arrays[name]
        found = [self.coordinate(name, index) for index in range(array.size)]
        return Found(*(xp.asarray(np.array(column)).reshape(array.shape) for column in zip(*found, strict=True)))

    # -- one tensor -------------------------------------------------------------------------------------------------

    def row(self, name: str, mode: str, directions: int) -> Row:
        """Check one tensor."""
        return self.full(name) if mode == "full" else self.along(name, directions)

    def full(self, name: str) -> Row:
        """Compare every coordinate."""
        analytic, (numeric, bars) = self.grads[name], self.every_coordinate(name)
        if self.is_complex and (lost := self._unconfirmed_all(name, numeric)):
            return lost
        xp, own = array_module(numeric), max(float(abs(analytic).max()), _largest(numeric))
        scale = max(own, FLOOR * self.largest)
        wrong = None if self.is_complex else self._measure_again(name, numeric, bars, scale)
        known = xp.isfinite(numeric)
        gap, bars = xp.where(known, abs(analytic - numeric), 0.0), xp.where(known, bars, 0.0)
        excess = xp.where(gap > TRUSTED * bars + self.rounding, gap - TRUSTED * bars - self.rounding, 0.0)
        fails = float(excess.max()) > self.tolerance * scale
        worst = int((excess if fails else gap).argmax())
        apart, n = (float(array.reshape(-1)[worst]) for array in (gap, numeric))
        row = self._row(name, f"all {analytic.size}", apart / scale if scale else 0.0, worst, n)
        self.errors[name] = gap / scale if scale else gap
        if not bool(known.all()):
            self.set_element(row, int((~known).reshape(-1).argmax()), math.nan)
            row.verdict, row.hint = "INCONCLUSIVE", NOT_FINITE
        if fails:
            suspects = _places(excess > self.tolerance * scale, worst if wrong is None else wrong)
            self._judge(row, suspects, numeric, scale)
        elif row.verdict == "PASS":
            size = _Size(float(abs(analytic).max()), own, apart, float(bars.max()), 1.0)
            self._qualify(row, self.unit(name, worst), size)
        return row

    def _judge(self, row: Row, suspects: list[int], numeric: Array, scale: float) -> None:
        """Give a row its verdict, of which these elements differ, and a hint."""
        locate.judge_all(self, row, suspects, numeric, scale)
        if row.verdict == "FAIL" and not row.hint:
            analytic, batch = self.grads[row.name], self.problem.batch
            row.hint = explain(row.name, analytic, numeric, batch, scale, self.tolerance)

    def _unconfirmed_all(self, name: str, numeric: Array) -> Row | None:
        """As `_unconfirmed`, by complex steps in every coordinate, which give that along a direction."""
        direction = self.measure.normal(self.grads[name])
        found = float((numeric * direction).sum())
        return self._unconfirmed(name, direction, found) if math.isfinite(found) else None

    def _measure_again(self, name: str, numeric: Array, bars: Array, scale: float) -> int | None:
        """Look again at every difference that does not agree, or jumps over something; return the first wrong claim.

        There is as much time for that as for suspects; what is left then either differs, or is not known.
        """
        claims, spent = self.grads[name].reshape(-1), 0.0
        for index in range(claims.size):
            unit, claimed = self.unit(name, index), float(claims[index])
            found = Estimate(float(numeric.reshape(-1)[index]), float(bars.reshape(-1)[index]))
            if self._is_settled(unit, claimed, found, scale, 1.0):
                continue
            if spent > locate.SUSPECTS_BUDGET_S:
                agrees = self._passes(found, claimed, scale, 1.0)
                bars.reshape(-1)[index] = math.inf if agrees else found.bar
                continue
            start = time.perf_counter()
            (value, bar), verdict, slopes = self.ruled(unit, claimed, found, scale)
            spent += time.perf_counter() - start
            numeric.reshape(-1)[index], bars.reshape(-1)[index] = value, bar
            if verdict == "FAIL" and slopes is None:
                return index
        return None

    def along(self, name: str, directions: int, confirm: bool = True) -> Row:
        """Compare the derivative along random directions; `confirm` a complex step along the first of them."""
        rows = list[Row]()
        for i in range(directions):
            rows.append(self._along_one(name, confirm and i == 0))
            if rows[-1].verdict in ("FAIL", LOST):
                break
        verdict = next(
            one for one in (LOST, "FAIL", "INCONCLUSIVE", "PASS", "ZERO") if one in {row.verdict for row in rows}
        )
        first = next(row for row in rows if row.verdict == verdict)
        worst = first if verdict in (LOST, "FAIL") else max(rows, key=lambda row: row.error)
        checked = f"{directions} direction{'s' if directions > 1 else ''}"
        return dataclasses.replace(worst, checked=checked, verdict=verdict, hint=first.hint)

    def _along_one(self, name: str, confirm: bool) -> Row:
        """Compare the derivative along one random direction."""
        analytic, direction = self.grads[name], {name: self.measure.normal(self.grads[name])}
        length, rms = math.sqrt(analytic.size), math.sqrt(float((analytic * analytic).mean()))
        claimed, floor = float((analytic * direction[name]).sum()), length * max(rms, FLOOR * self.largest)
        (numeric, bar), verdict, _ = self._measured(direction, claimed, floor, length)
        self.along_each[name] = direction[name], numeric
        known = math.isfinite(numeric)
        if confirm and known and self.is_complex and (lost := self._unconfirmed(name, direction[name], numeric)):
            return lost
        apart, size = abs(claimed - numeric), abs(numeric) if known else 0.0
        scale = max(floor, size)
        row = self._row(name, "", math.inf if math.isnan(apart) else apart / scale if scale else 0.0, None, 0.0)
        row.analytic, row.numeric, row.verdict = claimed, numeric, verdict
        if verdict == "FAIL":
            self.failed[name] = direction[name], claimed - numeric
        else:
            self._qualify(row, direction, _Size(length * rms, max(length * rms, size), apart, bar, length))
        return row

    def _unconfirmed(self, name: str, direction: Array, found: float) -> Row | None:
        """The row of a tensor for which forward loses imaginary parts, None of any other; its state is remembered."""
        length, rms = math.sqrt(direction.size), math.sqrt(float((self.grads[name] * self.grads[name]).mean()))
        scale = max(length * max(rms, FLOOR * self.largest), abs(found))
        seen = self.measure.confirm({name: direction}, found, scale)
        self.states[name] = seen.state
        if seen.state != LOST or seen.ruling is None:
            return None
        self.measure.loses = True
        along, claimed = seen.directions[name], float((self.grads[name] * seen.directions[name]).sum())
        right, off = seen.ruling, abs(claimed - seen.ruling.value)
        row = Row(name, direction.shape, "1 direction", off / scale, None, claimed, right.value, LOST, LOSES)
        if off > max(2 * right.bar, 2 * abs(claimed - seen.found)):
            self.as_wrong[name] = dataclasses.replace(row, verdict="FAIL", hint=AS_WRONG), along
        return row

    def confirmed_together(self) -> bool:
        """Whether complex steps along the last direction of each tensor agree with a difference along all at once."""
        directions = {name: direction for name, (direction, _) in self.along_each.items()}
        found = sum(value for _, value in self.along_each.values())
        scale = math.sqrt(sum(float((self.grads[name] * self.grads[name]).sum()) for name in directions))
        return self.measure.confirm(directions, found, max(scale, abs(found)), quick=True).state == "AGREES"

    def _measured(self, directions: Mapping[str, Array], claimed: float, scale: float, length: float) -> Ruled:
        """Return a derivative along directions of this length, and PASS, FAIL or INCONCLUSIVE."""
        found = self.derivative(directions)
        if not self.is_complex:
            settled = self._is_settled(directions, claimed, found, scale, length)
            return Ruled(found, "PASS") if settled else self.ruled(directions, claimed, found, scale, length)
        if not math.isfinite(found.value):
            return Ruled(found, "INCONCLUSIVE")
        return Ruled(found, "PASS" if self._passes(found, claimed, scale, length) else "FAIL")

    def _passes(self, found: Estimate, claimed: float, scale: float, length: float) -> bool:
        """Whether the claim is within what is allowed, and the derivative known well enough to say so.

        The rounding of sums is allowed for: where a gradient is what two large ones have left, it has no more digits
        than they.
        """
        limit = max(scale, abs(found.value))
        allowed = self.tolerance * limit + TRUSTED * found.bar + self.rounding * length
        return abs(claimed - found.value) <= allowed and TRUSTED * found.bar <= self.wide * limit

    def _is_settled(
        self, directions: Mapping[str, Array], claimed: float, found: Estimate, scale: float, length: float
    ) -> bool:
        """Whether a claim passes by a difference, and by a tiny one, which jumps over nothing."""
        passes = self._passes(found, claimed, scale, length)
        return passes and self._is_the_same_nearby(directions, claimed, max(scale, abs(found.value)))

    def _is_the_same_nearby(self, directions: Mapping[str, Array], claimed: float, scale: float) -> bool:
        """Whether a central difference agrees roughly, too, of the least step that knows it so well."""
        measure, step = self.measure, self._step(directions)
        noise = max(measure.noise, measure.rounded(directions))
        h = measure.least(directions, ROUGHLY * scale, noise) if scale else step
        if h >= step:
            return True
        value, bar = central(measure.function(directions), h, noise)
        return not abs(claimed - value) > self.wide * scale + TRUSTED * bar

    def ruled(
        self, directions: Mapping[str, Array], claimed: float, found: Estimate, scale: float, length: float = 1.0
    ) -> Ruled:
        """Let the least step decide that tells a claim from what was found; again, as long as they come nearer."""
        limit = max(scale, abs(found.value)) if math.isfinite(found.value) else scale
        allowed = self.tolerance * limit + self.rounding * length
        if self._is_coarse:  # such errors are not random: what they hide is more than they scatter
            allowed = max(allowed, self.wide * limit)
        apart, best, verdict = abs(claimed - found.value), found, "INCONCLUSIVE"
        seen: Ruling | None = None
        if not apart > allowed + TRUSTED * found.bar:
            apart = 4 * self.wide * limit
        while (ruling := self.measure.resolve(directions, apart, seen)) is not None:
            off, seen = abs(claimed - ruling.value), ruling
            if ruling.slopes is not None or off > max(apart / 4, allowed):
                if abs(found.value - ruling.value) > ruling.bar:
                    better = self.measure.resolve(directions, CLEARLY * apart, ruling) or ruling
                    found = Estimate(better.value, better.bar)
                return Ruled(found, "FAIL", ruling.slopes)
            near = off <= max(ruling.bar, self.wide * limit / TRUSTED) + allowed
            if near and ruling.bar <= self.wide * limit and not self._is_coarse:
                best, verdict = Estimate(ruling.value, ruling.bar / TRUSTED), "PASS"
                if off <= allowed:
                    break
            apart = min(apart / 4, max(3 * off, allowed, 0.0 if verdict == "PASS" else 2 * self.wide * limit))
        return Ruled(best, verdict)

    def together(self, name: str, confirm: bool) -> Row:
        """Compare the derivative when all tensors move at once, each along its own random direction."""
        directions = self.measure.everywhere
        claimed = sum(float((self.grads[tensor] * along).sum()) for tensor, along in directions.items())
        floor = math.sqrt(sum(float((grad * grad).mean()) for grad in self.grads.values()))
        (numeric, bar), verdict, _ = self._measured(directions, claimed, floor, 1.0)
        known, gap = math.isfinite(numeric), abs(claimed - numeric)
        scale = max(floor, abs(numeric)) if known else floor
        error = math.inf if math.isnan(gap) else gap / scale if gap else 0.0
        row = Row(name, (), "together", error, None, claimed, numeric, verdict)
        if self.is_complex and confirm and known:
            self.states[name] = self.measure.confirm(directions, numeric, scale, quick=True).state
        if self.states.get(name) == LOST:
            row.verdict, row.hint, self.measure.loses = LOST, LOSES, True
        elif scale == 0:
            row.verdict = "ZERO"
        elif verdict == "FAIL":
            found = Estimate(numeric, bar)
            row.verdict, row.hint, row.numeric = locate.judge(self, name, directions, claimed, found, scale)
        elif verdict == "INCONCLUSIVE":
            row.hint = TOO_WIDE.format(TRUSTED * bar / scale) if known else NOT_FINITE
        self._doubt(row)
        return row

    def _qualify(self, row: Row, direction: Mapping[str, Array], size: _Size) -> None:
        """Say of a row that does not fail by what it passes, if not by the tolerance, and whether it was seen at all.

        Where a tensor's gradient is far below others', rounding of theirs may hide all of it.
        """
        bar, largest = TRUSTED * size.bar, size.length * self.largest
        allowed = bar + self.rounding * size.length
        seen = size.apart <= self.tolerance * size.own and bar <= self.wide * size.own
        coarse = self._is_coarse and row.error > self.tolerance
        if not math.isfinite(row.numeric):
            row.verdict, row.hint = "INCONCLUSIVE", NOT_FINITE
        elif size.own == 0:
            row.verdict, row.error, row.hint = "ZERO", 0.0, ""
        elif size.apart > self.tolerance * size.own + bar and self._is_no_rounding(direction):
            row.verdict, row.hint = "INCONCLUSIVE", DIFFERS.format(size.own / max(size.own, largest))
        elif max(size.analytic, size.own - min(bar, self.wide * largest)) <= NEGLIGIBLE * largest and not seen:
            row.verdict, row.error, row.hint = "ZERO", 0.0, NOT_COMPARED
        elif bar > self.wide * max(size.own, FLOOR * largest) or coarse:
            row.verdict, row.hint = "INCONCLUSIVE", TOO_WIDE.format(bar / size.own)
        elif allowed > self.wide * size.own and not seen:
            row.hint = NOT_COMPARED
        elif row.error > self.tolerance:
            what = "its own error bar" if bar > self.rounding * size.length else "the rounding of the largest gradient"
            row.hint = f"above the tolerance, but within {what}, {allowed / size.own:.0e}"
        self._doubt(row)

    def _doubt(self, row: Row) -> None:
        """Say of a row that passes by a complex step if no difference could confirm that."""
        state = self.states.get(row.name) if row.verdict in ("PASS", "ZERO") else None
        if state == "NOT FINITE":
            row.verdict, row.hint = "INCONCLUSIVE", UNCONFIRMED
        elif state == "OPEN":
            row.hint = row.hint or HIDDEN

    @property
    def _is_coarse(self) -> bool:
        return not self.is_complex and self.measure.is_coarse

    def _is_no_rounding(self, direction: Mapping[str, Array]) -> bool:
        """Whether the derivative is more than rounding, and so is what it differs by, however small it is."""
        (name, along), *_ = direction.items()
        claimed, (numeric, bar) = float((self.grads[name] * along).sum()), self.derivative(direction)
        spread = max(bar, self.spread(direction, numeric, JITTER))
        return min(abs(claimed - numeric), abs(numeric)) > TRUSTED * spread

    def spread(self, directions: Mapping[str, Array], numeric: float, jitter: float) -> float:
        """By how much a derivative changes with the last digits of arrays and directions: of rounding most."""
        spread = 0.0
        for _ in range(3):
            start, along = (
                {name: array * (1 + jitter * self.measure.normal(array)) for name, array in arrays.items()}
                for arrays in (self.problem.arrays, directions)
            )
            spread = max(spread, abs(self.derivative(along, start=start).value - numeric))
        return spread

    def _row(self, name: str, checked: str, error: float, worst: int | None, numeric: float) -> Row:
        row = Row(name, self.problem.arrays[name].shape, checked, error, None, 0.0, 0.0, "PASS")
        if worst is not None:
            self.set_element(row, worst, numeric)
        return row

    def set_element(self, row: Row, index: int, numeric: float) -> None:
        """Let the row tell of one element, counted in the flattened array."""
        row.index = tuple(int(i) for i in np.unravel_index(index, row.shape))
        row.analytic, row.numeric = float(self.grads[row.name].reshape(-1)[index]), numeric


def settle(
    rows: list[Row], checker: Checker, tolerance: float | None, fall_back: bool, again: Callable[[Checker, Row], Row]
) -> list[str]:
    """Turn every LOST among the rows, in place, into a verdict; return the names of what differences have decided.

    With `fall_back` it is that of Richardson's differences, as `again` checks a row by them; without, it stays open.
    """
    lost = [place for place, row in enumerate(rows) if row.verdict == LOST]
    if not lost:
        return []
    by_differences = Checker(checker.problem, checker.grads, "referee", tolerance, checker.rng, checker.measure)
    by_differences.errors = checker.errors
    for place in lost:
        if fall_back:
            rows[place] = again(by_differences, rows[place])
            if rows[place].verdict in GOOD and rows[place].name in checker.as_wrong:
                rows[place], direction = checker.as_wrong[rows[place].name]
                by_differences.failed[rows[place].name] = direction, rows[place].analytic - rows[place].numeric
        else:
            rows[place].verdict = "INCONCLUSIVE"
    locate.locate(by_differences, rows)
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


def _largest(array: Array) -> float:
    """The largest size of what is finite."""
    xp = array_module(array)
    return float(xp.where(xp.isfinite(array), abs(array), 0.0).max())


def _places(mask: Array, first: int | None = None) -> list[int]:
    """Return the places in the flattened mask where it is true, beginning with one of them."""
    places = [int(place) for place in mask.reshape(-1).nonzero()[0]]
    return places if first is None else [first, *(place for place in places if place != first)]
