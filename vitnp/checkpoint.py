"""Checkpoints: a model, its optimizer and where a run stands, in one safetensors file.

    <parameter>, as "blocks.0.attn.qkv.weight"     the model's parameters, which any safetensors reader finds by name
    adam.m.<parameter>, adam.v.<parameter>         the optimizer's moments, or of SGD its sums, sgd.u.<parameter>
    ema.<parameter>                                the moving average, where there is one
    metadata "vitnp"                               JSON: format, version, configuration, where it was made, settings of
                                                   optimizer and average, progress, "sha256": of every tensor
    metadata "sha256"                              of that JSON: the format has no checksum itself

A file is written beside its target, flushed to the disk and renamed, so that the target is at any moment the old file
or the new one, never a part of either. Everything is checked before it is believed, and a failed load changes nothing.

Files of every earlier format load, with model, optimizer and progress, and those of a later one are refused with the
version that wrote them. Format 1 had one digest for everything, and did not say where it was made.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitnp.backend import Array, to_cpu, to_device
from vitnp.durable import write_atomically
from vitnp.environment import environment
from vitnp.moving_average import MovingAverage
from vitnp.optim import SGD, Adam, Optimizer
from vitnp.vit import VisionTransformer, ViTConfig

FORMAT = 2
OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "sgd": SGD}  # by their names in the file
Tensors = dict[str, np.ndarray]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or not into what was asked for."""


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model, optimizer: what was trained; None for an optimizer that was not saved.
        progress: the run's own notes.
        environment: where it was made, as `vitnp.environment` tells it; empty in files of format 1.
        average: the moving average of the parameters, None where there is none.
    """

    model: VisionTransformer
    optimizer: Optimizer | None
    progress: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    average: MovingAverage | None = None


def save_checkpoint(
    path: str | os.PathLike[str],
    model: VisionTransformer,
    optimizer: Optimizer | None = None,
    progress: dict[str, Any] | None = None,
    previous: str | os.PathLike[str] | None = None,
    average: MovingAverage | None = None,
) -> None:
    """Write a checkpoint atomically; `progress` is anything that JSON holds.

    With `previous`, the file that was at `path` is kept there.

    Raises OSError where the file cannot be written, and ValueError for numbers that are not finite, in tensors or
    progress, and for an optimizer or an average of another model; an older file at `path` is then as it was.
    """
    from safetensors.numpy import save

    from vitnp import __version__

    if optimizer is not None and optimizer.model is not model:
        raise ValueError("the optimizer was made for another model: its moments would be of no use beside this one")
    if average is not None and average.model is not model:
        raise ValueError("the average is of another model: give the model that it was made with")
    tensors = _tensors_of(model, optimizer, average)
    if bad := _not_finite(tensors):
        raise ValueError(f"{bad} holds NaN or infinity: a checkpoint of that would be of no use, so none is written")
    meta: dict[str, Any] = {
        "format": FORMAT,
        "vitnp": __version__,
        "config": model.config.to_dict(),
        "dtype": str(model.flat.dtype),
        "environment": environment(),
        "progress": progress or {},
        "sha256": {name: _digest(tensor) for name, tensor in tensors.items()},
    }
    if optimizer is not None:
        meta[_name(optimizer)] = {name: getattr(optimizer, name) for name in optimizer.settings}
    if average is not None:
        meta["ema"] = {"decay": average.decay, "updates": average.updates}
    description = json.dumps(meta, allow_nan=False)
    content = save(tensors, {"vitnp": description, "sha256": hashlib.sha256(description.encode()).hexdigest()})
    write_atomically(Path(path), content, Path(previous) if previous is not None else None)


def load_checkpoint(path: str | os.PathLike[str], device: str = "cpu") -> Checkpoint:
    """Read a checkpoint; digests, names, shapes, dtypes and finiteness are checked before it is believed.

    Raises FileNotFoundError, or CheckpointError that names the file, what was found and what was expected.
    """
    meta, tensors = _read(Path(path))
    try:
        model = _build_model(meta, tensors)
        optimizer, average = _rebuild_optimizer(model, meta), _rebuild_average(model, meta)
        progress, made_in = dict(meta["progress"]), dict(meta.get("environment", {}))
    except (KeyError, TypeError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: the description of the model is damaged: {error}") from None
    places = _tensors_of(model, optimizer, average)
    _compare(path, tensors, places)
    for name, place in places.items():
        place[...] = tensors[name]
    if device == "cpu":
        return Checkpoint(model, optimizer, progress, made_in, average)
    on_device = model.to_device(device)
    moved_optimizer, moved_average = _rebuild_optimizer(on_device, meta), _rebuild_average(on_device, meta)
    moved = _vectors_of(on_device, moved_optimizer, moved_average)
    for name, vector in _vectors_of(model, optimizer, average).items():
        moved[name][...] = to_device(vector, device)
    return Checkpoint(on_device, moved_optimizer, progress, made_in, moved_average)


def _vectors_of(
    model: VisionTransformer, optimizer: Optimizer | None, average: MovingAverage | None
) -> dict[str, Array]:
    """Return every vector that is saved, by what stands before a parameter's name in the file."""
    vectors = {"": model.flat}
    if optimizer is not None:
        vectors |= {f"{_name(optimizer)}.{name}.": getattr(optimizer, name) for name in optimizer.state}
    return vectors if average is None else vectors | {"ema.": average.averaged.flat}


