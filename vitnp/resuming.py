"""Going on with a run: its checkpoint is read, and the command line may say nothing else than the run that it began."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vitnp.checkpoint import Checkpoint, CheckpointError, load_checkpoint

CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
PLACES = (
    "resume",
    "out",
    "data",
    "mirror",
    "download",
    "device",
    "save_every",
    "debug",
)  # options that say where a run happens, not what it is
RUN = (
    "script",
    "settings",
    "seen",
    "images",
    "seconds",
    "data",
    "best",
    "metrics",
)  # what a checkpoint says of its run


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
        if given.get(name, value) != value
    ]
    if others:
        raise ValueError(f"{'; '.join(others)}: leave {'it' if len(others) == 1 else 'them'} out")
    for name, value in settings.items():
        setattr(args, name, value)


def option_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(name: str, value: Any) -> Any:
    """A setting as it is written on the command line."""
    return "inf" if name == "clip_norm" and value is None else value
