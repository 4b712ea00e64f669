"""Files of pretrained networks: the arrays that they hold and what they say of the network beside them.

A .npz file is the original's. A safetensors file is timm's, transformers' or torchvision's, which the name of its patch
projection tells. Nothing in any of them is run: pickles, as PyTorch writes them, are refused. Of an array first the
header is read, and the rest when it is wanted, no further than the header says: so a file of a few MB that would unpack
to gigabytes is refused by names and shapes before it does.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shlex
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitnp.checkpoint import CheckpointError
from vitnp.config import SIZES
from vitnp.data.archives import HEADER_BYTES, npy_header, read_member

PICKLE = "pytorch_model.bin"  # where older folders of transformers have no model.safetensors
MODEL = "model.safetensors"  # in a folder of transformers, and in one of timm's hub
INDEX = "model.safetensors.index.json"  # where a large model is in several files, and this says what is in which
NOTE = "vitnp.config"  # where the metadata of a safetensors file, or a .npz file's comment, has what vitnp wrote
PATCHES = {
    "patch_embed.proj.weight": "timm",
    "patch_embeddings.projection.weight": "huggingface",
    "conv_proj.weight": "torchvision",
}
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "V2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
GELUS = {"gelu_python": "erf", "gelu": "erf", "gelu_fast": "tanh", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
# config.json's name, ViTConfig's, and what transformers takes where the file does not say
DESCRIBED: tuple[tuple[str, str, Any], ...] = (
    ("image_size", "image_size", 224),
    ("patch_size", "patch_size", 16),
    ("num_channels", "channels", 3),
    ("hidden_size", "dim", 768),
    ("num_hidden_layers", "depth", 12),
    ("num_attention_heads", "num_heads", 12),
    ("intermediate_size", "mlp_dim", 3072),
    ("hidden_dropout_prob", "dropout", 0.0),
    ("attention_probs_dropout_prob", "attention_dropout", 0.0),
    ("layer_norm_eps", "layer_norm_eps", 1e-12),
)
# what timm makes a model with: what of it a ViTConfig has, what vitnp has one kind of, and what no output depends on
# that the arrays do not tell
TIMM_TOLD = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "channels",
    "embed_dim": "dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "reg_tokens": "registers",
    "qk_norm": "qk_norm",
    "init_values": "layer_scale",
}
TIMM_ALONE = {
    "act_layer": ("gelu", "gelu_tanh"),
    "norm_layer": ("layernorm",),
    "fc_norm": (True, False),
    "pre_norm": (False,),
    "final_norm": (True,),
    "qkv_bias": (True,),
    "pool_include_prefix": (False,),
}
TIMM_ELSE = {"num_classes", "global_pool", "class_token", "no_embed_class", "mlp_ratio"}
TIMM_ELSE |= {"pos_embed", "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size"}
TIMM_ELSE |= {f"{part}drop_rate" for part in ("", "pos_", "patch_", "proj_", "attn_")} | {"drop_path_rate"}
# the names of timm's whose networks are those of the paper's sizes; the same with more behind them may be others
TIMM_PLAIN = re.compile(r"(?:vit|deit3?)_(tiny|small|base|large|huge)_patch\d+_\d+")
TIMM_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}
TIMM_FAMILIES = ("vit_", "deit_", "deit3_", "flexivit_")  # others are other networks, of arrays by the same names
# what a file of vitnp's notes: the fields of a ViTConfig that no array tells
NOTED = ("image_size", "num_heads", "dropout", "attention_dropout", "gelu", "layer_norm_eps", "pos_init")
NOTED_LATER = {
    "stochastic_depth": 0.0,
    "layer_scale": None,
}  # what files have that were written before there were these


MOST_CHANNELS = 1024  # of an image, where a number is believed without an array that has it
Scale = tuple[list[float] | None, list[float] | None]  # mean and std


@dataclass(frozen=True)
class Stored:
    """An array of a file: its shape and dtype, and how it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]

    def changed(self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> Stored:
        """Return the array of another shape that `change` makes of this one."""
        return Stored(shape, self.dtype, lambda: change(self.read()))


Arrays = dict[str, Stored]


class Source(NamedTuple):
    """What a file holds: its layout, its arrays, and the fields of a ViTConfig that it states.

    `asked` are arguments of `load_pretrained` that it leaves open, each with what is said where it is not given.
    """

    layout: str
    arrays: Arrays
    described: dict[str, Any]
    asked: tuple[tuple[str, str], ...] = ()


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """A file, or the folder of a model of transformers, whose arrays are read while it is open.

    Raises FileNotFoundError, or CheckpointError that says what was found and what was expected.
    """
    file = path / MODEL if path.is_dir() else path
    for other in (INDEX, PICKLE):
        if not file.is_file() and (path / other).is_file():
            file = path / other
    if not file.is_file():
        held = f"; it has {sorted(p.name for p in path.iterdir())}" if path.is_dir() else ""
        raise FileNotFoundError(f"{file}: there is no such file{held}")
    try:
        with zipfile.ZipFile(file) if _is_zip(file) else nullcontext() as archive:
            yield _read_source(file, archive)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error}): check its permissions") from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile's words for a method it lacks, and for a password
        raise CheckpointError(f"{file}: cannot be unpacked: {error}") from None
    except (ValueError, TypeError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{file}: damaged or cut short: {error}") from None


def _read_source(file: Path, archive: zipfile.ZipFile | None) -> Source:
    if file.name == INDEX:
        source = _read_shards(file)
    else:
        source = _read_safetensors(file) if archive is None else _read_npz(file, archive)
    if source.layout == "huggingface":
        return source._replace(described=source.described | _read_config(file))
    if source.layout == "timm" and not source.described:
        return _read_timm(file, source)
    return source


def read_scale(path: str | os.PathLike[str]) -> Scale:
    """Return the (mean, std) that a folder of transformers or of timm's hub tells of its images, None where none does.

    `path` is the folder, or the model.safetensors in it. Pixels are in [0, 1]. Raises CheckpointError for what is no
    mean, and the like.
    """
    folder = _folder_of(path)
    source = folder / "preprocessor_config.json"
    if source.is_file():
        return _read_processor(source)
    source = folder / "config.json"
    config = _read_timm_config(source)
    told = config.get("pretrained_cfg") or config  # older ones have all of it in one
    return _one_a_channel(source, told, "mean"), _one_a_channel(source, told, "std")


def read_class_names(path: str | os.PathLike[str]) -> list[str] | None:
    """Return the names of the classes that the config.json of a folder of transformers tells, None where none does.

    `path` is the folder, or the model.safetensors in it. LABEL_0, LABEL_1 and so on, which transformers writes where it
    knows none, are no names.
    """
    file = _folder_of(path) / "config.json"
    config = _read_object(file, "the configuration of a model of transformers") if file.is_file() else {}
    labels = config.get("id2label")
    if not isinstance(labels, dict) or labels.keys() != {f"{i}" for i in range(len(labels))}:
        return None
    names = [labels[f"{i}"] for i in range(len(labels))]
    made_up = names == [f"LABEL_{i}" for i in range(len(names))]
    return None if made_up or not all(isinstance(name, str) for name in names) else names


def _folder_of(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path.parent if path.name in (MODEL, INDEX) else path


def _read_processor(source: Path) -> Scale:
    """Return mean and std of pixels p in [0, 1], of which transformers makes 255 r p, and normalises that or does not:

    (255 r p − mean) / std  =  (p − mean / 255 r) / (std / 255 r)
    """
    told = _read_object(source, "how transformers prepares an image")
    told = {name: value for name, value in told.items() if value is not None}
    for name in ("do_rescale", "do_normalize"):
        if not isinstance(told.get(name, True), bool):
            raise CheckpointError(f"{source}: {name} is {told[name]!r:.40}; expected true or false")
    r = told.get("rescale_factor", 1 / 255)
    if not _is_number(r) or r <= 0:
        raise CheckpointError(f"{source}: rescale_factor is {r!r:.40}; expected a number above 0")
    mean, std = _one_a_channel(source, told, "image_mean"), _one_a_channel(source, told, "image_std")
    white = 255 * (r if told.get("do_rescale", True) else 1)  # what a pixel of 1 becomes
    if not told.get("do_normalize", True):
        channels = _count_channels(source.with_name("config.json"))
        mean, std = [0.0] * channels, [1.0] * channels
    if white == 1:
        return mean, std
    usual = [0.5] * _count_channels(source.with_name("config.json"))  # of transformers, where the file has none
    return [m / white for m in mean or usual], [s / white for s in std or usual]


def _one_a_channel(source: Path, told: dict[str, Any], name: str) -> list[float] | None:
    numbers: list[float] | None = told.get(name)
    right = isinstance(numbers, list) and all(map(_is_number, numbers))
    if numbers is not None and not right:
        raise CheckpointError(f"{source}: {name} is {numbers!r:.40}; expected a list of numbers, one a channel")
    return numbers


def _count_channels(path: Path) -> int:
    config = _read_object(path, "the configuration of a model of transformers") if path.is_file() else {}
    channels = config.get("num_channels", 3)
    if type(channels) is not int or not 1 <= channels <= MOST_CHANNELS:
        raise CheckpointError(
            f"{path}: num_channels is {channels!r:.40}; expected an integer from 1 to {MOST_CHANNELS}"
        )
    return channels


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # which no integer of 400 digits is


def _read_timm_config(path: Path) -> dict[str, Any]:
    """Return the config.json of timm's hub; nothing where there is none, or another program's."""
    config = _read_object(path, "the configuration of a model of timm") if path.is_file() else {}
    if "architecture" not in config:
        return {}
    for name in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(name) or {}, dict):
            raise CheckpointError(f"{path}: {name} is {config[name]!r:.40}; expected an object")
    return config


def _read_timm(file: Path, source: Source) -> Source:
    """Return the source with what the config.json says that timm's hub has beside its files, of which no other name
    can be.

    What it leaves out is the model's own, as whether the norm comes after a mean, which the arrays tell.
    """
    path = file.with_name("config.json")
    config = _read_timm_config(path) if file.name in (MODEL, INDEX) else {}
    arguments = {name: value for name, value in (config.get("model_args") or {}).items() if value is not None}
    if unknown := sorted(arguments.keys() - TIMM_TOLD.keys() - TIMM_ALONE.keys() - TIMM_ELSE):
        raise CheckpointError(f"{path}: model_args has {', '.join(unknown)}, of which vitnp knows nothing")
    alone = {name: (arguments[name], choices) for name, choices in TIMM_ALONE.items() if name in arguments}
    named, asked = _told_by_name(path, config, source.arrays)
    described = named | {ours: arguments[theirs] for theirs, ours in TIMM_TOLD.items() if theirs in arguments}
    for told in (arguments, config, config.get("pretrained_cfg") or {}):
        if "global_pool" in told and "global_pool" not in alone:
            alone["global_pool"] = told["global_pool"], ("token", "avg")
    for name, (value, choices) in alone.items():
        if value not in choices:
            raise CheckpointError(f"{path}: {name} is {value!r}; vitnp has {' or '.join(map(str, choices))}")
    if "global_pool" in alone:
        mean = "mean-norm" if arguments.get("fc_norm", "fc_norm.weight" in source.arrays) else "mean"
        described["pool"] = "token" if alone["global_pool"][0] == "token" else mean
    if "act_layer" in arguments:
        described["gelu"] = "tanh" if arguments["act_layer"] == "gelu_tanh" else "erf"
    if config.get("num_classes"):
        described["num_classes"] = config["num_classes"]
    return source._replace(described=described, asked=asked)


def _told_by_name(
    path: Path, config: dict[str, Any], arrays: Arrays
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """Return what the name of a network of timm says of it, and what it leaves open; refuse one of another kind."""
    name, described = config.get("architecture", ""), {}
    if config and not (isinstance(name, str) and name.startswith(TIMM_FAMILIES)):
        raise CheckpointError(
            f"{path}: architecture is {name!r:.40}; expected one of timm's {', '.join(TIMM_FAMILIES)}: networks of "
            "another kind, whose arrays may have the same names, are not read"
        )
    if plain := TIMM_PLAIN.fullmatch(name):
        size, bias = SIZES[TIMM_SIZES[plain[1]]], arrays.get("patch_embed.proj.bias")
        if bias is not None and bias.shape == (size["dim"],):  # the name stays when a network is made another width
            described["num_heads"] = size["num_heads"]
    either = ("gelu", f"timm's {name} may have either GELU: give gelu, 'tanh' or 'erf'")
    return described, (either,) if "siglip" in name else ()


def _read_object(path: Path, what: str) -> dict[str, Any]:
    """Return what a file of JSON holds: an object, or CheckpointError says what was found instead of `what`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no readable JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: {found!r:.40}; expected {what}")
    return found


def _is_zip(path: Path) -> bool:
    """Return whether this is a zip archive, as .npz is; raise CheckpointError for a pickle."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # safetensors: the length before it may begin as anything, a pickle and a zip archive too
        return False
    pickled = start[:1] == b"\x80"
    if start[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith(".pkl") for name in archive.namelist())
    if pickled:
        target = path.with_name("model.safetensors") if path.name == PICKLE else path.with_suffix(".safetensors")
        raise CheckpointError(
            f"{path}: a pickle of PyTorch, which could run anything when it is read; convert it where you trust it: "
            'python -c "import sys, torch, safetensors.torch as s; p = torch.load(sys.argv[1], weights_only=True); '
            # some have the arrays among other things
            "p = next((v for k in ('model', 'state_dict') if isinstance(v := p.get(k), dict)), p); "
            's.save_file({k: v.contiguous() for k, v in p.items()}, sys.argv[2])" '
            f"{shlex.quote(str(path))} {shlex.quote(str(target))}"
        )
    return start[:2] == b"PK"


def _read_npz(path: Path, archive: zipfile.ZipFile) -> Source:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    # beside a network in training are the optimizer's state and a clock; beside a tower for images, one for text
    beside = r"opt/(?!target/)|chrono/|extra/"
    if any(name.startswith("params/img/") for name in members):
        beside += r"|params/(txt/|[tb]$)"
    names = [name for name in members if not re.match(beside, name)]
    if len(members) < len(archive.infolist()):
        often = Counter(member.filename for member in archive.infolist()).most_common(1)[0]
        raise CheckpointError(f"{path}: {often[0]} is there {often[1]} times; expected every array once: damaged")
    if others := [name for name in names if members[name].filename == name]:
        raise CheckpointError(f"{path}: an archive of other things than arrays, as {others[0]}; expected a .npz file")
    arrays = {name: _stored(path, archive, members[name]) for name in names}
    return Source("google", arrays, _read_note(archive.comment.decode()))


def _stored(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Stored:
    """Return an array of a .npz file, of which the header alone was read."""
    name = member.filename
    with archive.open(member) as file:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
            raise CheckpointError(f"{path}: {name} cannot be unpacked: expected it stored or deflated, as NumPy does")
        content = file.read(HEADER_BYTES)
    if (header := npy_header(content)) is None:
        raise CheckpointError(f"{path}: {name} begins with {content[:64]!r}; expected an array in NumPy's format 1.0")
    kind, transposed, shape, start = header
    if (dtype := np.dtype(kind)).hasobject:
        raise CheckpointError(f"{path}: {name} holds objects, which could run anything; expected floats")
    if (expected := start + math.prod(shape) * dtype.itemsize) != member.file_size:
        raise CheckpointError(
            f"{path}: {name} has {member.file_size:,} bytes, expected {expected:,} for {dtype} {shape}: damaged"
        )

    def read() -> np.ndarray:
        content = read_member(archive, member)
        return _widen(np.ndarray(shape, dtype, content, start, order="F" if transposed else "C"))

    return Stored(shape, _widened(dtype), functools.cache(read))


def _read_shards(index: Path) -> Source:
    """Read the files that an index names, all of which must be there with what it says is in them."""
    places = _read_object(index, "an index of safetensors files").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: weight_map is {places!r:.40}; expected the file of each array by its name")
    arrays: Arrays = {}
    for name in sorted(set(places.values())):
        file = index.with_name(Path(name).name)  # beside the index, and nowhere else
        if not file.is_file():
            raise CheckpointError(f"{index}: {name} is not beside it: copy all files of the model")
        arrays |= _read_arrays(file)[0]
    if missing := sorted(places.keys() - arrays.keys()):
        raise CheckpointError(f"{index}: {', '.join(missing[:3])} is in none of its files: copy them anew")
    return Source(_layout_of(index, arrays), arrays, {})


def _read_safetensors(path: Path) -> Source:
    arrays, metadata = _read_arrays(path)
    return Source(_layout_of(path, arrays), arrays, _read_note(metadata.get(NOTE, "")))


def _read_arrays(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Return the arrays and the metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # checks the header: no array ends beyond the file
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: no .npz and no readable safetensors file: {error}") from None
    if "vitnp" in metadata:
        raise CheckpointError(
            f"{path}: a checkpoint of vitnp's own: vitnp.load_checkpoint reads it, and scripts take it "
            "without --pretrained"
        )
    return _map_arrays(path), metadata


def _map_arrays(path: Path) -> Arrays:
    """Return the arrays of a safetensors file where they are, without a copy; its own reader knows no bfloat16."""
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            if entry["dtype"] not in DTYPES:
                raise CheckpointError(f"{path}: {name} is {entry['dtype']}; expected floats of 16, 32 or 64 bits")
            begin, end = entry["data_offsets"]
            array = np.frombuffer(content[start + begin : start + end], DTYPES[entry["dtype"]])
            array = array.reshape(entry["shape"])
            arrays[name] = Stored(array.shape, _widened(array.dtype), functools.partial(_widen, array))
    return arrays


def _layout_of(path: Path, arrays: Arrays) -> str:
    for patch, layout in PATCHES.items():
        if any(name.endswith(patch) for name in arrays):
            return layout
    raise CheckpointError(
        f"{path}: its layout is unknown: none of its {len(arrays)} arrays is a patch projection as timm, transformers "
        f"or torchvision call it ({', '.join(PATCHES)}); the first are {sorted(arrays)[:3]}"
    )


def _widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype("<f4") if dtype == np.dtype("V2") else dtype


def _widen(array: np.ndarray) -> np.ndarray:
    """Return bfloat16, which NumPy knows as two bytes without meaning, in float32, whose upper half it is."""
    if array.dtype != np.dtype("V2"):
        return array
    return (array.view("<u2").astype("<u4") << 16).view("<f4")


def _read_note(text: str) -> dict[str, Any]:
    """Return what vitnp noted in a file that it wrote; other programs' comments are none of its."""
    note = json.loads(text) if text.startswith("{") else {}
    later = {name: note.get(name, usual) for name, usual in NOTED_LATER.items()}
    return {name: note[name] for name in NOTED} | later if note else {}


def _read_config(file: Path) -> dict[str, Any]:
    path = file.with_name("config.json")
    if not path.is_file():
        raise CheckpointError(f"{file}: a model of transformers without its config.json, which must be beside it")
    config = _read_object(path, "the configuration of a model of transformers")
    expected = {"model_type": ("vit",), "hidden_act": tuple(GELUS), "pooler_act": ("tanh",), "qkv_bias": (True,)}
    usual = {"model_type": None, "hidden_act": "gelu", "pooler_act": "tanh", "qkv_bias": True}
    for name, choices in expected.items():
        if config.get(name, usual[name]) not in choices:
            raise CheckpointError(f"{path}: {name} is {config.get(name)!r}; vitnp has {' or '.join(map(str, choices))}")
    described = {ours: config.get(theirs, default) for theirs, ours, default in DESCRIBED}
    return described | {"gelu": GELUS[config.get("hidden_act", "gelu")]}