def _tensors_of(model: VisionTransformer, optimizer: Optimizer | None, average: MovingAverage | None) -> Tensors:
    """Return everything that is saved, by its name in the file: on a CPU the arrays themselves."""
    # Views into a vector are contiguous, which safetensors' writer needs and does not check.
    on_cpu = {prefix: to_cpu(vector) for prefix, vector in _vectors_of(model, optimizer, average).items()}
    return {
        prefix + name: model.layout.view(vector, name)
        for prefix, vector in on_cpu.items()
        for name in model.layout.names
    }


def _build_model(meta: dict[str, Any], tensors: Tensors) -> VisionTransformer:
    config = ViTConfig(**meta["config"])
    if config.depth > len(tensors):  # before a damaged number makes a million layers
        raise ValueError(f"depth {config.depth} does not go with {len(tensors)} tensors")
    return VisionTransformer(config, rng=None, dtype=meta["dtype"])


def _name(optimizer: Optimizer) -> str:
    return next(name for name, kind in OPTIMIZERS.items() if isinstance(optimizer, kind))


def _rebuild_optimizer(model: VisionTransformer, meta: dict[str, Any]) -> Optimizer | None:
    name = next((name for name in OPTIMIZERS if name in meta), None)
    if name is None:
        return None
    kind, settings = OPTIMIZERS[name], meta[name]
    if sorted(settings) != sorted(kind.settings) or not _is_count(settings["steps"]):
        raise ValueError(f"the optimizer's settings are {settings}; expected {', '.join(kind.settings)}")
    given: dict[str, Any] = {key: value for key, value in settings.items() if key != "steps"}
    optimizer = kind(model, **{**given, "lr": 1.0})
    optimizer.lr = float(settings["lr"])  # which may be 0, as schedules end there
    if not 0 <= optimizer.lr < math.inf:
        raise ValueError(f"lr is {optimizer.lr}; it must be at least 0")
    optimizer.steps = settings["steps"]
    return optimizer


def _rebuild_average(model: VisionTransformer, meta: dict[str, Any]) -> MovingAverage | None:
    settings = meta.get("ema")
    if settings is None:
        return None
    if sorted(settings) != ["decay", "updates"] or not _is_count(settings["updates"]):
        raise ValueError(f"the average's settings are {settings}; expected decay, updates")
    average = MovingAverage(model, settings["decay"])
    average.updates = settings["updates"]
    return average


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _digest(tensor: np.ndarray) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode())
    digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Return the description and the tensors, both as they were written."""
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "vitnp" not in metadata:
            raise CheckpointError(f"{path}: a safetensors file, but not one of vitnp's: it has no such metadata")
        meta = json.loads(metadata["vitnp"], parse_float=_finite, parse_constant=_finite)
        if meta["format"] not in (1, FORMAT):
            raise CheckpointError(
                f"{path}: format {meta['format']}, written by vitnp {meta.get('vitnp')}; "
                f"this version reads formats 1 to {FORMAT}: use that one, or a later one"
            )
        (_check_digest_of_all if meta["format"] == 1 else _check_digests)(path, metadata, meta, tensors)
        return meta, tensors
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}): check its permissions") from None
    except (SafetensorError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path}: no readable checkpoint, it is damaged or cut short: {error}") from None


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; expected a checkpoint, as the file checkpoint.safetensors in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: no readable checkpoint: the file is empty")


def _finite(text: str) -> float:
    """Return a number of the description: JSON as Python reads it may hold NaN, Infinity and 1e999, too."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} in the description; expected finite numbers")
    return number


def _check_digests(path: Path, metadata: dict[str, str], meta: dict[str, Any], tensors: Tensors) -> None:
    """Raise CheckpointError that names what is not as it was written: the description, or a tensor."""
    described = hashlib.sha256(metadata["vitnp"].encode()).hexdigest()
    found = {"the description": described} | {name: _digest(tensor) for name, tensor in tensors.items()}
    expected = {"the description": metadata.get("sha256")} | meta["sha256"]
    for name, digest in found.items():
        if digest != expected.get(name):
            raise CheckpointError(f"{path}: {name} has SHA-256 {digest}, expected {expected.get(name)}: damaged")


def _check_digest_of_all(path: Path, metadata: dict[str, str], meta: dict[str, Any], tensors: Tensors) -> None:
    """The same for format 1."""
    digest = hashlib.sha256(metadata["vitnp"].encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    if digest.hexdigest() != metadata.get("sha256"):
        raise CheckpointError(
            f"{path}: its content has SHA-256 {digest.hexdigest()}, expected {metadata.get('sha256')}: damaged"
        )


def _compare(path: Any, found: Tensors, expected: Tensors) -> None:
    """Raise CheckpointError unless the tensors are those expected, of the same shapes and dtype, all finite."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(f"{path}: missing {missing or 'nothing'}, not expected {extra or 'nothing'}")
    for name, parameter in expected.items():
        tensor = found[name]
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype} {tensor.shape}; expected {parameter.dtype} {parameter.shape}"
            )
    if bad := _not_finite(found):
        raise CheckpointError(f"{path}: {bad} holds numbers that are not finite")


def _not_finite(tensors: Tensors) -> str | None:
    """Return the name of the first tensor that has NaN or infinity."""
    return next((name for name, tensor in tensors.items() if not np.isfinite(tensor).all()), None)
