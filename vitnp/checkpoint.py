"""Checkpoints: a model, its optimizer and where a run stands, in one safetensors file.

    <parameter>, as "blocks.0.attn.qkv.weight"     the model's parameters, which any safetensors reader finds by name
    adam.m.<parameter>, adam.v.<parameter>         the optimizer's moments
    metadata "vitnp"                               JSON: format, version, configuration, optimizer settings, progress
    metadata "sha256"                              of that JSON and of every tensor: the format has no checksum itself

A file is written beside its target, flushed to the disk and renamed, so that the target is at any moment the old file
or the new one, never a part of either. Everything is checked before it is believed, and a failed load changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitnp.backend import to_cpu, to_device
from vitnp.optim import Adam
from vitnp.vit import VisionTransformer, ViTConfig

FORMAT = 1
ADAM_SETTINGS = ("lr", "betas", "eps", "weight_decay", "steps")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or not into what was asked for."""


@dataclass
class Checkpoint:
    """What a checkpoint holds: the model, its optimizer (None if none was saved), and the run's own notes."""

    model: VisionTransformer
    optimizer: Adam | None
    progress: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: VisionTransformer,
    optimizer: Adam | None = None,
    progress: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically; `progress` is anything that JSON holds.

    Raises OSError where the file cannot be written, and ValueError for an optimizer of another model; an older file at
    `path` is then as it was.
    """
    from safetensors.numpy import save

    from vitnp import __version__

    if optimizer is not None and optimizer.model is not model:
        raise ValueError("the optimizer was made for another model: its moments would be of no use beside this one")
    vectors = {"": model.flat}
    meta: dict[str, Any] = {
        "format": FORMAT,
        "vitnp": __version__,
        "config": model.config.to_dict(),
        "dtype": str(model.flat.dtype),
        "progress": progress or {},
    }
    if optimizer is not None:
        vectors |= {"adam.m.": optimizer.m, "adam.v.": optimizer.v}
        meta["adam"] = {name: getattr(optimizer, name) for name in ADAM_SETTINGS}
    tensors: dict[str, np.ndarray] = {}
    for prefix, vector in vectors.items():
        on_cpu = to_cpu(vector)
        # Views into the vector are contiguous, which safetensors' writer needs and does not check.
        tensors |= {prefix + name: model.layout.view(on_cpu, name) for name in model.layout.names}
    description = json.dumps(meta)
    _write_atomically(Path(path), save(tensors, {"vitnp": description, "sha256": _digest(description, tensors)}))


def load_checkpoint(path: str | os.PathLike[str], device: str = "cpu") -> Checkpoint:
    """Read a checkpoint; names, shapes, dtypes and finiteness are checked before it is believed.

    Raises FileNotFoundError, or CheckpointError that names the file, what was found and what was expected.
    """
    meta, tensors = _read(Path(path))
    try:
        model = VisionTransformer(ViTConfig(**meta["config"]), rng=None, dtype=meta["dtype"])
        optimizer = _rebuild_adam(model, meta["adam"]) if "adam" in meta else None
        progress = dict(meta["progress"])
    except (KeyError, TypeError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: the description of the model is damaged: {error}") from None
    vectors = {"": model.flat}
    if optimizer is not None:
        vectors |= {"adam.m.": optimizer.m, "adam.v.": optimizer.v}
    places = {
        prefix + name: model.layout.view(vector, name)
        for prefix, vector in vectors.items()
        for name in model.layout.names
    }
    _compare(path, tensors, places)
    for name, place in places.items():
        place[...] = tensors[name]
    if device == "cpu":
        return Checkpoint(model, optimizer, progress)
    on_device = model.to_device(device)
    if optimizer is not None:
        m, v, steps = optimizer.m, optimizer.v, optimizer.steps
        optimizer = _rebuild_adam(on_device, {**meta["adam"], "steps": steps})
        optimizer.m[...], optimizer.v[...] = to_device(m, device), to_device(v, device)
    return Checkpoint(on_device, optimizer, progress)


def _rebuild_adam(model: VisionTransformer, settings: dict[str, Any]) -> Adam:
    if sorted(settings) != sorted(ADAM_SETTINGS) or not isinstance(settings["steps"], int) or settings["steps"] < 0:
        raise ValueError(f"the optimizer's settings are {settings}; expected {', '.join(ADAM_SETTINGS)}")
    optimizer = Adam(model, betas=settings["betas"], eps=settings["eps"], weight_decay=settings["weight_decay"])
    optimizer.lr = float(settings["lr"])  # which may be 0, as schedules end there
    optimizer.steps = settings["steps"]
    return optimizer


def _digest(description: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            description = metadata.get("vitnp")
            if description is None:
                raise CheckpointError(f"{path}: a safetensors file, but not one of vitnp's: it has no such metadata")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("sha256") != (found := _digest(description, tensors)):
            raise CheckpointError(
                f"{path}: its content has SHA-256 {found}, expected {metadata.get('sha256')}: damaged"
            )
        meta = json.loads(description)
        if meta.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: format {meta.get('format')}, written by vitnp {meta.get('vitnp')}; "
                f"this version reads format {FORMAT}"
            )
        return meta, tensors
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: no readable checkpoint, it is damaged or cut short: {error}") from None


def _compare(path: Any, found: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
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
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite")


def _write_atomically(path: Path, content: bytes) -> None:
    path = path.resolve()  # a link stays a link: its target is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    """Return the process's file-creation mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
