"""A tensor that differs: its worst element, whether it has an excuse, and what the error looks like."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.gradient_check.derivatives import EPSILON, Estimate
from vitnp.gradient_check.hints import explain, explain_samples
from vitnp.gradient_check.measure import FLOOR
from vitnp.gradient_check.notes import BENDS, LOSES, OPEN, TOGETHER
from vitnp.gradient_check.report import Row

if TYPE_CHECKING:
    from vitnp.gradient_check.compare import Checker

LOCATE_BUDGET_S = 10.0  # for the worst elements of tensors that have failed
SUSPECTS_BUDGET_S = 10.0  # for looking again at what differs in one tensor; what is left then is said to be left
EXPLAIN_BUDGET_S = 3.0  # for the numeric gradient of one of them
EXPLAINED = 3  # of them, the nearest to the loss
DOUBTFUL = ("OPEN", "NOT FINITE")  # states of a complex step that nothing has confirmed
SAMPLES = 24  # coordinates of a tensor that is too large for that


def locate(checker: Checker, rows: list[Row]) -> None:
    """Find the worst elements of tensors whose direction has failed, the nearest to the loss first.

    There the cause is; what lies before inherits the error, and is looked at as long as there is time.
    """
    start = time.perf_counter()
    failed = [row for row in reversed(rows) if row.name in checker.failed]
    for i, row in enumerate(failed):
        if i < EXPLAINED or time.perf_counter() - start < LOCATE_BUDGET_S:
            _locate(checker, row, *checker.failed[row.name])
        if i < EXPLAINED and row.verdict == "FAIL":
            _explain(checker, row)


def _locate(checker: Checker, row: Row, direction: Array, difference: float) -> None:
    """Name the worst element, or say why the difference is not the gradient's fault."""
    worst = _halve(checker, row.name, direction, difference)
    found, unit = checker.coordinate(row.name, worst), checker.unit(row.name, worst)
    checker.set_element(row, worst, found.value)
    scale = max(float(abs(checker.grads[row.name]).max()), abs(found.value))
    row.verdict, row.hint, row.numeric = judge(checker, row.name, unit, row.analytic, found, scale)
    if row.verdict == "KINK":  # at one element; the others have not been looked at
        row.verdict, row.hint = "INCONCLUSIVE", f"{row.hint}; use mode full"


def _halve(checker: Checker, name: str, direction: Array, difference: float) -> int:
    """Halve the direction, keep the half in which the derivatives differ more, until one element is left."""
    analytic, along = checker.grads[name].reshape(-1), direction.reshape(-1)
    low, high = 0, analytic.size
    while high - low > 1:
        middle = (low + high) // 2
        half = array_module(direction).zeros(direction.shape, direction.dtype)
        half.reshape(-1)[low:middle] = along[low:middle]
        lower = float((analytic[low:middle] * along[low:middle]).sum()) - _part(checker, {name: half}, abs(difference))
        upper = difference - lower  # derivatives along parts of a direction add up
        low, high, difference = (low, middle, lower) if abs(lower) >= abs(upper) else (middle, high, upper)
    return low


def _part(checker: Checker, directions: Mapping[str, Array], difference: float) -> float:
    """The derivative along a part of a direction, known well enough to tell where the difference is."""
    if checker.is_complex:
        return checker.derivative(directions).value
    ruling = checker.measure.resolve(directions, difference)
    return checker.derivative(directions).value if ruling is None else ruling.value


def judge_all(checker: Checker, row: Row, suspects: list[int], numeric: Array, scale: float) -> None:
    """Give the row its verdict: FAIL at the first suspect element that has no excuse, else the gravest excuse."""
    start, found, kinks = time.perf_counter(), {row.verdict: row.hint}, list[int]()
    for done, index in enumerate(suspects):
        if done and time.perf_counter() - start > SUSPECTS_BUDGET_S:
            found.setdefault("INCONCLUSIVE", f"{len(suspects) - done} more that differ are left for want of time")
            break
        claimed, one = (float(array.reshape(-1)[index]) for array in (checker.grads[row.name], numeric))
        unit = checker.unit(row.name, index)
        verdict, hint, value = judge(checker, row.name, unit, claimed, Estimate(one, 0.0), scale)
        found[verdict] = found.get(verdict) or hint
        kinks += [index] if verdict == "KINK" else []
        if verdict in ("FAIL", "LOST"):
            checker.set_element(row, index, value)
            row.error = abs(claimed - value) / scale
            break
    if len(kinks) > 1 and (hint := _kinks_together(checker, row.name, kinks)):
        found.setdefault("INCONCLUSIVE", hint)
    row.verdict = next(verdict for verdict in ("FAIL", "LOST", "INCONCLUSIVE", "KINK", "PASS") if verdict in found)
    row.hint = found[row.verdict]


