"""Checkpoints: a model, its optimizer and where a run stands, in one safetensors file.

    <parameter>, as "blocks.0.attn.qkv.weight"     the model's parameters, which any safetensors reader finds by name
    adam.m.<parameter>, adam.v.<parameter>         the optimizer's moments
    metadata "vitnp"                               JSON: format, version, configuration, optimizer settings, progress

A file is written beside its target, flushed to the disk and renamed, so that the target is at any moment the old file
or the new one, never a part of either. A file that does not fit is refused before anything is built from it.
"""

from __future__ import annotations

import contextlib
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

    Raises OSError where the file cannot be written; an older file at `path` is then as it was.
    """
    from safetensors.numpy import save

    from vitnp import __version__

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
        meta["adam"] = {name: getattr(optimizer, name) for name in ("lr", "betas", "eps", "weight_decay", "steps")}
    tensors: dict[str, np.ndarray] = {}
    for prefix, vector in vectors.items():
        on_cpu = to_cpu(vector)
        # Views into the vector are contiguous, which safetensors' writer needs and does not check.
        tensors |= {prefix + name: model.layout.view(on_cpu, name) for name in model.layout.names}
    _write_atomically(Path(path), save(tensors, {"vitnp": json.dumps(meta)}))


def load_checkpoint(path: str | os.PathLike[str], device: str = "cpu") -> Checkpoint:
    """Read a checkpoint; names, shapes, dtypes and finiteness are checked before it is believed.

    Raises FileNotFoundError, or CheckpointError that names the file, what was found and what was expected.
    """
    meta, tensors = _read(Path(path))
    try:
        config = ViTConfig(**meta["config"])
        model = VisionTransformer(config, rng=None, dtype=meta["dtype"])
        settings = meta.get("adam")
        progress = meta["progress"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the description of the model is damaged: {error}") from None
    prefixes = ["", "adam.m.", "adam.v."] if settings else [""]
    expected = {prefix + name: parameter for prefix in prefixes for name, parameter in model.parameters().items()}
    _compare(path, tensors, expected)
    for name, parameter in model.parameters().items():
        parameter[...] = tensors[name]
    model = model if device == "cpu" else model.to_device(device)
    optimizer = None
    if settings:
        steps = settings.pop("steps")
        optimizer = Adam(model, **settings)
        optimizer.steps = steps
        for vector, prefix in ((optimizer.m, "adam.m."), (optimizer.v, "adam.v.")):
            for name in model.layout.names:
                model.layout.view(vector, name)[...] = to_device(tensors[prefix + name], device)
    return Checkpoint(model, optimizer, progress)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    try:
        with safe_open(path, framework="numpy") as file:
            description = (file.metadata() or {}).get("vitnp")
            if description is None:
                raise CheckpointError(f"{path}: a safetensors file, but not one of vitnp's: it has no such metadata")
            meta = json.loads(description)
            if meta.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path}: format {meta.get('format')}, written by vitnp {meta.get('vitnp')}; "
                    f"this version reads format {FORMAT}"
                )
            return meta, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
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
