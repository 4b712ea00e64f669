"""Reading a published Vision Transformer: all is compared with what its layout has before any of it is believed."""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vitnp.checkpoint import CheckpointError, Tensors
from vitnp.config import POOLS, SIZES, ConfigError, ViTConfig, pair
from vitnp.pretrained.files import Arrays, Source, Stored, opened
from vitnp.pretrained.layouts import LAYOUTS, Layout, Row, Sizes, Stem, axes, places, turn
from vitnp.pretrained.positions import RULES, check_rule, resize_grid
from vitnp.vit import VisionTransformer

MOST_BLOCKS = 1000  # that a stack is taken apart into
LAYER_SCALE = 1e-5  # where timm's layer scale starts unless it is told; what it has become is in the file
LETTERS = {"channels": "C", "dim": "D", "mlp_dim": "M", "num_classes": "Y"}


def load_pretrained(
    path: str | os.PathLike[str],
    dtype: DTypeLike = "float32",
    *,
    num_heads: int | None = None,
    grid: int | tuple[int, int] | None = None,
    pool: str | None = None,
    gelu: str | None = None,
    layer_norm_eps: float | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    resize: str | None = None,
) -> VisionTransformer:
    """Read a model from a file of the original (.npz), timm or torchvision (safetensors), or a folder of transformers.

    The layout and all that a file tells are found. What it may not tell:

    Args:
        num_heads: timm's and torchvision's files do not say it; a folder of timm's hub does where the name of its
            architecture is that of a size, as vit_base_patch16_224, and nothing more.
        grid: rows and columns of patches, where they are not a square, or registers make two squares possible; a
            folder of transformers tells, and one of timm's hub may.
        pool: what goes to the classifier, "token", "mean" or "mean-norm": the class token where there is one, and the
            mean where there is none, which timm's fc_norm comes after. No array tells a class token beside a mean,
            which vitnp has not: saying "mean" of such a file refuses it, as does the config.json that timm's hub has
            beside a model.safetensors.
        gelu, layer_norm_eps: where they are others than the layout's own programs take: "tanh" and 1e-6 for the
            original, "erf" and 1e-6 for timm and torchvision; a folder of transformers tells. Of timm's siglip, which
            have either GELU, it is asked for unless the folder tells.

    What may be another than the file's:

        num_classes: another number than the file's gets a head of zeros.
        image_size: pixels, an int or a (height, width) pair; another one wants `resize`.
        resize: how the positions go to another grid: "align-corners" as the original, "bilinear", "bicubic" as
            transformers, "bicubic-antialias" as timm; see `vitnp.pretrained.positions`.

    Files that vitnp wrote say everything, and a folder of timm's hub is believed as far as its config.json goes.
    Numbers are converted to `dtype`. The rates of dropout are those that the file says, as a folder of transformers
    does, and 0 where it says none; `vitnp.adapt` takes them out.

    How the network was given its pixels, no file of weights says. From [0, 1], the original and most of timm's take
    mean 0.5 and divide by std 0.5; torchvision's, and DeiT, take those of ImageNet, mean (0.485, 0.456, 0.406) and std
    (0.229, 0.224, 0.225); a folder of transformers has them in preprocessor_config.json, one of timm's hub in its
    config.json, and `vitnp.pretrained.read_scale` returns either. So uint8 images go in as `vitnp.predict(model,
    images, mean=[0.5] * 3, std=[0.5] * 3)`.

    Hybrids are the original's network in either layout that has them; timm computes their stem with other epsilons
    (1e-5 in its norms, 1e-8 in its weights), which made 1e-6 to 2e-4 of the largest logit in small random networks.

    Raises FileNotFoundError; CheckpointError that lists all that is missing, not expected or of another shape, says
    which argument is wanted, or which contradicts the file; ValueError for an unknown rule or pool.
    """
    path = Path(path)
    if resize is not None:
        check_rule(resize)
    if pool not in (None, *POOLS):
        raise ValueError(f"pool is {pool!r}; choose one of {', '.join(map(repr, POOLS))}")
    given = {"num_heads": num_heads, "grid": grid, "pool": pool, "gelu": gelu, "layer_norm_eps": layer_norm_eps}
    with opened(path) as source:
        network = _examine(path, source, {name: value for name, value in given.items() if value is not None})
    if num_classes is None and not network.has_head:
        raise CheckpointError(
            f"{path}: the file has no classifier: num_classes makes one of zeros, to be trained, as finetune.py does"
        )
    try:
        config = replace(network.config, image_size=network.config.image_size if image_size is None else image_size)
        config = replace(config, num_classes=config.num_classes if num_classes is None else num_classes)
        model = VisionTransformer(config, rng=None, dtype=dtype)
    except (ConfigError, MemoryError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    _fill(path, model, network, resize)
    return model


@dataclass(frozen=True)
class Network:
    """A file's arrays by the names in its layout's table, with the rows that they belong to, and what they are of."""

    config: ViTConfig
    sizes: Sizes
    rows: list[Row]
    tensors: Tensors

    @property
    def has_head(self) -> bool:
        """Whether the file has a classifier."""
        return any(row.own_name == "head.weight" for row in self.rows)


def _examine(path: Path, source: Source, given: dict[str, Any]) -> Network:
    """Compare all arrays with those of the layout, find out what network they are of, and only then read them."""
    layout = LAYOUTS[source.layout]
    arrays = _rename(path, layout, source.arrays)
    stem = _find_stem(layout, arrays)
    rows = _expected_rows(layout, arrays, stem)
    sizes = _measure(rows, arrays)
    if stem is not None:
        sizes["C"] = stem.map_channels  # the patches are of what the stem makes
    names = {row.name for row in rows}
    problems = {
        "missing": sorted(names - arrays.keys()),
        "not expected": sorted(arrays.keys() - names),
        "misshaped": [text for row in rows if (text := _misshaped(row, arrays, sizes))],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{path}: not what the layout {source.layout} has; {listed}")
    if sizes["H"] * sizes["K"] != sizes["D"]:
        raise CheckpointError(
            f"{path}: {sizes['H']} heads of {sizes['K']} columns in a width of {sizes['D']}; expected heads that "
            "together are as wide as the network"
        )
    for name, value in given.items():
        if name in source.described and source.described[name] != value:
            raise CheckpointError(
                f"{path}: {name} is said to be {value}, but the file says {source.described[name]}: leave it out"
            )
    for name, why in source.asked:
        if name not in source.described | given:
            raise CheckpointError(f"{path}: {why}")
    try:
        config = _configure(path, layout, sizes, rows, stem, source.described | given)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    tensors = {name: array.read() for name, array in arrays.items()}
    if bad := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
        raise CheckpointError(f"{path}: not finite: {', '.join(bad)}")
    return Network(config, sizes, rows, tensors)


def _rename(path: Path, layout: Layout, arrays: Arrays) -> Arrays:
    """Return the arrays by the names of the layout's table, and the blocks of a stack one by one."""
    renamed: Arrays = {}
    for name, array in _one_by_one(arrays):
        for pattern, replacement in layout.aliases:
            name = re.sub(pattern, replacement, name)
        if re.search(r"(^|/)gn(_root|_proj|\d)/(scale|bias)$", name) and array.shape[:3] == (1, 1, 1):
            flat = (math.prod(array.shape),)  # as older versions of flax have the norms of a stem
            array = array.changed(flat, np.ravel)
        if name in renamed:
            raise CheckpointError(f"{path}: {name} is there twice, under two of its names; expected one")
        renamed[name] = array
    for name in layout.unused:
        renamed.pop(name, None)
    return renamed


def _one_by_one(arrays: Arrays) -> Iterator[tuple[str, Stored]]:
    """Yield the arrays as the original's first programs wrote them, where later ones write others.

    Those stack the arrays of all blocks, and put the class token in front of patches that have their positions already,
    so that it has none: zeros are as good.
    """
    tower = "((opt/target|params)/(img/)?)?"
    token = any(re.fullmatch(f"{tower}cls", name) for name in arrays)
    for name, array in arrays.items():
        if "Transformer/encoderblock/" in name and array.shape and array.shape[0] <= MOST_BLOCKS:
            for i in range(array.shape[0]):
                yield name.replace("encoderblock", f"encoderblock_{i}"), array.changed(array.shape[1:], itemgetter(i))
        elif token and re.fullmatch(f"{tower}pos_embedding", name) and len(array.shape) == 3:
            one, n, D = array.shape
            yield name, array.changed((one, 1 + n, D), partial(np.pad, pad_width=((0, 0), (1, 0), (0, 0))))
        else:
            yield name, array


def _norm_is_last(layout: Layout, names: Iterable[str]) -> bool:
    """Return whether the final norm comes after the mean, by the names of arrays."""
    return layout.mean_norm is not None and any(name.startswith(layout.mean_norm) for name in names)


def _find_stem(layout: Layout, arrays: Arrays) -> Stem | None:
    """Return the ResNet that the names and the root's convolution tell, None where there is no sign of one."""
    names = layout.stem
    if names is None:
        return None
    unit = re.escape(names.unit).replace(r"\{s\}", r"(\d+)").replace(r"\{u\}", r"(\d+)")
    places = [tuple(int(n) - names.first for n in match.groups()) for name in arrays if (match := re.match(unit, name))]
    places = [(s, u) for s, u in places if 0 <= s < len(arrays) and 0 <= u < len(arrays)]
    roots = [start + names.names["conv.weight"] for start in (names.root, names.bare_root)]
    root = next((arrays[name] for name in roots if name in arrays), None)
    if root is None and not places:
        return None
    stages = range(max((s for s, _ in places), default=-1) + 1)
    blocks = tuple(max((u for s, u in places if s == stage), default=0) + 1 for stage in stages)
    channels, width = 3, 64  # where the root is missing, which is then said
    if root is not None and len(root.shape) == 4:
        lengths = dict(zip(names.kernel.split(), root.shape, strict=True))
        channels, width = lengths["i"], lengths["o"]
    return Stem(blocks, channels, width)


def _expected_rows(layout: Layout, arrays: Arrays, stem: Stem | None) -> list[Row]:
    """Return the rows of a network with as many blocks as the names count, and with those optional parts that exist."""
    block = re.escape(layout.block).replace(r"\{i\}", r"(\d+)")
    numbers = [int(match[1]) for name in arrays if (match := re.match(block, name))]
    # a number that is too large for so few arrays is an entry that is not expected, not a depth
    depth = max((i for i in numbers if i < len(arrays)), default=0) + 1
    rows = list(layout.rows(depth, stem, _norm_is_last(layout, arrays)))
    found = [row.own_name for row in rows if row.name in arrays]
    optional = ["pre_logits.", "head.", "reg_token", r"blocks\.\d+\.attn\.[qk]_norm", r"blocks\.\d+\.ls[12]"]
    for part in ["cls_token"] * layout.mean + optional:
        if not any(re.match(part, name) for name in found):
            rows = [row for row in rows if not re.match(part, row.own_name)]
    return rows


def _measure(rows: list[Row], arrays: Arrays) -> Sizes:
    """Return the length of every letter that the shapes tell, by majority: what differs is then misshaped."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        letters, shape = row.shape.split(), arrays[row.name].shape if row.name in arrays else ()
        if len(letters) == len(shape) and not row.sizes:
            for letter, length in zip(letters, shape, strict=True):
                votes[letter][length] += 1
    sizes = {letter: counts.most_common(1)[0][0] for letter, counts in votes.items()} | {"1": 1, "3": 3}
    if not any(row.own_name.startswith("pre_logits.") for row in rows) and "D" in sizes:
        sizes["R"] = sizes["D"]
    if "H" not in sizes and "D" in sizes:
        sizes.setdefault("K", sizes["D"])  # told by the norms of q and k; without them no shape depends on it
        sizes["H"] = sizes["D"] // max(sizes["K"], 1)
    return sizes


def _misshaped(row: Row, arrays: Arrays, sizes: Sizes) -> str:
    """Say what is wrong with an array that is there; nothing where it is as it should be."""
    if row.name not in arrays:
        return ""
    array, sizes = arrays[row.name], sizes | row.sizes
    known = all(letter in sizes for letter in row.shape.replace(" ", ""))
    expected = axes(row.shape, sizes) if known else None
    if array.shape == expected and array.dtype.kind == "f":
        return ""
    return f"{row.name} is {array.dtype} {array.shape}, expected floats {expected or row.shape}"


def _configure(
    path: Path, layout: Layout, sizes: Sizes, rows: list[Row], stem: Stem | None, told: dict[str, Any]
) -> ViTConfig:
    """Return the configuration that the shapes, and what the file or the caller told, make together."""
    own_names, norm_is_last = {row.own_name for row in rows}, _norm_is_last(layout, {row.name for row in rows})
    found: dict[str, Any] = {name: sizes[letter] for name, letter in LETTERS.items() if letter in sizes}
    found |= {
        "patch_size": (sizes["P"], sizes["Q"]),
        "depth": sum(name.startswith("blocks.") and name.endswith(".norm1.gamma") for name in own_names),
        "pool": "token" if "cls_token" in own_names else "mean-norm" if norm_is_last else "mean",
        "representation_size": sizes["R"] if "pre_logits.weight" in own_names else None,
        "registers": sizes["G"] if "reg_token" in own_names else 0,
        "qk_norm": "blocks.0.attn.q_norm.gamma" in own_names,
    }
    asked = told.get("pool", found["pool"])
    # A norm that comes last is the same for a token; but without a word it may come after a mean.
    if found["pool"] == "token" and (asked != "token" or (norm_is_last and "pool" not in told)):
        raise CheckpointError(
            f"{path}: a network that pools the mean beside a class token, and vitnp's have one or the other"
        )
    if asked != found["pool"]:
        raise CheckpointError(
            f"{path}: a network that pools {asked!r}, and the arrays are of one that pools {found['pool']!r}"
        )
    if stem is not None:
        found |= {"channels": stem.channels, "stem_blocks": stem.blocks, "stem_width": stem.width / 64}
    if "blocks.0.ls1.gamma" in own_names:
        found["layer_scale"] = told.get("layer_scale") or LAYER_SCALE
    if any({"H", "K"} & {*row.shape.split()} for row in rows):
        found["num_heads"] = sizes["H"]
    elif "num_heads" not in told:
        usual = [size["num_heads"] for size in SIZES.values() if size["dim"] == sizes["D"]]
        raise CheckpointError(
            f"{path}: the file does not tell the number of heads: give num_heads, a divisor of {sizes['D']}"
            + "".join(f"; the original's of this width have {heads}" for heads in usual)
        )
    others = (found["pool"] == "token") + found["registers"]
    counts = (sizes["N"] - others, sizes["N"])[: 1 + (others > 0 and layout.bare_tokens)]
    rows_columns = _find_grid(path, counts, found, told)
    stride = 1 if stem is None else 4 << max(0, len(stem.blocks) - 1)
    found["image_size"] = tuple(n * side * stride for n, side in zip(rows_columns, found["patch_size"], strict=True))
    if stem is not None and "image_size" in told:
        found["image_size"] = told["image_size"]  # of which the grid is that of the next multiple
    told = {name: value for name, value in told.items() if name != "grid"}
    config = ViTConfig(**{"gelu": layout.gelu, "layer_norm_eps": layout.layer_norm_eps, **told, **found})
    for name, value in told.items():
        if replace(config, **{name: value}) != config:
            raise CheckpointError(f"{path}: {name} is said to be {value}, but the arrays have {getattr(config, name)}")
    return config


def _find_grid(path: Path, counts: tuple[int, ...], found: dict[str, Any], told: dict[str, Any]) -> tuple[int, int]:
    """Return rows and columns of the patches, of which there may be `counts`, most likely the first."""
    # with registers, either is common; a class token alone is seldom without a position
    squares = [n for n in (counts if found["registers"] else counts[:1]) if n > 0 and math.isqrt(n) ** 2 == n]
    others = counts[-1] - counts[0]
    if len(squares) > 1 and not {"grid", "image_size"} & told.keys():
        raise CheckpointError(
            f"{path}: {counts[1]} positions may be of {' or '.join(map(str, squares))} patches, as the {others} tokens "
            "in front of them have positions or none: give grid=(rows, columns)"
        )
    if "image_size" in told:
        (H, W), (P_h, P_w) = pair("image_size", told["image_size"]), found["patch_size"]
        stride = 1 if "stem_blocks" not in found else 4 << max(0, len(found["stem_blocks"]) - 1)
        grid = -(-H // stride) // P_h, -(-W // stride) // P_w
    elif "grid" in told or squares:
        grid = pair("grid", told["grid"] if "grid" in told else math.isqrt(squares[0]))
    else:
        either = f", or of {counts[1]} if what is in front of them has no positions" if others else ""
        raise CheckpointError(
            f"{path}: the positions are of {max(0, counts[0])} patches, which are no square{either}: "
            "give grid=(rows, columns), unless the file is cut"
        )
    if (said := pair("grid", told.get("grid", grid))) != grid:
        raise CheckpointError(f"{path}: grid is said to be {said}, but the file says {grid}: leave it out")
    if math.prod(grid) not in counts:
        raise CheckpointError(
            f"{path}: the positions do not go with a grid of {grid}; expected one of {' or '.join(map(str, counts))} "
            "patches: give the right grid=(rows, columns)"
        )
    return grid


def _fill(path: Path, model: VisionTransformer, network: Network, resize: str | None) -> None:
    """Write the arrays into the model's, turned as the layouts say; a head that does not fit stays at zero."""
    own, same_head = places(model.parameters()), model.config.num_classes == network.config.num_classes
    with np.errstate(over="ignore"):  # what is too large is told of below
        for row in network.rows:
            place, array = own[row.own_name], network.tensors[row.name]
            if row.own_name == "pos_embed":
                place[...], of_registers = _positions(path, array, model.config, network.config.grid, resize)
            elif same_head or not row.own_name.startswith("head."):
                place[...] = turn(array, row.shape, row.own_shape, network.sizes | row.sizes)
        if model.config.registers and of_registers.any():
            own["reg_token"][...] += of_registers  # vitnp's have no position: what is added to them anyway is theirs
    if large := [name for name, array in model.parameters().items() if not np.isfinite(array).all()]:
        raise CheckpointError(
            f"{path}: {', '.join(large)} has numbers too large for {model.flat.dtype}: choose another"
        )


def _positions(
    path: Path, array: np.ndarray, config: ViTConfig, grid: tuple[int, int], resize: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """(1, N, D) of the file -> (1, N, D) of the model, and what the registers between token and patches have."""
    n, D, first = math.prod(grid), array.shape[-1], int(config.pool == "token")
    patches = array[:, array.shape[1] - n :]
    # without a position of its own the class token is as if that were zero
    others = np.zeros((1, first + config.registers, D), array.dtype)
    if array.shape[1] > n:
        others = array[:, : first + config.registers]
    if config.grid != grid:
        if resize is None:
            raise CheckpointError(
                f"{path}: positions for {grid[0]} x {grid[1]} patches, and the model has {config.grid[0]} x "
                f"{config.grid[1]}: say how to resize them, resize={' or '.join(map(repr, RULES))}"
            )
        patches = resize_grid(patches.reshape(*grid, D).astype(np.float64), config.grid, resize).reshape(1, -1, D)
    return np.concatenate([others[:, :first], patches], 1), others[:, first:]
