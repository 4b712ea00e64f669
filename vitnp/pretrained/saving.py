"""Writing a model in the layout of another program."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vitnp.backend import to_cpu
from vitnp.checkpoint import Tensors
from vitnp.config import ViTConfig
from vitnp.durable import write_atomically
from vitnp.pretrained.files import DESCRIBED, GELUS, NOTE, NOTED, NOTED_LATER
from vitnp.pretrained.layouts import LAYOUTS, Sizes, Stem, places, turn
from vitnp.vit import VisionTransformer

SUFFIXES = {"google": ".npz", "huggingface": ""}
WRITTEN_AS = {".npz": "a file .npz", ".safetensors": "a file .safetensors", "": "a folder"}


def save_pretrained(model: VisionTransformer, path: str | os.PathLike[str], layout: str) -> None:
    """Write a model as "google" (.npz), "timm" or "torchvision" (safetensors), or "huggingface" (a folder) has it.

    The numbers are written in the model's dtype, bit for bit, and the same model makes the same bytes. Only
    "huggingface" tells another program which GELU and which epsilon the layer norms have: the others take their own
    (see `load_pretrained`), unless they are told. vitnp finds both in the file, with all else of the configuration. A
    folder's config.json keeps the names of the classes that it has already, where there are as many. timm 1.0
    has no place for a `representation_size`: its versions until 0.6, and vitnp, read such a file.

    Raises ValueError for an unknown layout, a name that ends as another layout's or as a pickle's, a network that the
    layout has no place for, complex numbers, and numbers that are not finite; OSError where a file cannot be written,
    and then older ones are as they were.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; choose one of {', '.join(map(repr, LAYOUTS))}")
    path, suffix = Path(path), SUFFIXES.get(layout, ".safetensors")
    if path.suffix in (".npz", ".safetensors") and path.suffix != suffix:
        raise ValueError(f"{path}: the layout {layout} is {WRITTEN_AS[suffix]}: choose another name")
    if path.suffix in (".pth", ".pt", ".bin"):
        raise ValueError(
            f"{path}: so PyTorch calls a pickle, and the layout {layout} is {WRITTEN_AS[suffix]}: choose another name"
        )
    tensors, config = _arrays(model, layout), model.config
    if layout == "google":
        write_atomically(path, _npz(tensors, _note(config)))
    elif layout == "huggingface":
        description = _describe(config, model.flat.dtype.name) | _kept_labels(path / "config.json", config.num_classes)
        _write_folder(path, _safetensors(tensors, {NOTE: _note(config)}), json.dumps(description, indent=2).encode())
    else:
        write_atomically(path, _safetensors(tensors, {NOTE: _note(config)}))


def _arrays(model: VisionTransformer, name: str) -> Tensors:
    """Return the model's parameters by the layout's names, in its shapes."""
    layout, config = LAYOUTS[name], model.config
    if config.pool != "token" and not layout.mean:
        raise ValueError(f'the layout {name} has no network without class token: use "google" or "timm"')
    if config.pool == "mean-norm" and layout.mean_norm is None:
        raise ValueError(f'the layout {name} has its final norm before the mean: use "timm"')
    if config.representation_size is not None and not layout.representation:
        raise ValueError(f"the layout {name} has no classifier after a pre-training head: use another")
    if config.stem_blocks is not None and layout.stem is None:
        raise ValueError(f'the layout {name} has no ResNet in front of the transformer: use "google" or "timm"')
    if (config.positions, config.pos_at) != ("learned", "stem"):
        raise ValueError(
            f"the layout {name} has no positions {config.positions!r} at {config.pos_at!r}: it has learned ones at the "
            "stem; save_checkpoint keeps any"
        )
    stem = None
    if config.stem_blocks is not None:
        stem = Stem(config.stem_blocks, config.channels, round(64 * config.stem_width))
    rows = list(layout.rows(config.depth, stem, config.pool == "mean-norm"))
    known = {row.own_name.replace("attn.q.", "attn.qkv.") for row in rows}
    if unknown := [parameter for parameter in model.parameters() if parameter not in known]:
        raise ValueError(f"the layout {name} has no place for {', '.join(unknown)}: save_checkpoint keeps any")
    if model.flat.dtype.kind != "f":
        raise ValueError(f"the model is {model.flat.dtype}; expected float32 or float64: use model.astype")
    own = {parameter: to_cpu(array) for parameter, array in model.parameters().items()}
    if bad := [parameter for parameter, array in own.items() if not np.isfinite(array).all()]:
        raise ValueError(f"{', '.join(bad)} holds NaN or infinity: such a file would be of no use, so none is written")
    sizes, own = _sizes(config), places(own)
    sizes["C"] = model.patch_embed.weight.shape[0] // (sizes["P"] * sizes["Q"])  # of the stem's map, where there is one
    first = int(config.pool == "token")  # other programs' registers come before the patches, and have positions
    own["pos_embed"] = np.insert(own["pos_embed"], [first] * config.registers, 0, axis=1)
    return {
        row.name: np.ascontiguousarray(turn(own[row.own_name], row.own_shape, row.shape, sizes | row.sizes))
        for row in rows
        if row.own_name in own
    }


