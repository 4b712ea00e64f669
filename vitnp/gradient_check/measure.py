"""Derivatives of a problem along directions, and who is right where two numbers for one derivative differ.

A difference is misled by rounding if its step is too small, and by what the function does within the step if that is
too large. So the one that decides has the least step at which rounding cannot confuse the two numbers:

    apart = |one − other|        h = the least step whose rounding, noise / h, is below apart / 20

The noise is the largest of what is known of it: the rounding of the value and of the arrays in float64, and how values
scatter near the point. Within so small a step hardly a kink or a narrow feature is left to jump over. Where its error
bar is wider than apart / 4 all the same, it grows a little; if that does not help, nobody can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.gradient_check.derivatives import (
    EPSILON,
    METHODS,
    Estimate,
    Function,
    extrapolate,
    forward,
    scatter,
)
from vitnp.gradient_check.problems import Problem

NOISE = 1e-14  # of the largest gradient: what rounding may do to one that is the difference of such
FLOOR = 1e-8  # of the largest gradient: what an error is measured against at least
SCATTER_STEPS = (1e-7, 1e-5)  # of the arrays: far below what differences need, above the rounding of float32
SMOOTH = 64  # a scatter that falls so much with a quarter of the step is a smooth function's, h⁴, and no noise
AWAY = 1e-3  # of the arrays: so far from the point itself, which may be a kink, the scatter is measured
FLOAT32 = 1e-9  # of a value: more noise is what float32 leaves, even after a mean over many
LEVELS, QUARTER = 3, 4  # central differences in the one that decides: from h, h/2 and h/4
RESERVE = 5  # how much larger the least step may be than the largest: rounding is that far below what is allowed
GROWTH, RUNGS = 4.0, 3  # its step grows so, so many times
TINY = 1e-14  # of the arrays: a step that changes their last digits
LARGEST_STEP = 0.1  # of the arrays: where a difference is still one
CONFIRMING = (1e-9, 1e-6, 1e-4)  # of a derivative: what rounding may hide where a complex step is compared; the first
CLOSELY = 1e-8  # of a derivative: a difference that is known so well need not be taken again with a smaller step
QUICK = 1e-6  # that knows it, and the same where one value more is all that can be spent
ROUGHLY = 1e-3  # of a derivative: a difference that is known no better confirms nothing


STATES = ("NOT FINITE", "OPEN", "ROUGHLY", "AGREES", "KINK", "LOST")


class Ruling(NamedTuple):
    """A derivative, by how much it may be off, by which step, and the slopes of both sides where there is a kink."""

    value: float
    bar: float
    step: float
    slopes: tuple[float, float, float] | None = None  # left, right, and how well they are known


class Confirmed(NamedTuple):
    """What differences say of a complex step `found` along some directions, and what has decided against it.

    The states: AGREES; ROUGHLY, as far as can be seen; KINK, it agrees on one side of one; LOST, it lacks what forward
    loses of the imaginary parts; OPEN, rounding hides whether it does; NOT FINITE, no difference is.
    """

    state: str
    found: float
    directions: Mapping[str, Array]
    ruling: Ruling | None = None


class Measure:
    """The derivatives of a problem. Its claimed gradients tell how large those are, and what rounding does to them."""

    def __init__(self, problem: Problem, grads: Mapping[str, Array], rng: np.random.Generator) -> None:
        self.problem, self.grads, self.rng = problem, grads, rng
        self.largest = max(float(abs(grad).max()) for grad in grads.values())
        self.rounding = NOISE * max(self.largest, problem.upstream)
        self.loses = False  # whether imaginary parts are known to get lost somewhere

    def normal(self, array: Array) -> Array:
        """A random direction for it."""
        return array_module(array).asarray(self.rng.standard_normal(array.shape))

    @cached_property
    def everywhere(self) -> dict[str, Array]:
        """A random direction, of about unit length, for every array that has a gradient."""
        return {name: self.normal(grad) / math.sqrt(grad.size) for name, grad in self.grads.items()}

    def function(
        self, directions: Mapping[str, Array], ahead: float = 0.0, start: Mapping[str, Array] | None = None
    ) -> Function:
        """The problem's value as a function of how far its arrays have moved along these directions.

        They move from where they are, or from so far ahead, or from where all arrays have been put, `start`. A place
        where the problem raises an error is one where it is not defined, which is NaN.
        """
        arrays = start or self.problem.arrays

        def f(t: complex) -> complex:
            still = {} if start is None else {name: array + 0 * t for name, array in start.items()}
            moved = {name: arrays[name] + (ahead + t) * along for name, along in directions.items()}
            try:
                value: complex = self.problem.value(still | moved)
            except (ArithmeticError, ValueError):  # as of numpy.linalg
                if isinstance(t, complex):
                    raise  # what cannot be done with complex numbers is another matter
                return math.nan
            return value

        return f

    # -- sizes and noise --------------------------------------------------------------------------------------------

    @cached_property
    def sizes(self) -> dict[str, float]:
        """What steps are measured by: each array's root mean square, or if that is zero a hundredth of the largest."""
        floor = max(self._rms.values()) / 100 or 1.0
        return {name: size or floor for name, size in self._rms.items()}

    @cached_property
    def _rms(self) -> dict[str, float]:
        return {name: math.sqrt(float((array * array).mean())) for name, array in self.problem.arrays.items()}

    def size(self, directions: Mapping[str, Array]) -> float:
        """The size of the smallest array that moves."""
        return min(self.sizes[name] for name in directions)

    @cached_property
    def here(self) -> float:
        """The function's value."""
        if math.isfinite(self.problem.here):
            return self.problem.here
        last = next(reversed(self.problem.arrays))
        return float(self.problem.value({last: self.problem.arrays[last]}).real)

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
        f = self.function(along, AWAY)
        for step in SCATTER_STEPS:
            found, wider = scatter(f, step), scatter(f, 4 * step)
            while found > 0 and wider > SMOOTH * found:
                step /= 4
                found, wider = scatter(f, step), found
            if found > 0:  # else the step is too small to change anything
                return found if math.isfinite(found) else 0.0
        return 0.0

    @cached_property
    def is_coarse(self) -> bool:
        """Whether differences suffer from values that are known no better than if something were float32."""
        return self.noise > FLOAT32 * abs(self.here) > 0

    def rounded(self, directions: Mapping[str, Array]) -> float:
        """What rounding of the value, and of the arrays that move, does to the value."""
        total = 0.0
        for name, along in directions.items():
            moved = array_module(along).where(along != 0, self.grads[name] * self.problem.arrays[name], 0.0)
            total += float((moved * moved).sum())
        return EPSILON * (abs(self.here) + math.sqrt(total))

    def _coarsest(self, directions: Mapping[str, Array]) -> float:
        """The least step at which the arrays' rounding hides a twentieth of an error, in whichever element it is."""
        return max(20 * EPSILON * _reach(self.problem.arrays[name], along) for name, along in directions.items())

    # -- a complex step ---------------------------------------------------------------------------------------------

    def complex_step(self, directions: Mapping[str, Array], ahead: float = 0.0) -> float:
        """The derivative by a complex step, NaN where forward is not finite."""
        how = METHODS["complex"]
        return how.estimate(self.function(directions, ahead), how.step, 0.0).value

    def confirm(self, directions: Mapping[str, Array], found: float, scale: float, quick: bool = False) -> Confirmed:
        """Compare a complex step with a difference, of as small a step as `scale`, the derivative's size, allows.

        `quick`: with a single value more, forward, if that agrees; else with four, or more where they do not agree.
        """
        if not math.isfinite(found):
            return Confirmed("NOT FINITE", found, directions)
        if quick and self._agrees(directions, found, scale, self._forward(directions, QUICK * scale)):
            return Confirmed("AGREES", found, directions)
        seen = self._confirm(directions, found, scale)
        if seen.state in ("NOT FINITE", "OPEN", "ROUGHLY"):
            along = self._in_proportion(directions)
            again = self._confirm(along, self.complex_step(along), scale)
            seen = max(seen, again, key=lambda one: STATES.index(one.state))
        return seen

    def difference(self, directions: Mapping[str, Array]) -> float:
        """The derivative by a difference, for people to read."""
        return extrapolate(self.function(directions), 1e-3 * self.size(directions), 0.0, LEVELS).value

    def _in_proportion(self, directions: Mapping[str, Array]) -> dict[str, Array]:
        """The same with each element moving as far as it is large: what needs small steps then has them."""
        return {name: along * abs(self.problem.arrays[name]) / self.sizes[name] for name, along in directions.items()}

    def _confirm(self, directions: Mapping[str, Array], found: float, scale: float) -> Confirmed:
        noise, state, slack = self.rounded(directions), "NOT FINITE", self._slack(directions)
        for h in dict.fromkeys(self._step(directions, noise, hidden * scale) for hidden in CONFIRMING):
            near = extrapolate(self.function(directions), h, noise, levels=2)
            if (gap := abs(found - near.value)) > near.bar + slack:
                seen = Ruling(near.value, near.bar + 2 * gap, h)
                return self._disputed(directions, found, gap, scale, seen)
            if self._agrees(directions, found, scale, near):
                if near.bar <= CLOSELY * scale + slack:
                    return Confirmed("AGREES", found, directions)
                state = "ROUGHLY"
            elif math.isfinite(near.value) and state != "ROUGHLY":
                state = "OPEN"
        if state != "NOT FINITE":
            return Confirmed(state, found, directions)
        last = self._disputed(directions, found, ROUGHLY * scale, scale)
        return last._replace(state="NOT FINITE") if last.state == "OPEN" else last

    def _forward(self, directions: Mapping[str, Array], hidden: float) -> Estimate:
        """The forward difference, as f is known here, of so small a step that rounding may hide `hidden` of it."""
        f, noise = self.function(directions), self.rounded(directions)
        return forward(lambda t: f(t) if t else complex(self.here), self._step(directions, noise, hidden), noise)

    def _step(self, directions: Mapping[str, Array], noise: float, hidden: float) -> float:
        """The step, within what the arrays allow, at which rounding hides so much of a derivative."""
        size = self.size(directions)
        return max(min(8 * noise / hidden if hidden > 0 else math.inf, LARGEST_STEP * size), TINY * size)

    def _slack(self, directions: Mapping[str, Array]) -> float:
        """What rounding does to the complex step itself."""
        return self.rounding * math.sqrt(sum(float((along * along).sum()) for along in directions.values()))

    def _agrees(self, directions: Mapping[str, Array], found: float, scale: float, near: Estimate) -> bool:
        known = near.bar <= max(ROUGHLY * scale, self._slack(directions))
        return known and abs(found - near.value) <= near.bar + self._slack(directions)

    def _disputed(
        self, directions: Mapping[str, Array], found: float, apart: float, scale: float, seen: Ruling | None = None
    ) -> Confirmed:
        """Who is right, until the complex step is within the error bar of what decides, or is seen to be wrong."""
        state = "OPEN"
        while (ruling := self.resolve(directions, apart, seen)) is not None:
            off, seen = abs(found - ruling.value), ruling
            if off > apart / 4:
                beside = ruling.slopes is not None and self._agrees_beside(directions, apart)
                return Confirmed("KINK" if beside else "LOST", found, directions, ruling)
            if ruling.bar <= ROUGHLY * scale:
                state = "ROUGHLY"
            if ruling.bar <= CLOSELY * scale and off <= ruling.bar + self._slack(directions):
                return Confirmed("AGREES", found, directions)
            apart /= 4
        return Confirmed(state, found, directions)

    def _agrees_beside(self, directions: Mapping[str, Array], apart: float) -> bool:
        """Whether complex step and difference agree a little ahead, on one side of the kinks at the point."""
        h = self.least(directions, apart, max(self.rounded(directions), self.noise))
        f = self.function(directions)
        ahead = (float(f(4 * h).real) - float(f(2 * h).real)) / (2 * h)
        return abs(self.complex_step(directions, 3 * h) - ahead) <= apart / 4

    # -- who is right -----------------------------------------------------------------------------------------------

    def least(self, directions: Mapping[str, Array], apart: float, noise: float) -> float:
        """The least step, so that rounding over a quarter of it, 4 noise / h, stays below a twentieth of `apart`."""
        return QUARTER * max(20 * 4 * noise / apart, self._coarsest(directions))

    def resolve(self, directions: Mapping[str, Array], apart: float, seen: Ruling | None = None) -> Ruling | None:
        """Return the derivative by the least step that tells apart two numbers so far apart, None if none does.

        One with a larger step than what was `seen` is not believed where it differs: it jumps over something.
        """
        if not apart > 0:
            return None
        f, size = cache(self.function(directions)), self.size(directions)
        noise, largest = max(self.rounded(directions), self.noise), LARGEST_STEP * size
        h = min(self.least(directions, apart, noise), largest)
        noise = self._scatter(f, h / 16, noise)
        h = max(self.least(directions, apart, noise), TINY * size)
        for step in (min(h * GROWTH**rung, largest) for rung in range(RUNGS) if h <= RESERVE * largest):
            value, bar = extrapolate(f, step, noise, LEVELS)
            if math.isfinite(value) and bar <= apart / 4:
                jumps = seen is not None and step > seen.step and abs(value - seen.value) > seen.bar
                return None if jumps else Ruling(value, bar, step, self._slopes(f, step, apart, noise))
        return None

    def _scatter(self, f: Function, step: float, noise: float) -> float:
        """How values scatter a little ahead, as at the point there may be a kink; if they do, no less than known."""
        found = scatter(lambda t: f(5 * step + t), step)
        if found > 4 * noise and scatter(lambda t: f(20 * step + t), 4 * step) > SMOOTH * found:
            return noise
        return max(noise, found)

    def _slopes(self, f: Function, h: float, apart: float, noise: float) -> tuple[float, float, float] | None:
        """The slopes of both sides, and how well they are known, where they stay apart; smooth functions' meet."""
        here = float(f(0.0).real)
        (left, right), (nearer_left, nearer_right) = (
            ((here - float(f(-step).real)) / step, (float(f(step).real) - here) / step) for step in (h, h / 2)
        )
        gap, nearer = abs(right - left), abs(nearer_right - nearer_left)
        if not (nearer > apart / 8 and 0.75 * gap < nearer < 1.25 * gap):  # half of it: it bends; twice: it jumps
            return None
        return nearer_left, nearer_right, 8 * noise / h + abs(nearer_left - left) + abs(nearer_right - right)


def _reach(array: Array, along: Array) -> float:
    """How large the elements that move are, for their direction's length."""
    xp = array_module(along)
    longest = float(abs(along).max())
    return float(xp.where(along != 0, abs(array), 0.0).max()) / longest if longest else 0.0
