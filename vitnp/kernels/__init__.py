"""The same functions as in vitnp/layers, tuned where the plain formula is too slow.

A layer's mathematics is a plain function in its own file: the formula as it is read, on new arrays. `tuned` puts a
faster form of the same name in front of it, where there is one for the kind of array at hand:

    cpu.py      float32 and float64 NumPy arrays: results into memory that is used again, blocks that stay in cache

Complex arrays, which the gradient check runs, and CuPy arrays take the plain formula, which each kernel is tested
against.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from vitnp.backend import array_module
from vitnp.context import Memory


def tuned(plain: Callable[..., Any]) -> Any:
    """Return `plain` with its kernel in front, chosen by the first argument; `.__wrapped__` is the plain formula.

    The result takes one more argument by name, `memory`, for what the kernel allocates; without it, the plain formula
    is what runs.
    """

    @functools.wraps(plain)
    def choose(x: Any, *args: Any, memory: Memory | None = None) -> Any:
        if memory is not None and array_module(x) is np and x.dtype.kind == "f":
            from vitnp.kernels import cpu

            return getattr(cpu, plain.__name__)(x, *args, memory=memory)
        return plain(x, *args)

    return choose
