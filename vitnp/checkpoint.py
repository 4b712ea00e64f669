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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from vitnp.backend import Array, to_cpu, to_device
from vitnp.config import ViTConfig
from vitnp.durable import write_atomically
from vitnp.environment import environment
from vitnp.masked import MaskedPatchPrediction
from vitnp.moving_average import MovingAverage
from vitnp.optim import SGD, Adam, Optimizer
from vitnp.vit import VisionTransformer

FORMAT = 2
MASKED = "masked patch prediction"  # what a description says where the model is one
LONGEST = 4 << 20  # bytes of a header: a thousand tensors have 0.2 million, the names of 21,841 classes 0.6 million
OF_BLOCK, OF_UNIT = 12, 9  # tensors that a block, and a unit of a stem, have at least
DTYPES = {"F32": "float32", "F64": "float64", "C64": "complex64"}  # of the format's, those that a model may have
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
    progress, for a progress of megabytes, and for an optimizer or an average of another model; an older file at `path`
    is then as it was.
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
        "environment": environment(model.device),
        "progress": progress or {},
        "sha256": {name: _digest(tensor) for name, tensor in tensors.items()},
    }
    if isinstance(model, MaskedPatchPrediction):
        meta["model"] = MASKED
    if optimizer is not None:
        meta[_name(optimizer)] = {name: getattr(optimizer, name) for name in optimizer.settings}
    if average is not None:
        meta["ema"] = {"decay": average.decay, "updates": average.updates}
    description = json.dumps(meta, allow_nan=False)
    _parse(description)  # what could not be read again is told now
    content = save(tensors, {"vitnp": description, "sha256": hashlib.sha256(description.encode()).hexdigest()})
    if (length := int.from_bytes(content[:8], "little")) > LONGEST:
        raise ValueError(f"the description has {length:,} bytes, expected at most {LONGEST:,}: make `progress` smaller")
    write_atomically(Path(path), content, Path(previous) if previous is not None else None)


def load_checkpoint(path: str | os.PathLike[str], device: str = "cpu") -> Checkpoint:
    """Read a checkpoint; digests, names, shapes, dtypes and finiteness are checked before it is believed.

    Raises FileNotFoundError, or CheckpointError that names the file, what was found and what was expected.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata, entries = _read_header(file)
        meta = _read_description(path, metadata)
        loaded = _rebuild(path, meta, entries)
        places = _tensors_of(loaded.model, loaded.optimizer, loaded.average)
        _fill(path, file, metadata, meta, entries, places)
    return loaded if device == "cpu" else _moved(loaded, meta, device)


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether a file calls itself one of vitnp's checkpoints, of any format; nothing else of it is checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return "vitnp" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


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


def _rebuild(path: Path, meta: dict[str, Any], entries: dict[str, Any]) -> Checkpoint:
    """Return what the description says, with numbers yet to be read, once the tensors of the file go with it."""
    with _described(path):
        model = _build_model(meta, len(entries))
        optimizer = _rebuild_optimizer(model, meta)
        progress, made_in = dict(meta["progress"]), dict(meta.get("environment", {}))
    # What is unset, or zero, is no memory yet. An average is, as it begins as a copy: so it comes after the comparison.
    expected = _tensors_of(model, optimizer, None)
    if meta.get("ema") is not None:
        expected |= {f"ema.{name}": parameter for name, parameter in model.parameters().items()}
    _compare(path, entries, expected)
    with _described(path):
        return Checkpoint(model, optimizer, progress, made_in, _rebuild_average(model, meta))


def _moved(loaded: Checkpoint, meta: dict[str, Any], device: str) -> Checkpoint:
    """Return a copy on another device."""
    model = loaded.model.to_device(device)
    moved = replace(
        loaded, model=model, optimizer=_rebuild_optimizer(model, meta), average=_rebuild_average(model, meta)
    )
    places = _vectors_of(model, moved.optimizer, moved.average)
    for name, vector in _vectors_of(loaded.model, loaded.optimizer, loaded.average).items():
        places[name][...] = to_device(vector, device)
    return moved


def _build_model(meta: dict[str, Any], tensors: int) -> VisionTransformer:
    config = ViTConfig(**meta["config"])
    if config.depth * OF_BLOCK > tensors:  # before a damaged number makes a million layers
        raise ValueError(f"depth {config.depth} does not go with {tensors} tensors")
    if (units := sum(config.stem_blocks or ())) * OF_UNIT > tensors:
        raise ValueError(f"stem_blocks of {units} units do not go with {tensors} tensors")
    kinds = {None: VisionTransformer, MASKED: MaskedPatchPrediction}
    if (kind := meta.get("model")) not in kinds:
        raise ValueError(f"the model is {kind!r}; expected none named, or {MASKED!r}")
    return kinds[kind](config, rng=None, dtype=meta["dtype"])


def _name(optimizer: Optimizer) -> str:
    return next(name for name, kind in OPTIMIZERS.items() if isinstance(optimizer, kind))


def _rebuild_optimizer(model: VisionTransformer, meta: dict[str, Any]) -> Optimizer | None:
    name = next((name for name in OPTIMIZERS if name in meta), None)
    if name is None:
        return None
    kind, settings = OPTIMIZERS[name], meta[name]
    booleans = any(isinstance(value, bool) for value in settings.values())  # which count as 0 and 1
    if sorted(settings) != sorted(kind.settings) or not _is_count(settings["steps"]) or booleans:
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
    return type(value) is int and 0 <= value < 2**63


def _digest(tensor: np.ndarray) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode())
    digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------------
#
# Not with the library that writes, which would read every tensor into memory of its own: here nothing is read that is
# not expected, and what is goes to its place, so that the largest file costs no more than the model that it describes.


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The open file; whatever turns out to be wrong with its content is a CheckpointError."""
    _check_file(path)
    try:
        with open(path, "rb") as file:
            yield file
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}): check its permissions") from None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: no readable checkpoint, it is damaged or cut short: {error}") from None


