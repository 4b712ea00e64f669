"""Training runs that are killed and stopped at random moments, and what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import vitnp
from vitnp import train

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train_digits.py"
SIZES = ["--dim", "24", "--depth", "2", "--mlp-dim", "32", "--batch-size", "32", "--shards", "2"]
RANDOM = ["--dropout", "0.1", "--attention-dropout", "0.1", "--distort", "0.5", "--shift", "1", "--mixup", "0.4"]
OPTIONS = [*SIZES, *RANDOM, "--images", "1500", "--held-out", "100", "--epochs", "6"]
ENDLESS = ["--epochs", "100000"]
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": str(ROOT)}
RUN = Path("runs") / "digits"  # below the folder where the script is started


def start(cwd: Path, *options: str) -> subprocess.Popen[str]:
    """Start the training script, or go on with the run that is there."""
    checkpoint = cwd / RUN / train.CHECKPOINT
    if checkpoint.exists():
        arguments = ["--resume", str(RUN / train.CHECKPOINT)]
    else:
        shutil.rmtree(cwd / RUN, ignore_errors=True)  # killed before its first checkpoint: nothing to go on from
        arguments = OPTIONS
    command = [sys.executable, str(SCRIPT), *arguments, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Return what a run printed, once it has ended well; AssertionError with what it said where it has not."""
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, ""), f"status {process.returncode}: {errors}"
    return output


def kill_and_resume(cwd: Path, rng: np.random.Generator, seconds: float, kills: int) -> int:
    """Kill a run at random moments of the `seconds` that it takes, then let it end; return how often: at least once."""
    killed = 0
    while killed < kills:
        process = start(cwd, "--save-every", "0.05")
        try:
            process.communicate(timeout=rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        else:
            if killed:
                break
            shutil.rmtree(cwd / RUN)  # it was quicker than the moment that was drawn
            seconds /= 2
    finish(start(cwd))
    return killed


def differences(found: Path, expected: Path) -> list[str]:
    """Return what of two finished runs is not bit for bit the same, but for the seconds that they took."""
    wrong = []
    for name in (train.CHECKPOINT, train.BEST):
        a, b = (vitnp.load_checkpoint(folder / name) for folder in (found, expected))
        vectors = [(a.model.flat, b.model.flat)]
        if a.optimizer is not None and b.optimizer is not None:
            vectors += [(a.optimizer.m, b.optimizer.m), (a.optimizer.v, b.optimizer.v)]
            wrong += [f"{name}: steps"] if a.optimizer.steps != b.optimizer.steps else []
        wrong += [f"{name}: vector {i}" for i, pair in enumerate(vectors) if pair[0].tobytes() != pair[1].tobytes()]
        progress = [{**state.progress, "seconds": 0} for state in (a, b)]
        for one in progress:  # which nothing depends on
            one["settings"] = {**one["settings"], "save_every": 0}
        wrong += [f"{name}: progress"] if progress[0] != progress[1] else []
    if (found / train.METRICS).read_bytes() != (expected / train.METRICS).read_bytes():
        wrong.append(train.METRICS)
    return wrong + [f"left over: {path.name}" for path in found.iterdir() if path.name.startswith(".")]


def kill_while_saving(cwd: Path, rng: np.random.Generator) -> tuple[list[str], bool]:
    """Kill a run that saves every step; return which checkpoints do not load, and whether it was just writing one."""
    process = start(cwd, *ENDLESS, "--save-every", "0")
    wait_for_training(process)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
    unloadable = []
    for name in (train.CHECKPOINT, train.PREVIOUS):
        try:
            vitnp.load_checkpoint(cwd / RUN / name)
        except FileNotFoundError:
            unloadable += [] if name == train.PREVIOUS else [f"{name} is not there"]
        except vitnp.CheckpointError as error:
            unloadable.append(str(error))
    return unloadable, any(path.suffix == ".tmp" for path in (cwd / RUN).iterdir())


def stop(cwd: Path, rng: np.random.Generator, number: signal.Signals, again: bool = False) -> tuple[list[str], float]:
    """Send a signal at a random moment, or two; return what is wrong then, and how long the run took to end."""
    process = start(cwd, *ENDLESS, "--save-every", "1e6")
    wait_for_training(process)
    time.sleep(rng.uniform(0, 0.4))
    sent = time.monotonic()
    process.send_signal(number)
    if again:
        time.sleep(rng.uniform(0, 0.01))
        process.send_signal(number)
    output = process.communicate()[0]
    took, wrong = time.monotonic() - sent, []
    # A shell calls it 128 + number, too, where the second one comes when the run has ended and Python is about to.
    if process.returncode not in (128 + number, *([-number] if again else [])):
        wrong.append(f"{number.name}: status {process.returncode}")
    if not again and "resume with: " not in output:
        wrong.append(f"{number.name}: does not say how to resume")
    return wrong + damage_in(cwd / RUN, exact=not again), took


def damage_in(folder: Path, exact: bool) -> list[str]:
    """Return what is wrong with a run's checkpoint, and with its metrics where they must end with its last step."""
    checkpoint = vitnp.load_checkpoint(folder / train.CHECKPOINT)
    rows = [json.loads(line) for line in (folder / train.METRICS).read_text().splitlines()]
    steps = [row["step"] for row in rows if "lr" in row][: None if exact else checkpoint.optimizer.steps]
    return [] if steps == list(range(1, checkpoint.optimizer.steps + 1)) else ["metrics have a gap, or a line twice"]


def wait_for_training(process: subprocess.Popen[str]) -> None:
    """Return when the head of the table is printed, after which the steps begin."""
    for line in process.stdout:
        if line.startswith("epoch train loss"):
            return
    raise AssertionError(process.stderr.read())
