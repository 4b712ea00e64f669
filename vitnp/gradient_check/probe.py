"""Is a complex step possible here? Asked before one is trusted, with all arrays moving at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vitnp.backend import Array
from vitnp.gradient_check.compare import Checker
from vitnp.gradient_check.derivatives import REFEREE, Method

PROBED = 1e-4  # how closely complex step and difference must agree for the complex step to be used at all


class Probe(NamedTuple):
    """What to differentiate by, and why not by a complex step.

    `leaky`: a complex step agrees roughly, not to the last digits: some small part of the function loses imaginary
    parts, and each tensor is asked for itself.
    """

    method: str
    leaky: bool = False
    reason: str = ""

    @property
    def note(self) -> str:
        """For the report, or ""."""
        return f"{self.method}, as {self.reason}" if self.reason else ""


def probe(checker: Checker, how: Method = REFEREE) -> Probe:
    """Compare a complex step with a difference when all arrays of the checker's problem move."""
    directions = checker.everywhere
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            apart = checker.disagreement(directions, how)
    except np.exceptions.ComplexWarning:
        return _without("a complex step is not possible: forward casts complex numbers to real ones")
    except Exception as error:  # whatever a function raises that does not expect complex numbers
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _without(f"a complex step is not possible: {text}")
    if apart is None:
        return Probe("complex")
    found, value = apart
    if abs(found - value) <= PROBED * max(abs(found), abs(value)):
        return Probe("complex", leaky=True)
    return _without(_reason(checker, directions, found, value))


def _without(reason: str) -> Probe:
    return Probe("richardson", reason=reason)


def _reason(checker: Checker, directions: Mapping[str, Array], found: float, value: float) -> str:
    if not math.isfinite(found):
        return f"a complex step gives {found}, a difference {value:.6g}"
    if slopes := checker.slopes(directions):
        return f"forward has a kink here: its slope is {slopes[0]:.4g} on one side, {slopes[1]:.4g} on the other"
    loses = "forward loses imaginary parts, which np.var, np.abs and np.linalg.norm do"
    return f"{loses}: a complex step gives {found:.6g}, a difference {value:.6g}"
