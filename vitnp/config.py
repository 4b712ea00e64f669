"""The sizes and rates of a Vision Transformer, those that were published by name, and what cannot be together."""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

# Table 1 of the paper (B, L, H); Ti and S as in the original implementation
SIZES = {
    "Ti": {"dim": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "S": {"dim": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "H": {"dim": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120},
}
PATCHES = ("14", "16", "32")
LARGEST = float(np.finfo("float32").max)
MOST_HEADS = 1024  # that an error suggests: a damaged number of heads is no reason to count to it
POOLS = ("token", "mean", "mean-norm")
# those of appendix D.4, and "relative", by rows and by columns; and where each kind may be added: relative positions
# are in the attention of every layer anyway
POSITIONS = {
    "learned": ("stem", "layers", "shared"),
    "learned-2d": ("stem", "layers", "shared"),
    "sincos": ("stem", "shared"),
    "relative": ("stem",),
    "relative-1d": ("stem",),
    "none": ("stem",),
}
# the original's: the transformer, the units of a ResNet's stages, and the patches on its feature map
HYBRIDS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "R+Ti/16": ("Ti", (), 8),
    "R50+B/16": ("B", (3, 4, 9), 1),
    "R26+B/32": ("B", (2, 2, 2, 2), 1),
    "R26+S/32": ("S", (2, 2, 2, 2), 1),
    "R50+L/32": ("L", (3, 4, 6, 3), 1),
}


class ConfigError(ValueError):
    """A configuration that no network can have; the message names the field and the valid choices."""


@dataclass(frozen=True)
class ViTConfig:
    """The sizes and rates that define a Vision Transformer.

    `image_size` and `patch_size` are pixels, an int or a (height, width) pair, and are kept as pairs. `dropout` is the
    rate after the position embedding and after every dense layer except qkv, `attention_dropout` the one on attention
    weights. `pool` is what the classifier reads: the class "token"; the "mean" of all tokens after the final norm, and
    then there is no class token; or "mean-norm", the mean first and its norm then. `representation_size` adds the tanh
    layer that the paper has in front of the head in pre-training. `pos_init` is how the learned positions start:
    "normal", small random numbers as in the original, or "sincos", sines and cosines of row and column, which makes
    short training shorter and wants a `dim` that 4 divides.

    `positions` is how the network knows where a patch is (appendix D.4): "learned", a vector a token; "learned-2d",
    half a vector a row and half a vector a column; "sincos", the same, fixed; "relative-1d", in every attention
    embeddings of how far two patches are apart in raster order, as the paper's are; "relative", the same by how many
    rows and how many columns; or "none". `pos_at` is where they are added: at the "stem", in all "layers", or "shared"
    by these.

    `stem_blocks` makes a hybrid: a ResNet in front whose stages have so many units, as (3, 4, 9), or () for its root
    alone. `patch_size` is then in places of its feature map, which has ⌈n / stride⌉ of them for n pixels: the stride is
    4, and doubles with each stage after the first. `stem_width` times 64 channels come out of the root.

    Raises ConfigError, which names the field, its value and what is valid.
    """

    image_size: Any = 28
    patch_size: Any = 7
    channels: int = 1
    num_classes: int = 10
    dim: int = 64
    depth: int = 6
    num_heads: int = 4
    mlp_dim: int = 128
    dropout: float = 0.0
    attention_dropout: float = 0.0
    pool: str = "token"
    gelu: str = "tanh"
    layer_norm_eps: float = 1e-6
    representation_size: int | None = None
    pos_init: str = "normal"
    positions: str = "learned"
    pos_at: str = "stem"
    stochastic_depth: float = 0.0
    layer_scale: float | None = None
    registers: int = 0
    qk_norm: bool = False
    stem_blocks: Any = None
    stem_width: float = 1.0

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            object.__setattr__(self, name, pair(name, getattr(self, name)))
        for name in ("channels", "num_classes", "dim", "depth", "num_heads", "mlp_dim", "representation_size"):
            if name != "representation_size" or self.representation_size is not None:
                object.__setattr__(self, name, _positive(name, getattr(self, name)))
        self._check_stem()
        sides = zip(("height", "width"), self.image_size, self.map_size, self.patch_size, strict=True)
        for side, image, places, patch in sides:
            if places % patch:
                sizes = [places // patch * patch * self.stem_stride, -(-places // patch) * patch * self.stem_stride]
                nearest = " or ".join(f"{size}" for size in sizes if size)
                by = f", {places} places of the stem's map," if self.stem_blocks is not None else ""
                raise ConfigError(
                    f"image {side} {image}{by} is not divisible by patch {side} {patch}: use an image of {nearest}, "
                    "or another patch_size"
                )
        if self.dim % self.num_heads:
            most = min(4 * self.num_heads - 1, self.dim, MOST_HEADS)
            valid = [heads for heads in range(1, most + 1) if self.dim % heads == 0]
            raise ConfigError(f"dim {self.dim} is not divisible by num_heads {self.num_heads}: use one of {valid}")
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= _number(name, getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        _one_of("pool", self.pool, POOLS)
        _one_of("gelu", self.gelu, ("tanh", "erf"))
        self._check_positions()
        self._check_later()
        if not 0 < _number("layer_norm_eps", self.layer_norm_eps) < math.inf:
            raise ConfigError(f"layer_norm_eps is {self.layer_norm_eps}; it must be above 0")

    def _check_positions(self) -> None:
        _one_of("pos_init", self.pos_init, ("normal", "sincos"))
        _one_of("positions", self.positions, tuple(POSITIONS))
        beside = f" beside positions {self.positions!r}"
        _one_of("pos_at", self.pos_at, POSITIONS[self.positions], beside)
        _one_of("pos_init", self.pos_init, ("normal", "sincos") if "learned" in self.positions else ("normal",), beside)
        wants = ("positions", "learned-2d", 2), ("positions", "sincos", 4), ("pos_init", "sincos", 4)
        for name, value, divisor in wants:
            if getattr(self, name) == value and self.dim % divisor:
                below = self.dim // divisor * divisor
                nearest = f"{below} or {below + divisor}" if below else f"{divisor}"
                raise ConfigError(
                    f"dim {self.dim} is not divisible by {divisor}, as {name} {value!r} wants it: use {nearest}"
                )
        if self.positions == "relative-1d" and self.num_patches < 2:
            raise ConfigError(f"positions is 'relative-1d', but patch_size {self.patch_size} makes 1 patch: use others")

    def _check_later(self) -> None:
        """What is in none of the paper's networks."""
        if self.stochastic_depth and self.depth == 1:
            raise ConfigError(
                f"stochastic_depth is {self.stochastic_depth} at depth 1, and the first block is never dropped: use 0"
            )
        if self.layer_scale is not None and not 0 < _number("layer_scale", self.layer_scale) <= LARGEST:
            raise ConfigError(
                f"layer_scale is {self.layer_scale}; it must be above 0 and at most {LARGEST:.3g}, or None"
            )
        object.__setattr__(self, "registers", _integer("registers", self.registers, 0))
        if not isinstance(self.qk_norm, bool):
            raise ConfigError(f"qk_norm is {self.qk_norm!r}; choose True or False")

    def _check_stem(self) -> None:
        if self.stem_blocks is not None:
            if not isinstance(self.stem_blocks, tuple | list):
                raise ConfigError(
                    f"stem_blocks is {self.stem_blocks!r}; expected the units of each stage, as (3, 4, 9)"
                )
            units = tuple(_positive("a stage of stem_blocks", stage) for stage in self.stem_blocks)
            object.__setattr__(self, "stem_blocks", units)
        object.__setattr__(self, "stem_width", _number("stem_width", self.stem_width))
        if not 0.5 <= self.stem_width < math.inf or self.stem_width * 2 % 1:
            raise ConfigError(
                f"stem_width is {self.stem_width}; it must be a multiple of 0.5, for 32 groups to divide the channels"
            )

    @classmethod
    def named(cls, name: str, **changes: Any) -> Self:
        """Return the configuration of a published size: "Ti/16", "S/16", "B/16", "B/32", "L/16", "H/14", ….

        Any of the sizes Ti, S, B, L, H goes with any of the patches 14, 16, 32. The hybrids are those of the original:
        "R+Ti/16", "R26+S/32", "R26+B/32", "R50+B/16", "R50+L/32". Images are 224 x 224 with 3 channels, and there are
        1000 classes, unless keyword arguments, which set any field, say otherwise.
        """
        size, _, patch = name.partition("/")
        size, blocks, side = HYBRIDS.get(name, (size, None, patch))
        if size not in SIZES or (name not in HYBRIDS and patch not in PATCHES):
            raise ConfigError(
                f"there is no ViT {name!r}: sizes are {', '.join(SIZES)}, patches {', '.join(PATCHES)}, as in 'B/16'; "
                f"hybrids are {', '.join(HYBRIDS)}"
            )
        defaults = {"image_size": 224, "patch_size": int(side), "channels": 3, "num_classes": 1000, **SIZES[size]}
        return cls(**{**defaults, "stem_blocks": blocks, **changes})

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that tile an image."""
        (H, W), (P_h, P_w) = self.map_size, self.patch_size
        return H // P_h, W // P_w

    @property
    def stem_stride(self) -> int:
        """How many pixels there are to a place of what is cut into patches: 1 without a stem."""
        return 1 if self.stem_blocks is None else 4 << max(0, len(self.stem_blocks) - 1)

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of what is cut into patches: the stem's feature map, or the image itself."""
        H, W = self.image_size
        return -(-H // self.stem_stride), -(-W // self.stem_stride)

    @property
    def num_patches(self) -> int:
        """How many patches tile an image."""
        return math.prod(self.grid)

    @property
    def num_tokens(self) -> int:
        """N: the patches, the class token where there is one, and the registers."""
        return self.num_patches + (self.pool == "token") + self.registers

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON can hold."""
        return dataclasses.asdict(self)


def pair(name: str, value: Any) -> tuple[int, int]:
    """Return a (height, width) of positive integers: what was given, or one int for both; ConfigError for others."""
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2:
        raise ConfigError(f"{name} is {value!r}; expected an int or a (height, width) pair")
    return _positive(name, sides[0]), _positive(name, sides[1])


def _positive(name: str, value: Any) -> int:
    return _integer(name, value, 1)


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < least:
        raise ConfigError(f"{name} is {value!r}; expected an integer of at least {least}")
    return operator.index(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise ConfigError(f"{name} is {value!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name} is an integer that no float can hold; expected a number") from None


def _one_of(name: str, value: str, choices: tuple[str, ...], beside: str = "") -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}{beside}; choose one of {', '.join(map(repr, choices))}")
