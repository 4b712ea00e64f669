"""The Vision Transformer (Dosovitskiy et al., *An Image is Worth 16x16 Words*, arXiv 2010.11929), whole:

    images (B, H, W, C)
    stem            in a hybrid alone: a ResNet, to feature maps  (B, h, w, c)
    patch_embed     cut, flatten, project                        (B, n, D)
    embeddings      class token in front, positions added        (B, N, D)
    dropout
    blocks          z = x + attention(norm(x)); x = z + mlp(norm(z))
    classifier      norm, class token or mean, linear head       (B, classes)

B batch, n patches, N tokens, D width.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module, to_cpu, to_device
from vitnp.context import Context
from vitnp.initializers import sincos_1d, sincos_2d
from vitnp.layer import Initializer, Layer, Layout
from vitnp.layers import (
    Block,
    ClassifierHead,
    Dropout,
    Embeddings,
    PatchEmbed,
    Positions,
    RelativePositions,
    ResNetStem,
)

# Table 1 of the paper (B, L, H); Ti and S as in the original implementation
SIZES = {
    "Ti": {"dim": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "S": {"dim": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "H": {"dim": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120},
}
PATCHES = ("14", "16", "32")
# appendix D.4, and where each kind may be added: relative positions are in the attention of every layer anyway
POSITIONS = {
    "learned": ("stem", "layers", "shared"),
    "learned-2d": ("stem", "layers", "shared"),
    "sincos": ("stem", "shared"),
    "relative": ("stem",),
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
DTYPES = tuple(map(np.dtype, ("float32", "float64", "complex64", "complex128")))


class ConfigError(ValueError):
    """A configuration that no network can have; the message names the field and the valid choices."""


@dataclass(frozen=True)
class ViTConfig:
    """The sizes and rates that define a Vision Transformer.

    `image_size` and `patch_size` are pixels, an int or a (height, width) pair, and are kept as pairs. `dropout` is the
    rate after the position embedding and after every dense layer except qkv, `attention_dropout` the one on attention
    weights. `representation_size` adds the tanh layer that the paper has in front of the head in pre-training.
    `pos_init` is how the learned positions start: "normal", small random numbers as in the original, or "sincos", sines
    and cosines of row and column, which makes short training shorter and wants a `dim` that 4 divides.

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
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
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
                    f"image {side} {image}{by} is not divisible by patch {side} {patch}: use an image of {nearest}"
                )
        if self.dim % self.num_heads:
            valid = [heads for heads in range(1, 4 * self.num_heads) if self.dim % heads == 0]
            raise ConfigError(f"dim {self.dim} is not divisible by num_heads {self.num_heads}: use one of {valid}")
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= _number(name, getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        _one_of("pool", self.pool, ("token", "mean"))
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

    def _check_later(self) -> None:
        """What is in none of the paper's networks."""
        if self.stochastic_depth and self.depth == 1:
            raise ConfigError(
                f"stochastic_depth is {self.stochastic_depth} at depth 1, and the first block is never dropped: use 0"
            )
        if self.layer_scale is not None and not 0 < _number("layer_scale", self.layer_scale) < math.inf:
            raise ConfigError(f"layer_scale is {self.layer_scale}; it must be above 0, or None")
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


class VisionTransformer(Layer):
    """A Vision Transformer: parameters and their gradients' formulas, nothing else.

    Args:
        config: its sizes.
        rng: seed or generator for the initialisation; None leaves the parameters unset.
        dtype: "float32", "float64", or "complex128" for a complex step.

    Every parameter is a view into one vector, `flat`, and may be written in place at any time.
    """

    layout: Layout
    flat: Array

    def __init__(
        self, config: ViTConfig, rng: int | np.random.Generator | None = 0, dtype: DTypeLike = "float32"
    ) -> None:
        super().__init__()
        if np.dtype(dtype) not in DTYPES:
            raise ValueError(f"dtype is {np.dtype(dtype)}; choose one of {', '.join(map(str, DTYPES))}")
        c = self.config = config
        options: dict[str, Any] = {"rng": None, "dtype": dtype}
        self.stem = None
        if c.stem_blocks is not None:
            self.stem = ResNetStem(c.channels, c.stem_blocks, round(64 * c.stem_width), **options)
        channels = c.channels if self.stem is None else self.stem.channels_out
        self.patch_embed = PatchEmbed(c.map_size, c.patch_size, channels, c.dim, **options)
        self.patch_embed.reads_input = self.stem is None
        plain = c.positions == "learned" and c.pos_at == "stem"  # as equation 1 has them
        more: dict[str, Any] = {"class_token": c.pool == "token", "positions": plain, "pos_init": _pos_init(c)}
        self.embeddings = Embeddings(c.num_patches, c.dim, registers=c.registers, **more, **options)
        self.positions = None if plain else _positions(c, ("stem", "shared"), **options)
        self.dropout = Dropout(c.dropout)
        self.blocks = [
            Block(
                c.dim,
                c.num_heads,
                c.mlp_dim,
                dropout=c.dropout,
                attention_dropout=c.attention_dropout,
                gelu=c.gelu,
                layer_norm_eps=c.layer_norm_eps,
                positions=_positions(c, ("layers",), **options),
                relative=_relative_positions(c, **options),
                qk_norm=c.qk_norm,
                layer_scale=c.layer_scale,
                stochastic_depth=c.stochastic_depth * i / max(c.depth - 1, 1),
                **options,
            )
            for i in range(c.depth)
        ]
        self.classifier = ClassifierHead(
            c.dim,
            c.num_classes,
            pool=c.pool,
            representation_size=c.representation_size,
            registers=c.registers,
            layer_norm_eps=c.layer_norm_eps,
            **options,
        )
        for block in self.blocks:
            for layer in block.layers():
                layer.role = f"block.{layer.path}"
        self.built(rng=None)
        self._bind(Layout(self), copy=False)
        if rng is not None:
            self.initialize(rng)

    # -- the network ------------------------------------------------------------------------------------------------

    def forward(self, x: Array, ctx: Context | None = None) -> Array:
        """images (B, H, W, C) -> logits (B, classes), a fresh array.

        Opens a new pass of `ctx`. Without one the pass is an evaluation that keeps nothing.
        Raises ValueError for another shape, TypeError for integer images (which want normalising first).
        """
        ctx = ctx or Context()
        return self.classifier.forward(self._tokens(x, ctx), ctx).copy()

    def features(self, x: Array, ctx: Context | None = None) -> Array:
        """images (B, H, W, C) -> (B, D), a fresh array: the class token, or the mean of tokens, after the final norm.

        It is what the classifier reads: `pre_logits`, where there is one, and the head come after it. Opens a new
        pass as `forward` does, and raises the same.
        """
        ctx = ctx or Context()
        return self.classifier.pooled(self._tokens(x, ctx), ctx).copy()

    def _tokens(self, x: Array, ctx: Context) -> Array:
        """images (B, H, W, C) -> the last block's tokens (B, N, D), in a new pass."""
        ctx.begin()
        x = self._check(x)
        if self.stem is not None:
            x = self.stem.forward(x, ctx)
        return self._encode(self.patch_embed.forward(x, ctx), ctx)

    def _encode(self, x: Array, ctx: Context) -> Array:
        """embedded patches (B, n, D) -> the last block's tokens (B, N, D)."""
        x = self.embeddings.forward(x, ctx)
        shared = self._shared_positions
        if self.positions is not None and shared is None:
            x = self.positions.forward(x, ctx)
        x = self.dropout.forward(x, ctx)
        for i, block in enumerate(self.blocks):
            if shared is not None:
                x = shared.add(x, ctx) if i else shared.forward(x, ctx)
            x = block.forward(x, ctx)
        return x

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dlogits (B, classes) -> dimages (B, H, W, C), a fresh array; adds every parameter's gradient to `ctx`.

        In a context that does without the gradient of the images, what it returns is None.
        """
        dx = self._encode_backward(self.classifier.backward(dy, ctx), ctx)
        dimages = self.patch_embed.backward(dx, ctx)
        if self.stem is not None:
            dimages = self.stem.backward(dimages, ctx)
        return dimages.copy() if ctx.input_grad else None

    def _encode_backward(self, dx: Array, ctx: Context) -> Array:
        """dtokens (B, N, D) -> the gradient of the embedded patches (B, n, D)."""
        shared, dplaced = self._shared_positions, None
        for block in reversed(self.blocks):
            dx = block.backward(dx, ctx)
            if shared is not None:
                dplaced = dx if dplaced is None else dplaced + dx
        if shared is not None:
            shared.backward(dplaced, ctx)  # they were added to the input of every block
        dx = self.dropout.backward(dx, ctx)
        if self.positions is not None and shared is None:
            dx = self.positions.backward(dx, ctx)
        return self.embeddings.backward(dx, ctx)

    @property
    def _shared_positions(self) -> Positions | None:
        return self.positions if self.config.pos_at == "shared" else None

    # -- its loss ---------------------------------------------------------------------------------------------------

    answers = 1  # rows of logits that an image has

    def targets(self, labels: Any, ctx: Context) -> Any:
        """Return what the rows of logits are to be: here the labels; for what is trained otherwise, see its class."""
        return labels

    def _check(self, images: Array) -> Array:
        """Return the images in the parameters' dtype and on their device, or say what is wrong with them."""
        images = images if hasattr(images, "dtype") else np.asarray(images)
        expected = (*self.config.image_size, self.config.channels)
        if images.ndim != 4 or images.shape[1:] != expected or len(images) == 0:
            raise ValueError(f"images have shape {images.shape}; expected (batch, {', '.join(map(str, expected))})")
        if images.dtype.kind not in ("fc" if self.flat.dtype.kind == "c" else "f"):
            raise TypeError(
                f"images are {images.dtype}; expected floats: scale them first, as vitnp.data.normalize does"
            )
        if array_module(images) is not array_module(self.flat):
            images = to_device(images, self.device)
        return images.astype(self.flat.dtype, copy=False)

    # -- one vector for all parameters ------------------------------------------------------------------------------

    def _bind(self, layout: Layout, copy: bool) -> None:
        """Move every parameter into one vector, and make the layers' attributes views into it."""
        parameters = self.parameters()
        self.flat = layout.zeros(like=next(iter(parameters.values())))
        for layer in self.layers():
            layer.layout = layout
            for name in layer.specs:
                view = layout.view(self.flat, layer.parameter_name(name))
                if copy:
                    view[...] = getattr(layer, name)
                setattr(layer, name, view)

    def _copy(self, convert: Any) -> Self:
        clone = super()._copy(convert)
        clone._bind(Layout(clone), copy=True)
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.config, str(self.flat.dtype), self.device, to_cpu(self.flat))

    @property
    def device(self) -> str:
        """ "cpu" or "cuda": where the parameters are."""
        return "cpu" if array_module(self.flat) is np else "cuda"


