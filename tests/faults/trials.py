"""The trials, each with its numbers: a function that says what came out, and returns whether all is as it must be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mutants.trial import ROOT

from faults import costs, damage, runs

SINGLE = ("OPENBLAS_NUM_THREADS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")  # what the other trials run with

Trial = Callable[[Path, np.random.Generator], bool]


def resumes(folder: Path, rng: np.random.Generator) -> bool:
    expected = folder / "whole"
    expected.mkdir()
    started = time.monotonic()
    runs.finish(runs.start(expected))
    seconds, exact, kills = time.monotonic() - started, 0, 0
    for trial in range(20):
        cwd = folder / str(trial)
        cwd.mkdir()
        killed = runs.kill_and_resume(cwd, rng, seconds, kills=4)
        wrong = runs.differences(cwd / runs.RUN, expected / runs.RUN)
        exact, kills = exact + (not wrong), kills + killed
        show(wrong)
    print(f"resumes  {exact} of 20 runs bit for bit the same after {kills} kills")
    return exact == 20


def saves(folder: Path, rng: np.random.Generator) -> bool:
    wrong, within = [], 0
    for _ in range(50):
        unloadable, saving = runs.kill_while_saving(folder, rng)
        wrong, within = wrong + unloadable, within + saving
    show(wrong)
    print(f"saves    {len(wrong)} checkpoints that do not load after 50 kills, {within} of them while one was written")
    return not wrong


def signals(folder: Path, rng: np.random.Generator) -> bool:
    right, longest = 0, 0.0
    for trial in range(20):
        wrong, took = runs.stop(folder, rng, (signal.SIGINT, signal.SIGTERM)[trial % 2])
        right, longest = right + (not wrong), max(longest, took)
        show(wrong)
    whole = 0
    for trial in range(10):
        wrong = runs.stop(folder, rng, (signal.SIGINT, signal.SIGTERM)[trial % 2], again=True)[0]
        whole += not wrong
        show(wrong)
    print(f"signals  {right} of 20 saved and said how to resume, in {longest:.2f} s at most;", end=" ")
    print(f"{whole} of 10 left a checkpoint that loads after two signals")
    return (right, whole) == (20, 10)


def flips(folder: Path, rng: np.random.Generator) -> bool:
    cut, flipped = damage.truncations(folder / "m", every=1), damage.flips(folder / "m", rng, 4000)
    size = len(damage.small_checkpoint(folder / "m"))
    show(cut + flipped)
    print(f"flips    {len(flipped)} of 4000 flipped bits and {len(cut)} of {size} truncations load")
    return not cut + flipped


def data(folder: Path, rng: np.random.Generator) -> bool:
    became, silent = damage.damaged_data(folder, rng, 500)
    show(silent)
    counts = ", ".join(f"{became[answer]} {answer}" for answer in ("refused", "told", "harmless"))
    print(f"data     {len(silent)} of 500 damaged files load as something else without a word ({counts})")
    return not silent


def cost(folder: Path, rng: np.random.Generator) -> bool:
    saving, loading = costs.save_and_load(folder / "m")
    shares = {name: costs.share_of_checks(name) for name in costs.WORKLOADS}
    print(f"costs    a ViT-Ti is saved in {saving:.3f} s and loaded in {loading:.3f} s; checks take", end=" ")
    print(", ".join(f"{100 * share:.2f} % of a step of {name}" for name, share in shares.items()))
    return saving < 0.3 and max(shares.values()) < 0.01


def suite(folder: Path, rng: np.random.Generator) -> bool:
    right = 0
    environment = {name: value for name, value in os.environ.items() if name not in SINGLE}
    for seed in rng.integers(2**32, size=20):
        order = ["-p", "no:cacheprovider", "--basetemp", str(folder / "tests"), f"--randomly-seed={seed}"]
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(len(os.sched_getaffinity(0))), *order]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        print(f"  seed {seed}: {run.stdout.strip().splitlines()[-1]}", flush=True)
        show([line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))])
        right += run.returncode == 0
    print(f"suite    {right} of 20 runs of all tests, each in another order, without a failure")
    return right == 20


TRIALS: dict[str, Trial] = {
    "resumes": resumes,
    "saves": saves,
    "signals": signals,
    "flips": flips,
    "data": data,
    "costs": cost,
    "suite": suite,
}


def show(wrong: list[str]) -> None:
    for line in wrong:
        print(f"  {line}")
