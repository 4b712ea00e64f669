"""NumPy or CuPy, decided by the arrays themselves; the only file that imports cupy, and only when it must.

A layer never asks where it runs. It takes the module of its input, `xp = array_module(x)`, and calls functions that
both libraries have under the same name.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # a numpy.ndarray or a cupy.ndarray: the two share no base class


class DeviceError(RuntimeError):
    """A device was asked for that this machine or this installation does not have."""


def array_module(x: Array) -> ModuleType:
    """Return `numpy` or `cupy`, whichever made the array `x`; an array of another kind says `x.xp` itself."""
    if type(x).__module__.partition(".")[0] == "cupy":
        return importlib.import_module("cupy")
    module: ModuleType = getattr(x, "xp", np)
    return module


def to_cpu(x: Array) -> np.ndarray:
    """Return `x` as a NumPy array: itself where it already is one, else a copy in host memory."""
    host: np.ndarray = x if array_module(x) is np else array_module(x).asnumpy(x)
    return host


def to_device(x: Array, device: str) -> Array:
    """Return `x` on "cpu" or "cuda": itself where it already is there, else a copy.

    Raises DeviceError where there is no CuPy or no GPU, ValueError for any other name.
    """
    if device == "cpu":
        return to_cpu(x)
    if device != "cuda":
        raise ValueError(f'device is {device!r}; choose "cpu" or "cuda"')
    return require_cupy().asarray(x)


def require_cupy() -> ModuleType:
    """Return cupy with a working GPU behind it, or raise a DeviceError that says what to install."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise DeviceError(
                "device cuda needs CuPy, which is not installed: pip install 'cupy-cuda13x[ctk]' "
                "(or 'cupy-cuda12x[ctk]' for a CUDA 12 driver), or use the device cpu"
            ) from None
        reason = str(error.__cause__ or error).strip().partition("\n")[0]  # CuPy's own advice is a page long
        raise DeviceError(
            f"device cuda needs CuPy, which is installed and cannot be loaded ({reason}): install it anew, with [ctk]"
        ) from error
    if not cupy.cuda.is_available():
        raise DeviceError(
            f"device cuda needs an NVIDIA GPU, and CuPy finds none ({_why_no_gpu(cupy)}): install the NVIDIA driver, "
            "or, where nvidia-smi shows one, the CuPy of its CUDA version; or use the device cpu"
        )
    return cupy


def _why_no_gpu(cupy: ModuleType) -> str:
    """Return what CUDA says where CuPy says no more than that there is none."""
    try:
        return f"CUDA counts {cupy.cuda.runtime.getDeviceCount()}"
    except RuntimeError as error:  # CuPy's CUDARuntimeError is one
        return str(error)
