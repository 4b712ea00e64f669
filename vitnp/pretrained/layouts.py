"""The names and shapes of a Vision Transformer's parameters in four layouts, as data.

A row of a table is one array of a layout: its name there, vitnp's name for it, and its shape, one letter a size:

    P Q  height, width of a patch    C  channels    N  positions    D  width    H K  heads, head size
    M    width of the MLP            R  width of the pre-training head           Y    classes
    G    registers

and in a stem's convolutions, each of its own size

    h w  height, width of the kernel   i o  channels that it reads, and that it makes

A blank parts two axes and letters side by side make one: "HK D" is (H·K, D). Beside vitnp's own shape of the same
letters it says all of a conversion: split every axis into its letters, bring these into the other order, merge. So
"D C P Q" (a convolution of PyTorch) beside "PQC D" is transpose(2, 3, 1, 0).reshape(P·Q·C, D).

The names are those of the published files: google-research/vision_transformer and big_vision (flax), timm, transformers
and torchvision (PyTorch).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Table = dict[str, tuple[str, str]]
Sizes = dict[str, int]

PARTS = ("_proj", "1", "2", "3")  # the convolutions of a stem's unit, each with its norm

# vitnp's own; q, k and v are the thirds of qkv
OWN = {
    "cls_token": "1 1 D",
    "pos_embed": "1 N D",
    "reg_token": "1 G D",
    "patch_embed.weight": "PQC D",
    "patch_embed.bias": "D",
    "norm1.gamma": "D",
    "norm1.beta": "D",
    "attn.qkv.weight": "D 3HK",
    "attn.qkv.bias": "3HK",
    "attn.q.weight": "D HK",
    "attn.q.bias": "HK",
    "attn.k.weight": "D HK",
    "attn.k.bias": "HK",
    "attn.v.weight": "D HK",
    "attn.v.bias": "HK",
    "attn.q_norm.gamma": "K",
    "attn.q_norm.beta": "K",
    "attn.k_norm.gamma": "K",
    "attn.k_norm.beta": "K",
    "attn.proj.weight": "HK D",
    "attn.proj.bias": "D",
    "ls1.gamma": "D",
    "ls2.gamma": "D",
    "norm2.gamma": "D",
    "norm2.beta": "D",
    "mlp.fc1.weight": "D M",
    "mlp.fc1.bias": "M",
    "mlp.fc2.weight": "M D",
    "mlp.fc2.bias": "D",
    "norm.gamma": "D",
    "norm.beta": "D",
    "pre_logits.weight": "D R",
    "pre_logits.bias": "R",
    "head.weight": "R Y",  # without a pre-training head R is D
    "head.bias": "Y",
}


@dataclass(frozen=True)
class Row:
    """One array: its name in the layout and its shape, vitnp's name and its shape there; and sizes of its own."""

    name: str
    shape: str
    own_name: str
    own_shape: str
    sizes: Sizes = field(default_factory=dict)


class Stem(NamedTuple):
    """The ResNet of a hybrid: the units of each stage, the channels of the image and of the root."""

    blocks: tuple[int, ...]
    channels: int
    width: int

    @property
    def map_channels(self) -> int:
        """How many channels the feature map has that is cut into patches."""
        return 4 * self.width << len(self.blocks) - 1 if self.blocks else self.width


@dataclass(frozen=True)
class StemLayout:
    """How a layout calls the arrays of a stem.

    Attributes:
        root, unit: what precedes the names of the root's arrays, and of those of unit u of stage s.
        first: the number of the first stage and of the first unit.
        names: vitnp's names of what a root and a unit have, and the layout's.
        kernel: the shape of a convolution.
        bare_root: what precedes the names instead where there is a root alone.
    """

    root: str
    unit: str
    first: int
    names: dict[str, str]
    kernel: str
    bare_root: str

    def rows(self, stem: Stem) -> Iterator[Row]:
        """Yield a row for every array of a stem."""
        root = self.root if stem.blocks else self.bare_root
        yield from self.pair(root, "stem.root", "", (7, stem.channels, stem.width))
        c_in = stem.width
        for s, units in enumerate(stem.blocks):
            width = stem.width << s
            for u in range(units):
                theirs, own = self.unit.format(s=s + self.first, u=u + self.first), f"stem.stages.{s}.{u}"
                if u == 0:
                    yield from self.pair(theirs, own, "_proj", (1, c_in, 4 * width))
                for number, size in ("1", (1, c_in, width)), ("2", (3, width, width)), ("3", (1, width, 4 * width)):
                    yield from self.pair(theirs, own, number, size)
                c_in = 4 * width

    def pair(self, theirs: str, own: str, which: str, size: tuple[int, int, int]) -> Iterator[Row]:
        """Yield the rows of a convolution and of its norm."""
        side, i, o = size
        kernel = f"conv{which}.weight"
        yield Row(
            theirs + self.names[kernel],
            self.kernel,
            f"{own}.{kernel}",
            "h w i o",
            {"h": side, "w": side, "i": i, "o": o},
        )
        for name in (f"norm{which}.gamma", f"norm{which}.beta"):
            yield Row(theirs + self.names[name], "o", f"{own}.{name}", "o", {"o": o})