@contextmanager
def _described(path: Path) -> Iterator[None]:
    """While something is built as the description says: whatever is wrong with that is a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}: the description of the model is damaged: {error}") from None


def _read_header(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata, and of each tensor its "dtype", "shape" and "data_offsets", all as they were written.

    The format: 8 bytes that tell the length of a JSON object, that object, and the tensors without a gap.
    """
    length, rest = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size - 8
    if not 0 < length <= min(rest, LONGEST):
        raise ValueError(f"its header would have {length:,} bytes; expected at most {min(max(rest, 0), LONGEST):,}")
    header = json.loads(file.read(length).decode(), object_pairs_hook=_each_once)
    metadata, end = header.pop("__metadata__", {}), 0
    for name, (start, stop) in sorted(((name, e["data_offsets"]) for name, e in header.items()), key=lambda e: e[1]):
        if start != end or stop < start:
            raise ValueError(f"{name} is at bytes {start} to {stop}; expected it to begin at {end}")
        end = stop
    if end != rest - length:
        raise ValueError(f"its tensors have {rest - length:,} bytes, expected {end:,}")
    return metadata, header


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs: JSON as Python reads it may hold a name twice, too, and the last one wins."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name is there twice among {', '.join(list(found)[:3])}, ...")
    return found


def _read_description(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if "vitnp" not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not one of vitnp's: it has no such metadata")
    meta = _parse(metadata["vitnp"])
    if meta["format"] not in (1, FORMAT):
        raise CheckpointError(
            f"{path}: format {meta['format']}, written by vitnp {meta.get('vitnp')}; "
            f"this version reads formats 1 to {FORMAT}: use that one, or a later one"
        )
    if meta["format"] != 1:
        _expect(path, "the description", hashlib.sha256(metadata["vitnp"].encode()).hexdigest(), metadata.get("sha256"))
    return meta


def _parse(description: str) -> dict[str, Any]:
    options: Any = {"parse_float": _finite, "parse_constant": _finite, "object_pairs_hook": _each_once}
    meta: dict[str, Any] = json.loads(description, parse_int=_bounded, **options)
    return meta


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


def _bounded(text: str) -> int:
    """Return an integer of the description: JSON as Python reads it may hold what no float can."""
    number = int(text)
    if abs(number) > sys.float_info.max:
        digits = len(text.lstrip("-"))
        raise ValueError(f"an integer of {digits} digits in the description; expected at most {sys.float_info.max}")
    return number


def _compare(path: Path, entries: dict[str, Any], places: Tensors) -> None:
    """Raise CheckpointError unless the tensors are those expected, of the same shapes and dtype; none is read yet."""
    missing, extra = sorted(places.keys() - entries.keys()), sorted(entries.keys() - places.keys())
    if missing or extra:
        raise CheckpointError(f"{path}: missing {missing or 'nothing'}, not expected {extra or 'nothing'}")
    for name, place in places.items():
        found, shape = entries[name]["dtype"], tuple(entries[name]["shape"])
        start, stop = entries[name]["data_offsets"]
        if shape != place.shape or DTYPES.get(found) != place.dtype or stop - start != place.nbytes:
            raise CheckpointError(
                f"{path}: {name} is {DTYPES.get(found, found)} {shape}, {stop - start} bytes; "
                f"expected {place.dtype} {place.shape}, {place.nbytes} bytes"
            )


def _fill(
    path: Path,
    file: IO[bytes],
    metadata: dict[str, str],
    meta: dict[str, Any],
    entries: dict[str, Any],
    places: Tensors,
) -> None:
    """Read each tensor to its place; CheckpointError names the first that is not as it was written, or not finite."""
    start, of_all = file.tell(), hashlib.sha256(metadata["vitnp"].encode())  # in format 1 one digest for everything
    for name, place in sorted(places.items()):
        file.seek(start + entries[name]["data_offsets"][0])
        if file.readinto(place.reshape(-1).view(np.uint8)) != place.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"{name} is cut short")
        if meta["format"] == 1:
            of_all.update(f"{name} {place.dtype} {place.shape}".encode())
            of_all.update(place.data)
        else:
            _expect(path, name, _digest(place), meta["sha256"].get(name))
        if not np.isfinite(place).all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite")
    if meta["format"] == 1:
        _expect(path, "its content", of_all.hexdigest(), metadata.get("sha256"))


def _expect(path: Path, what: str, digest: str, expected: str | None) -> None:
    if digest != expected:
        raise CheckpointError(f"{path}: {what} has SHA-256 {digest}, expected {expected}: damaged")


def _not_finite(tensors: Tensors) -> str | None:
    """Return the name of the first tensor that has NaN or infinity."""
    return next((name for name, tensor in tensors.items() if not np.isfinite(tensor).all()), None)