def _sizes(config: ViTConfig) -> Sizes:
    P, Q = config.patch_size
    H, D = config.num_heads, config.dim
    sizes = {"1": 1, "3": 3, "P": P, "Q": Q, "N": config.num_tokens, "D": D, "H": H, "K": D // H}
    return sizes | {
        "G": config.registers,
        "M": config.mlp_dim,
        "R": config.representation_size or D,
        "Y": config.num_classes,
    }


def _note(config: ViTConfig) -> str:
    return json.dumps({name: getattr(config, name) for name in (*NOTED, *NOTED_LATER)})


def _npz(tensors: Tensors, note: str) -> bytes:
    """Return a .npz file, with the note as the archive's comment, where no reader of arrays sees it."""
    file = io.BytesIO()
    np.savez(file, **tensors)  # type: ignore[arg-type]
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = note.encode()
    return file.getvalue()


def _safetensors(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    from safetensors.numpy import save

    content: bytes = save(tensors)  # which puts metadata in any order
    end = 8 + int.from_bytes(content[:8], "little")
    # transformers reads no file without a format
    header = {"__metadata__": {"format": "pt", **metadata}, **json.loads(content[8:end])}
    start = json.dumps(header, separators=(",", ":")).encode()
    start += b" " * (-len(start) % 8)  # the arrays begin at a multiple of 8 bytes
    return len(start).to_bytes(8, "little") + start + content[end:]


def _write_folder(path: Path, arrays: bytes, description: bytes) -> None:
    """Write both files of a folder of transformers; where the second fails, the first is again what it was."""
    file = path / "config.json"
    before = file.read_bytes() if file.is_file() else None
    write_atomically(file, description)
    try:
        write_atomically(path / "model.safetensors", arrays)
    except BaseException:
        if before is None:
            file.unlink()
        else:
            write_atomically(file, before)
        raise


def _kept_labels(file: Path, num_classes: int) -> dict[str, Any]:
    """Return the names of the classes in a config.json that is there already, if they are as many as there are now."""
    try:
        found = json.loads(file.read_bytes())
        labels, numbers = found["id2label"], found["label2id"]
        fits = labels.keys() == {f"{i}" for i in range(num_classes)} and len(numbers) == num_classes
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # none, or not one that has names
    return {"id2label": labels, "label2id": numbers} if fits else {}


def _describe(config: ViTConfig, dtype: str) -> dict[str, Any]:
    """Return the config.json of transformers."""
    labels = [f"LABEL_{i}" for i in range(config.num_classes)]
    described: dict[str, Any] = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
    for theirs, ours, _ in DESCRIBED:
        value = getattr(config, ours)
        # an int where both sides are the same, as older versions want it
        described[theirs] = value[0] if isinstance(value, tuple) and value[0] == value[1] else value
    hidden_act = next(name for name in reversed(GELUS) if GELUS[name] == config.gelu)
    return described | {
        "hidden_act": hidden_act,
        "qkv_bias": True,
        "torch_dtype": dtype,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