@dataclass(frozen=True)
class Layout:
    """A layout of checkpoints.

    Attributes:
        outer, inner: the tables of what is once in a network, and of what is in every block.
        block: what precedes the names of a block's arrays.
        unused: names of what may be there and has no part in a classifier.
        aliases: patterns of other names in use, and the name in the tables instead, applied in this order.
        gelu, layer_norm_eps: what the layout's own programs compute with where its files say nothing.
        mean, representation: whether a network without class token, and one with a pre-training head, has a place in
            the programs that read it.
        mean_norm: what precedes the names of the final norm where it comes after the mean, if the layout has that.
        stem: how a hybrid's ResNet is called, where the layout has any.
        bare_tokens: whether what is in front of the patches may be without positions.
    """

    outer: Table
    inner: Table
    block: str
    aliases: tuple[tuple[str, str], ...]
    gelu: str
    layer_norm_eps: float
    mean: bool
    representation: bool
    mean_norm: str | None = None
    stem: StemLayout | None = None
    bare_tokens: bool = False
    unused: tuple[str, ...] = ()

    def rows(self, depth: int, stem: Stem | None = None, mean_norm: bool = False) -> Iterator[Row]:
        """Yield a row for every array that a network of `depth` blocks may have, behind a stem or none."""
        if stem is not None and self.stem is not None:
            yield from self.stem.rows(stem)
        for name, (own_name, shape) in self.outer.items():
            if mean_norm and own_name.startswith("norm."):
                name = f"{self.mean_norm}{name.rsplit('.', 1)[1]}"
            yield Row(name, shape, own_name, OWN[own_name])
        for i in range(depth):
            for name, (own_name, shape) in self.inner.items():
                yield Row(self.block.format(i=i) + name, shape, f"blocks.{i}.{own_name}", OWN[own_name])


