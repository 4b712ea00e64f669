"""What a report says in words: hints on a row, notes on several."""

from __future__ import annotations

from vitnp.gradient_check.derivatives import METHODS
from vitnp.gradient_check.report import Row

COARSE = "forward's values are known to {:.0e} only, as where something is float32: use float64 throughout"
TOO_WIDE = "the difference is known only to {:.0e} of the gradient, because of rounding, or of kinks within its step"
AS_WRONG = "it agrees with a complex step that lacks what forward loses of the imaginary parts"
UNCONFIRMED = "nothing confirms the complex step: no difference is finite here, however small its step"
HIDDEN = "by the complex step alone: rounding hides this gradient from differences"
NOT_FINITE = "the numeric derivative is not finite: a step from here leaves where forward is defined"
NOT_COMPARED = "not compared in itself, as it is below the rounding of the largest gradient: check it alone"
DIFFERS = "it differs by more than rounding, but is {:.0e} of the largest gradient: check it alone"
BENDS = "smaller steps agree with the gradient: there are kinks within the step; use complex, or mode full"
LOSES = "a difference disagrees with the complex step: forward loses imaginary parts; use method richardson"
OPEN = "it differs from the numeric derivative, but no step can tell which of them is right"
TOGETHER = "a kink at each of {} elements; moving all of them at once the slope is {:.4g}, and {:.4g} is claimed"


def hardly_seen(rows: list[Row]) -> list[str]:
    """Notes on tensors that pass, and whose gradient is too small, beside others' or beside rounding, to be seen."""
    by_hint = {text: [row.name for row in rows if row.hint == text] for text in (NOT_COMPARED, HIDDEN)}
    return [f"{_first_of(names)}: {text}" for text, names in by_hint.items() if names]


def by_richardson(names: list[str], tolerance: float | None) -> str:
    """The note on tensors that differences have decided, with their tolerance, or ""."""
    tolerance = METHODS["richardson"].tolerance if tolerance is None else tolerance
    how = f"by richardson, tolerance {tolerance:.0e}"
    return f"{_first_of(names)} {how}: forward loses imaginary parts on the way from there" if names else ""


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
