"""What a check is asked to do: TypeError or ValueError, in one line, for what nothing can be made of."""

from __future__ import annotations

import math
from typing import Any


def check_choice(name: str, value: Any, valid: tuple[str, ...]) -> None:
    """For what is none of these names."""
    if value not in valid:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(valid)}")


def check_integer(name: str, value: Any, least: int) -> None:
    """For what is no integer of at least so much."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}; it must be an integer")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


def check_tolerance(tolerance: Any) -> None:
    """For what is no relative error."""
    if tolerance is not None:
        _check_number("tolerance", tolerance, math.inf, "a number from 0, as 1e-8")


def check_smoothing(smoothing: Any) -> None:
    """For what is no part of a label."""
    _check_number("label_smoothing", smoothing, 1, "a number from 0 to below 1, as 0.1")


def _check_number(name: str, value: Any, end: float, what: str) -> None:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {value!r}; it must be {what}")
    if not 0 <= float(value) < end:
        raise ValueError(f"{name} is {value}; it must be {what}")
