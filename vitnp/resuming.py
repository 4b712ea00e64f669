"""Going on with a run: its checkpoint is read, and the command line may say nothing else than the run that it began."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitnp.checkpoint import Checkpoint, CheckpointError, load_checkpoint

CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
PLACES = ("resume", "out", "data", "mirror", "download", "device", "debug")  # where a run happens, not what it is
CHANGEABLE = ("save_every", "test_data")  # what a run remembers, and whoever resumes it may say anew


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any, least: float = 0) -> bool:
    return type(value) in (int, float) and least <= value <= sys.float_info.max


def _is_seen(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"loss", "correct", "images"}
        and _is_number(value["loss"])
        and _is_count(value["correct"])
        and _is_count(value["images"])
    )


def _is_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("training", "test"))


def _is_best(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("epoch")) and _is_number(value.get("accuracy"), least=-1)


def _is_state_of_metrics(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("lines")) and isinstance(value.get("sha256"), str)


RUN: dict[str, Callable[[Any], bool]] = {  # what a checkpoint says of its run, and whether it may be that
    "script": lambda value: isinstance(value, str),
    "settings": lambda value: isinstance(value, dict),
    "seen": _is_seen,
    "images": _is_count,
    "seconds": _is_number,
    "data": _is_digests,
    "best": _is_best,
    "metrics": _is_state_of_metrics,
}


def load_run(path: Path, device: str) -> Checkpoint:
    """Return the checkpoint; where it is damaged, say that the one before it is there."""
    try:
        return load_checkpoint(path, device)
    except CheckpointError as error:
        previous = path.with_name(PREVIOUS)
        if path.name != CHECKPOINT or not previous.exists():
            raise
        raise CheckpointError(f"{error}; the one saved before it is {previous}: resume from that") from error


def take_settings(args: argparse.Namespace, given: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Give `args` the settings of the run that resumes; refuse a command line that says otherwise."""
    progress = checkpoint.progress
    if checkpoint.optimizer is None or not progress.keys() >= set(RUN):
        raise CheckpointError(f"{args.resume}: holds a model, but no run that could be resumed")
    if wrong := [name for name, is_right in RUN.items() if not is_right(progress[name])]:
        raise CheckpointError(
            f"{args.resume}: {wrong[0]} of its run is {progress[wrong[0]]!r:.80}, which no run says: damaged, or of "
            "another version of vitnp"
        )
    script, settings = progress["script"], progress["settings"]
    if script != Path(sys.argv[0]).name:
        raise CheckpointError(f"{args.resume}: a run of {script}, which alone can resume it")
    if args.resume.name not in (CHECKPOINT, PREVIOUS):
        raise ValueError(
            f"--resume is {args.resume}, but a run goes on in the folder of its {CHECKPOINT}: to go on from a copy, "
            "put it into another folder, under that name"
        )
    if "out" in given:
        raise ValueError(f"--out is {args.out}, but a run resumes in its own folder: leave it out")
    others = [
        f"{option_name(name)} is {_shown(name, given[name])}, but the run to resume has {_shown(name, value)}"
        for name, value in settings.items()
        if name not in CHANGEABLE and given.get(name, value) != value
    ]
    # What the script added later, as train_folder.py its files, is no option.
    if lacking := sorted(vars(args).keys() - {*PLACES, *CHANGEABLE} - settings.keys()):
        raise CheckpointError(
            f"{args.resume}: says nothing of {', '.join(map(option_name, lacking))}: damaged, or of another version of "
            "vitnp"
        )
    if others:
        raise ValueError(f"{'; '.join(others)}: leave {'it' if len(others) == 1 else 'them'} out")
    for name, value in settings.items():
        setattr(args, name, given.get(name, value))


def option_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(name: str, value: Any) -> Any:
    """A setting as it is written on the command line."""
    return "inf" if name == "clip_norm" and value is None else value