GOOGLE = Layout(
    outer={
        "cls": ("cls_token", "1 1 D"),
        "Transformer/posembed_input/pos_embedding": ("pos_embed", "1 N D"),
        "embedding/kernel": ("patch_embed.weight", "P Q C D"),
        "embedding/bias": ("patch_embed.bias", "D"),
        "Transformer/encoder_norm/scale": ("norm.gamma", "D"),
        "Transformer/encoder_norm/bias": ("norm.beta", "D"),
        "pre_logits/kernel": ("pre_logits.weight", "D R"),
        "pre_logits/bias": ("pre_logits.bias", "R"),
        "head/kernel": ("head.weight", "R Y"),
        "head/bias": ("head.bias", "Y"),
    },
    inner={
        "LayerNorm_0/scale": ("norm1.gamma", "D"),
        "LayerNorm_0/bias": ("norm1.beta", "D"),
        "MultiHeadDotProductAttention_1/query/kernel": ("attn.q.weight", "D H K"),
        "MultiHeadDotProductAttention_1/query/bias": ("attn.q.bias", "H K"),
        "MultiHeadDotProductAttention_1/key/kernel": ("attn.k.weight", "D H K"),
        "MultiHeadDotProductAttention_1/key/bias": ("attn.k.bias", "H K"),
        "MultiHeadDotProductAttention_1/value/kernel": ("attn.v.weight", "D H K"),
        "MultiHeadDotProductAttention_1/value/bias": ("attn.v.bias", "H K"),
        "MultiHeadDotProductAttention_1/out/kernel": ("attn.proj.weight", "H K D"),
        "MultiHeadDotProductAttention_1/out/bias": ("attn.proj.bias", "D"),
        "LayerNorm_2/scale": ("norm2.gamma", "D"),
        "LayerNorm_2/bias": ("norm2.beta", "D"),
        "MlpBlock_3/Dense_0/kernel": ("mlp.fc1.weight", "D M"),
        "MlpBlock_3/Dense_0/bias": ("mlp.fc1.bias", "M"),
        "MlpBlock_3/Dense_1/kernel": ("mlp.fc2.weight", "M D"),
        "MlpBlock_3/Dense_1/bias": ("mlp.fc2.bias", "D"),
    },
    block="Transformer/encoderblock_{i}/",
    aliases=(
        (r"^(opt/target|params)/(img/)?", ""),
        (r"^(Transformer/)?pos_embedding$", "Transformer/posembed_input/pos_embedding"),
        # newer files count the modules of each class from 0; the published ones count all of a block together
        (r"/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
        (r"(/encoderblock_\d+)/LayerNorm_1/", r"\1/LayerNorm_2/"),
        (r"/MlpBlock_0/", "/MlpBlock_3/"),
    ),
    gelu="tanh",
    layer_norm_eps=1e-6,
    mean=True,
    representation=True,
    stem=StemLayout(
        root="",
        unit="block{s}/unit{u}/",
        first=1,
        names={
            "conv.weight": "conv_root/kernel",
            "norm.gamma": "gn_root/scale",
            "norm.beta": "gn_root/bias",
            **{f"conv{n}.weight": f"conv{n}/kernel" for n in PARTS},
            **{f"norm{n}.gamma": f"gn{n}/scale" for n in PARTS},
            **{f"norm{n}.beta": f"gn{n}/bias" for n in PARTS},
        },
        kernel="h w i o",
        bare_root="",
    ),
)

TIMM = Layout(
    outer={
        "cls_token": ("cls_token", "1 1 D"),
        "pos_embed": ("pos_embed", "1 N D"),
        "reg_token": ("reg_token", "1 G D"),
        "patch_embed.proj.weight": ("patch_embed.weight", "D C P Q"),
        "patch_embed.proj.bias": ("patch_embed.bias", "D"),
        "norm.weight": ("norm.gamma", "D"),
        "norm.bias": ("norm.beta", "D"),
        "pre_logits.fc.weight": ("pre_logits.weight", "R D"),  # until timm 0.6
        "pre_logits.fc.bias": ("pre_logits.bias", "R"),
        "head.weight": ("head.weight", "Y R"),
        "head.bias": ("head.bias", "Y"),
    },
    inner={
        "norm1.weight": ("norm1.gamma", "D"),
        "norm1.bias": ("norm1.beta", "D"),
        "attn.qkv.weight": ("attn.qkv.weight", "3HK D"),
        "attn.qkv.bias": ("attn.qkv.bias", "3HK"),
        "attn.q_norm.weight": ("attn.q_norm.gamma", "K"),
        "attn.q_norm.bias": ("attn.q_norm.beta", "K"),
        "attn.k_norm.weight": ("attn.k_norm.gamma", "K"),
        "attn.k_norm.bias": ("attn.k_norm.beta", "K"),
        "attn.proj.weight": ("attn.proj.weight", "D HK"),
        "attn.proj.bias": ("attn.proj.bias", "D"),
        "ls1.gamma": ("ls1.gamma", "D"),
        "ls2.gamma": ("ls2.gamma", "D"),
        "norm2.weight": ("norm2.gamma", "D"),
        "norm2.bias": ("norm2.beta", "D"),
        "mlp.fc1.weight": ("mlp.fc1.weight", "M D"),
        "mlp.fc1.bias": ("mlp.fc1.bias", "M"),
        "mlp.fc2.weight": ("mlp.fc2.weight", "D M"),
        "mlp.fc2.bias": ("mlp.fc2.bias", "D"),
    },
    block="blocks.{i}.",
    aliases=(),
    gelu="erf",
    layer_norm_eps=1e-6,
    mean=True,
    representation=True,
    mean_norm="fc_norm.",
    bare_tokens=True,
    stem=StemLayout(
        root="patch_embed.backbone.stem.",
        unit="patch_embed.backbone.stages.{s}.blocks.{u}.",
        first=0,
        names={
            "conv.weight": "conv.weight",
            "norm.gamma": "norm.weight",
            "norm.beta": "norm.bias",
            "conv_proj.weight": "downsample.conv.weight",
            "norm_proj.gamma": "downsample.norm.weight",
            "norm_proj.beta": "downsample.norm.bias",
            **{f"conv{n}.weight": f"conv{n}.weight" for n in PARTS[1:]},
            **{f"norm{n}.gamma": f"norm{n}.weight" for n in PARTS[1:]},
            **{f"norm{n}.beta": f"norm{n}.bias" for n in PARTS[1:]},
        },
        kernel="o i h w",
        bare_root="patch_embed.backbone.",
    ),
)

HUGGINGFACE = Layout(
    outer={
        "vit.embeddings.cls_token": ("cls_token", "1 1 D"),
        "vit.embeddings.position_embeddings": ("pos_embed", "1 N D"),
        "vit.embeddings.patch_embeddings.projection.weight": ("patch_embed.weight", "D C P Q"),
        "vit.embeddings.patch_embeddings.projection.bias": ("patch_embed.bias", "D"),
        "vit.layernorm.weight": ("norm.gamma", "D"),
        "vit.layernorm.bias": ("norm.beta", "D"),
        "vit.pooler.dense.weight": ("pre_logits.weight", "R D"),
        "vit.pooler.dense.bias": ("pre_logits.bias", "R"),
        "classifier.weight": ("head.weight", "Y R"),
        "classifier.bias": ("head.bias", "Y"),
    },
    inner={
        "layernorm_before.weight": ("norm1.gamma", "D"),
        "layernorm_before.bias": ("norm1.beta", "D"),
        "attention.attention.query.weight": ("attn.q.weight", "HK D"),
        "attention.attention.query.bias": ("attn.q.bias", "HK"),
        "attention.attention.key.weight": ("attn.k.weight", "HK D"),
        "attention.attention.key.bias": ("attn.k.bias", "HK"),
        "attention.attention.value.weight": ("attn.v.weight", "HK D"),
        "attention.attention.value.bias": ("attn.v.bias", "HK"),
        "attention.output.dense.weight": ("attn.proj.weight", "D HK"),
        "attention.output.dense.bias": ("attn.proj.bias", "D"),
        "layernorm_after.weight": ("norm2.gamma", "D"),
        "layernorm_after.bias": ("norm2.beta", "D"),
        "intermediate.dense.weight": ("mlp.fc1.weight", "M D"),
        "intermediate.dense.bias": ("mlp.fc1.bias", "M"),
        "output.dense.weight": ("mlp.fc2.weight", "D M"),
        "output.dense.bias": ("mlp.fc2.bias", "D"),
    },
    block="vit.encoder.layer.{i}.",
    aliases=(
        (r"^(?=(embeddings|encoder|layers|layernorm|pooler)\.)", "vit."),  # a model without its classifier
        (r"^vit\.layers\.", "vit.encoder.layer."),  # as transformers 5 calls them in memory
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
    gelu="erf",
    layer_norm_eps=1e-12,
    mean=False,
    representation=False,
    unused=("vit.embeddings.mask_token", "decoder.0.weight", "decoder.0.bias"),  # of pre-training on masked images
)

TORCHVISION = Layout(
    outer={
        "class_token": ("cls_token", "1 1 D"),
        "encoder.pos_embedding": ("pos_embed", "1 N D"),
        "conv_proj.weight": ("patch_embed.weight", "D C P Q"),
        "conv_proj.bias": ("patch_embed.bias", "D"),
        "encoder.ln.weight": ("norm.gamma", "D"),
        "encoder.ln.bias": ("norm.beta", "D"),
        "heads.pre_logits.weight": ("pre_logits.weight", "R D"),
        "heads.pre_logits.bias": ("pre_logits.bias", "R"),
        "heads.head.weight": ("head.weight", "Y R"),
        "heads.head.bias": ("head.bias", "Y"),
    },
    inner={
        "ln_1.weight": ("norm1.gamma", "D"),
        "ln_1.bias": ("norm1.beta", "D"),
        "self_attention.in_proj_weight": ("attn.qkv.weight", "3HK D"),
        "self_attention.in_proj_bias": ("attn.qkv.bias", "3HK"),
        "self_attention.out_proj.weight": ("attn.proj.weight", "D HK"),
        "self_attention.out_proj.bias": ("attn.proj.bias", "D"),
        "ln_2.weight": ("norm2.gamma", "D"),
        "ln_2.bias": ("norm2.beta", "D"),
        "mlp.0.weight": ("mlp.fc1.weight", "M D"),
        "mlp.0.bias": ("mlp.fc1.bias", "M"),
        "mlp.3.weight": ("mlp.fc2.weight", "D M"),
        "mlp.3.bias": ("mlp.fc2.bias", "D"),
    },
    block="encoder.layers.encoder_layer_{i}.",
    aliases=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),  # older files
    gelu="erf",
    layer_norm_eps=1e-6,
    mean=False,
    representation=True,
)

LAYOUTS = {"google": GOOGLE, "timm": TIMM, "huggingface": HUGGINGFACE, "torchvision": TORCHVISION}


def axes(shape: str, sizes: Sizes) -> tuple[int, ...]:
    """Return the lengths of the axes that `shape` has in letters."""
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in shape.split())


def turn(array: np.ndarray, shape: str, target: str, sizes: Sizes) -> np.ndarray:
    """Return an array of `shape` in the shape `target`, both of the same letters: a view where that is possible."""
    letters = shape.replace(" ", "").replace("1", "")
    order = [letters.index(letter) for letter in target if letter in letters]
    split = array.reshape([sizes[letter] for letter in letters])
    return split.transpose(order).reshape(axes(target, sizes))


def places(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the parameters by name, and the thirds q, k and v of each qkv beside them: views."""
    found = dict(parameters)
    for name, qkv in parameters.items():
        if ".qkv." in name:
            thirds = zip("qkv", np.split(qkv, 3, axis=-1), strict=True)
            found |= {name.replace("qkv", letter): third for letter, third in thirds}
    return found