def _rebuild(
    cls: type[VisionTransformer], config: ViTConfig, dtype: str, device: str, flat: np.ndarray
) -> VisionTransformer:
    """Return the model that was pickled, of its own class."""
    model = cls(config, rng=None, dtype=dtype)
    model.flat[...] = flat
    return model if device == "cpu" else model.to_device(device)


def _positions(c: ViTConfig, places: tuple[str, ...], **options: Any) -> Positions | None:
    """Return the position embeddings that a network adds at one of these places, if it does."""
    if c.pos_at not in places or c.positions in ("relative", "none"):
        return None
    return Positions(c.positions, c.grid, c.dim, class_token=c.pool == "token", pos_init=_pos_init(c), **options)


def _relative_positions(c: ViTConfig, **options: Any) -> RelativePositions | None:
    if c.positions != "relative":
        return None
    return RelativePositions(c.grid, c.dim // c.num_heads, class_token=c.pool == "token", **options)


def _pos_init(c: ViTConfig) -> Initializer | None:
    if c.pos_init == "normal":
        return None  # as the layers have it
    return sincos_2d(*c.grid) if c.positions == "learned" else sincos_1d


def _pair(name: str, value: Any) -> tuple[int, int]:
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
    return float(value)


def _one_of(name: str, value: str, choices: tuple[str, ...], beside: str = "") -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}{beside}; choose one of {', '.join(map(repr, choices))}")
