"""What the last bits of a result depend on: the program, its libraries, their threads and the processor.

No library of linear algebra promises the same bits on another processor, in another version or with another number of
threads. So a checkpoint says where it was made, and a run that goes on elsewhere says so.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import numpy as np

from vitnp.backend import require_cupy
from vitnp.parallel import blas_controller


def environment(device: str = "cpu") -> dict[str, str]:
    """Return names and versions, as {"numpy": "2.4.6", "blas": "openblas 0.3.31 SkylakeX, 2 threads", ...}.

    `device` is the one that computes, "cpu" or "cuda".
    """
    from vitnp import __version__

    libraries = [info for info in blas_controller().info() if info["user_api"] == "blas"]
    described = (
        f"{info['internal_api']} {info['version']} {info.get('architecture', '')}".rstrip()
        + f", {info['num_threads']} threads"
        for info in libraries
    )
    return {
        "vitnp": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": "; ".join(sorted(described)),
        "machine": f"{platform.system()} {platform.machine()}, {_vector_units()}",
        "device": device if device == "cpu" else _gpu(),
    }


def _gpu() -> str:
    """Which GPU, and what its products depend on, as "NVIDIA H200, CuPy 14.2.0, TF32"."""
    cupy = require_cupy()
    device = cupy.cuda.Device()
    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    tf32 = int(os.environ.get("CUPY_TF32", "0")) > 0 and int(device.compute_capability) >= 80  # as CuPy decides it
    return f"{name}, CuPy {cupy.__version__}" + (", TF32" if tf32 else "")


def _vector_units() -> str:
    """Which of the processor's vector instructions NumPy computes with, as "AVX512_SKX"."""
    (found,) = np.lib.introspect.opt_func_info(func_name="^tanh$", signature="float32")["tanh"].values()
    return str(found["current"])


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return what is not as it was, as "numpy 2.0.2, was 2.4.6; ...", empty if all is."""
    before = {"device": "cpu", **before}  # files that do not say it are from a CPU
    return "; ".join(
        f"{name} {now.get(name, 'unknown')}, was {before.get(name, 'unknown')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )
