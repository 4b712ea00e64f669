"""How many cores there are to compute on: the number of threads, unless somebody says otherwise."""

from __future__ import annotations

import math
import os
from pathlib import Path

SYSTEM = Path("/sys")  # where Linux tells of its processors and of the limits of a container
LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # of the libraries below NumPy


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    Hyper-threads of one core count once: they share the units that multiply matrices, and the cache. Where a container
    or one of the variables `LIMITS` grants fewer, it is that number.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    physical = len({_siblings(cpu) for cpu in allowed})
    return max(1, int(min(physical, _container_limit(), *map(_variable, LIMITS))))


def _siblings(cpu: int) -> str:
    """The hyper-threads of this one's core, which are the same for each of them."""
    return _read(SYSTEM / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _container_limit() -> float:
    """The cores' worth of time that the container of this process gets: "quota period" in microseconds, or "max"."""
    quota, _, period = _read(SYSTEM / "fs/cgroup/cpu.max").partition(" ")
    return math.ceil(int(quota) / int(period)) if quota.isdigit() and period.isdigit() else math.inf


def _variable(name: str) -> float:
    """The number of threads that an environment variable allows; OMP_NUM_THREADS has one for each level, as "4,2"."""
    number = os.environ.get(name, "").partition(",")[0].strip()
    return int(number) if number.isdigit() and int(number) else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