def _kinks_together(checker: Checker, name: str, kinks: list[int]) -> str:
    """What is wrong with a gradient at several kinks where all their elements move at once, or ""."""
    analytic = checker.grads[name]
    direction = sum(checker.unit(name, index)[name] for index in kinks)
    claimed = float((analytic * direction).sum())
    apart = FLOOR * checker.largest + float(abs(analytic * direction).max())
    ruling = checker.measure.resolve({name: direction}, apart)
    if ruling is None:
        return ""
    if ruling.slopes is not None:
        verdict, hint = _at_kink(*ruling.slopes, claimed)
        return "" if verdict == "KINK" else hint
    if abs(claimed - ruling.value) <= apart / 4:
        return ""
    return TOGETHER.format(len(kinks), ruling.value, claimed)


def judge(
    checker: Checker, name: str, directions: Mapping[str, Array], claimed: float, found: Estimate, scale: float
) -> tuple[str, str, float]:
    """Return the verdict on an element that differs, or a direction; its excuse if it has one; and its derivative."""
    if checker.is_complex:
        return _judge_complex(checker, name, directions, claimed, found.value, scale)
    (value, _), verdict, slopes = checker.ruled(directions, claimed, found, scale)
    if slopes is not None:
        return *_at_kink(*slopes, claimed), value
    hint = {"FAIL": "", "PASS": BENDS, "INCONCLUSIVE": OPEN}[verdict]
    return "FAIL" if verdict == "FAIL" else "INCONCLUSIVE", hint, value


def _judge_complex(
    checker: Checker, name: str, directions: Mapping[str, Array], claimed: float, numeric: float, scale: float
) -> tuple[str, str, float]:
    """The same, where the derivative is by a complex step."""
    apart, measure = abs(claimed - numeric), checker.measure
    ruling = measure.resolve(directions, apart)
    if ruling is not None and ruling.slopes is not None:
        return *_at_kink(*ruling.slopes, claimed), numeric
    if ruling is not None and abs(claimed - ruling.value) <= apart / 4:
        return "LOST", LOSES, numeric
    if ruling is not None:
        return "FAIL", "", numeric
    spread = checker.spread(directions, numeric, 4 * EPSILON)
    if apart <= spread <= checker.wide * scale:
        return "PASS", f"above the tolerance, but within forward's own rounding, {spread / scale:.0e}", numeric
    sure = not measure.loses and checker.states.get(name) not in DOUBTFUL
    return ("FAIL", "", numeric) if sure else ("INCONCLUSIVE", OPEN, numeric)


def _at_kink(left: float, right: float, slack: float, claimed: float) -> tuple[str, str]:
    """Return KINK for a gradient that is the slope of a side or their mean, FAIL for one that no convention gives.

    Where several units have their kinks at once, as those of a ReLU layer whose input is zero, conventions give
    anything between nothing and the sum of both slopes; whether that is right cannot be seen from outside.
    """
    text = f"the slope is {left:.4g} on the left, {right:.4g} on the right"
    if min(abs(claimed - slope) for slope in (left, right, (left + right) / 2)) <= slack:
        return "KINK", f"a kink: {text}"
    if min(left, right) - slack <= claimed <= max(left, right) + slack:
        return "INCONCLUSIVE", f"a kink: {text}, and the gradient is neither, nor their mean"
    if min(0.0, left + right) - slack <= claimed <= max(0.0, left + right) + slack:
        return "INCONCLUSIVE", f"several kinks at once: {text}"
    return "FAIL", ""


def _explain(checker: Checker, row: Row) -> None:
    """Find what the error of a large tensor looks like, in all coordinates if there is time, else in a sample."""
    start, analytic = time.perf_counter(), checker.grads[row.name]
    checker.coordinate(row.name, 0)
    if analytic.size * (time.perf_counter() - start) <= EXPLAIN_BUDGET_S:
        numeric = checker.every_coordinate(row.name).numeric
        scale = max(float(abs(analytic).max()), float(abs(numeric).max()), FLOOR * checker.largest)
        checker.errors[row.name] = abs(analytic - numeric) / scale
        row.hint = explain(row.name, analytic, numeric, checker.problem.batch, scale, checker.tolerance)
        return
    chosen = checker.rng.choice(analytic.size, min(SAMPLES, analytic.size), replace=False).tolist()
    claimed = np.array([float(analytic.reshape(-1)[i]) for i in chosen])
    numeric = np.array([checker.coordinate(row.name, i).value for i in chosen])
    row.hint = explain_samples(claimed, numeric, checker.problem.batch)
