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

from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module, to_cpu, to_device
from vitnp.config import ViTConfig
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
    RasterPositions,
    RelativePositions,
    ResNetStem,
)

DTYPES = tuple(map(np.dtype, ("float32", "float64", "complex64", "complex128")))


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
        shared, dinputs = self._shared_positions, []
        for block in reversed(self.blocks):
            dx = block.backward(dx, ctx)
            dinputs.append(dx)
        if shared is not None:  # added to the input of every block
            shared.backward(sum(dinputs[1:], dinputs[0]), ctx)
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
    if c.pos_at not in places or c.positions in ("relative", "relative-1d", "none"):
        return None
    return Positions(c.positions, c.grid, c.dim, class_token=c.pool == "token", pos_init=_pos_init(c), **options)


def _relative_positions(c: ViTConfig, **options: Any) -> RelativePositions | RasterPositions | None:
    size, class_token = c.dim // c.num_heads, c.pool == "token"
    if c.positions == "relative-1d":
        return RasterPositions(c.num_patches, size, class_token=class_token, **options)
    return RelativePositions(c.grid, size, class_token=class_token, **options) if c.positions == "relative" else None


def _pos_init(c: ViTConfig) -> Initializer | None:
    if c.pos_init == "normal":
        return None  # as the layers have it
    return sincos_2d(*c.grid) if c.positions == "learned" else sincos_1d
