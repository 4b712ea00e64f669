"""Is a complex step possible here? Asked before one is trusted, with all arrays moving at once."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np

from vitnp.gradient_check.compare import Checker
from vitnp.gradient_check.measure import Ruling

PROBED = 1e-4  # how closely complex step and difference must agree for the complex step to be used at all


class Probe(NamedTuple):
    """What to differentiate by, and why not by a complex step."""

    method: str
    reason: str = ""

    @property
    def note(self) -> str:
        """For the report, or ""."""
        return f"{self.method}, as {self.reason}" if self.reason else ""


def probe(checker: Checker) -> Probe:
    """Compare a complex step with a difference when all arrays of the checker's problem move."""
    measure = checker.measure
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            found = measure.complex_step(measure.everywhere)
    except np.exceptions.ComplexWarning:
        return _without("a complex step is not possible: forward casts complex numbers to real ones")
    except Exception as error:  # whatever a function raises that does not expect complex numbers
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _without(f"a complex step is not possible: {text}")
    if not math.isfinite(found):
        return _without(f"a complex step gives {found}, a difference {measure.difference(measure.everywhere):.6g}")
    size = math.sqrt(sum(float((grad * grad).mean()) for grad in checker.grads.values()))
    seen = measure.confirm(measure.everywhere, found, max(size, abs(found)))
    if seen.ruling is None:
        return Probe("complex")
    value = seen.ruling.value
    if seen.state == "LOST" and abs(found - value) <= PROBED * max(abs(found), abs(value)):
        measure.loses = True
        return Probe("complex")
    return _without(_reason(seen.state, found, seen.ruling))


def _without(reason: str) -> Probe:
    return Probe("richardson", reason)


def _reason(state: str, found: float, ruling: Ruling) -> str:
    if state == "KINK" and ruling.slopes is not None:
        left, right, _ = ruling.slopes
        return f"forward has a kink here: its slope is {left:.4g} on one side, {right:.4g} on the other"
    loses = "forward loses imaginary parts, which np.var, np.abs and np.linalg.norm do"
    return f"{loses}: a complex step gives {found:.6g}, a difference {ruling.value:.6g}"
