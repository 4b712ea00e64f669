"""What the tests share: set-ups in which a mistake cannot hide, and an independent derivative to measure by.

The set-ups: unequal samples, every size distinct, oblong images and patches, several heads, random gamma, beta and
biases, a head that is not zero, a random cotangent, dropout on. An image, a token or a patch of one size in two
directions, a zero head or a batch of one each hide faults that are caught here.
"""

import math
from typing import NamedTuple

import numpy as np

import vitnp
from vitnp.layers import (
    GELU,
    MLP,
    Attention,
    Block,
    BottleneckUnit,
    ClassifierHead,
    Dropout,
    Embeddings,
    GroupNorm,
    LayerNorm,
    LayerScale,
    Linear,
    MaxPool,
    PatchCorruption,
    PatchEmbed,
    Positions,
    RasterPositions,
    RelativePositions,
    ReLU,
    ResNetStem,
    Softmax,
    StdConv,
    StochasticDepth,
    Tanh,
)

BATCH = 5
HARD = {
    "image_size": (6, 8),
    "patch_size": (3, 2),
    "channels": 3,
    "num_classes": 4,
    "dim": 6,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 7,
    "dropout": 0.2,
    "attention_dropout": 0.3,
}
HYBRID = {"image_size": (22, 15), "patch_size": (2, 4), "stem_blocks": (1,), "stem_width": 0.5}

# what later papers added, all at once
LATER = {"stochastic_depth": 0.3, "layer_scale": 0.1, "registers": 2, "qk_norm": True}

# name: how to make it, and the shape of its input
LAYERS = {
    "linear": (lambda **o: Linear(6, 7, **o), (5, 9, 6)),
    "layer_norm": (lambda **o: LayerNorm(6, **o), (5, 9, 6)),
    "gelu_tanh": (lambda **o: GELU("tanh"), (5, 9, 7)),
    "gelu_erf": (lambda **o: GELU("erf"), (5, 9, 7)),
    "tanh": (lambda **o: Tanh(), (5, 11)),
    "dropout": (lambda **o: Dropout(0.4), (5, 9, 6)),
    "stochastic_depth": (lambda **o: StochasticDepth(0.4), (5, 9, 6)),
    "layer_scale": (lambda **o: LayerScale(6, 0.1, **o), (5, 9, 6)),
    "softmax": (lambda **o: Softmax(), (5, 2, 9, 8)),
    "patch_embed": (lambda **o: PatchEmbed((6, 8), (3, 2), 3, 7, **o), (5, 6, 8, 3)),
    "embeddings_token": (lambda **o: Embeddings(8, 6, **o), (5, 8, 6)),
    "embeddings_mean": (lambda **o: Embeddings(8, 6, class_token=False, **o), (5, 8, 6)),
    "embeddings_registers": (lambda **o: Embeddings(8, 6, registers=2, **o), (5, 8, 6)),
    "positions_learned": (lambda **o: Positions("learned", (2, 3), 8, **o), (5, 9, 8)),
    "positions_2d": (lambda **o: Positions("learned-2d", (2, 3), 8, **o), (5, 9, 8)),
    "positions_sincos": (lambda **o: Positions("sincos", (2, 3), 8, **o), (5, 9, 8)),
    "relative_positions": (lambda **o: RelativePositions((2, 3), 3, **o), (5, 4, 9, 3)),
    "raster_positions": (lambda **o: RasterPositions(6, 3, **o), (5, 4, 9, 3)),
    "attention": (lambda **o: Attention(6, 2, dropout=0.3, **o), (5, 9, 6)),
    "attention_relative": (
        lambda **o: Attention(6, 2, dropout=0.3, relative=RelativePositions((2, 3), 3, **o), **o),
        (5, 9, 6),
    ),
    "attention_norms": (
        lambda **o: Attention(6, 2, dropout=0.3, q_norm=LayerNorm(3, **o), k_norm=LayerNorm(3, **o), **o),
        (5, 9, 6),
    ),
    "mlp_tanh": (lambda **o: MLP(6, 7, dropout=0.2, **o), (5, 9, 6)),
    "mlp_erf": (lambda **o: MLP(6, 7, gelu="erf", dropout=0.2, **o), (5, 9, 6)),
    "head_token": (lambda **o: ClassifierHead(6, 4, **o), (5, 9, 6)),
    "head_mean": (lambda **o: ClassifierHead(6, 4, pool="mean", representation_size=7, **o), (5, 9, 6)),
    "block": (lambda **o: Block(6, 2, 7, dropout=0.2, attention_dropout=0.3, **o), (5, 9, 6)),
    "head_registers": (lambda **o: ClassifierHead(6, 4, pool="mean", registers=2, **o), (5, 9, 6)),
    "head_mean_norm": (lambda **o: ClassifierHead(6, 4, pool="mean-norm", registers=2, **o), (5, 9, 6)),
    "block_options": (
        lambda **o: Block(6, 2, 7, dropout=0.2, qk_norm=True, layer_scale=0.1, stochastic_depth=0.3, **o),
        (5, 9, 6),
    ),
    "patch_corruption": (lambda **o: PatchCorruption(8, 6, **o), (5, 8, 6)),
    "relu": (lambda **o: ReLU(), (5, 4, 3, 6)),
    "group_norm": (lambda **o: GroupNorm(6, 2, **o), (5, 4, 3, 6)),
    "conv": (lambda **o: StdConv(3, 4, 3, 2, **o), (5, 6, 5, 3)),
    "max_pool": (lambda **o: MaxPool(), (5, 6, 5, 3)),
    "bottleneck": (lambda **o: BottleneckUnit(3, 4, 2, groups=2, **o), (5, 6, 5, 3)),
    "stem": (lambda **o: ResNetStem(3, (2, 1), 4, groups=2, **o), (5, 14, 11, 3)),
    "vit_token": (lambda **o: vitnp.VisionTransformer(vitnp.ViTConfig(**HARD), **o), (5, 6, 8, 3)),
    "vit_mean": (
        lambda **o: vitnp.VisionTransformer(
            vitnp.ViTConfig(**{**HARD, "pool": "mean", "gelu": "erf", "representation_size": 11}), **o
        ),
        (5, 6, 8, 3),
    ),
    "vit_positions": (
        lambda **o: vitnp.VisionTransformer(
            vitnp.ViTConfig(**{**HARD, "dim": 8, "positions": "learned-2d", "pos_at": "shared", **LATER}), **o
        ),
        (5, 6, 8, 3),
    ),
    "vit_masked": (
        lambda **o: vitnp.MaskedPatchPrediction(vitnp.ViTConfig(**{**HARD, "channels": 1}), **o),
        (5, 6, 8, 1),
    ),
    "vit_hybrid": (lambda **o: vitnp.VisionTransformer(vitnp.ViTConfig(**{**HARD, **HYBRID}), **o), (5, 22, 15, 3)),
}

DRAW_ALWAYS = ("patch_corruption", "vit_masked")  # in every mode: they want a seed in evaluation too


def make_layer(name, dtype="float64", seed=0):
    """One of LAYERS with random parameters, and an input for it."""
    make, shape = LAYERS[name]
    layer = randomize(make(dtype=dtype), seed)
    return layer, normal(shape, seed + 1).astype(dtype)


def hard_model(dtype="float64", seed=0, **changes):
    """A small Vision Transformer with nothing at zero and no two sizes alike."""
    return randomize(vitnp.VisionTransformer(vitnp.ViTConfig(**{**HARD, **changes}), dtype=dtype), seed)


def images_for(model, batch=BATCH, seed=1, dtype=None):
    """Unequal images of the model's shape and dtype."""
    config = model.config
    return normal((batch, *config.image_size, config.channels), seed).astype(dtype or model.flat.dtype)


def labels_for(model, batch=BATCH, seed=2):
    return np.random.default_rng(seed).integers(model.config.num_classes, size=batch)


def soft_labels_for(model, batch=BATCH, seed=2):
    return np.random.default_rng(seed).dirichlet(np.ones(model.config.num_classes), size=batch)


def normal(shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def randomize(layer, seed=0):
    """Give every parameter values of the size that they have in a trained network; return the layer."""
    rng = np.random.default_rng(seed)
    for name, parameter in layer.parameters().items():
        values = rng.standard_normal(parameter.shape)
        if name.endswith("weight"):
            values /= math.sqrt(parameter.shape[0])
        elif name.endswith("gamma"):
            values = 1 + 0.4 * values
        else:
            values *= 0.5
        parameter[...] = values
    return layer


# -- derivatives ------------------------------------------------------------------------------------------------------


def complex_step(f, array):
    """The derivative of f() by every element of a complex array that f reads, to the last digits.

    f(x + ih) = f(x) + ih f'(x) + O(h²): no difference is formed, so h can be as small as one likes.
    """
    gradient, h = np.empty(array.shape), 1e-30
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + 1j * h
        gradient[index] = f().imag / h
        array[index] = value
    return gradient


def numeric_gradients(layer, x, loss, seed=3, train=True):
    """The derivatives of loss(layer's output) by every parameter and by the input, which goes by the name "input"."""
    twin, x = layer.astype("complex128"), x.astype("complex128")
    ctx = vitnp.Context(train=train, rng=seed, record=False)  # its step does not move, so the masks are held

    def f():
        return loss(twin.forward(x, ctx))

    arrays = {**twin.parameters(), "input": x}
    return {name: complex_step(f, array) for name, array in arrays.items()}


def handwritten_gradients(layer, x, dy, seed=3, train=True):
    """What backward says of the same; dy is the cotangent, or a function of the output that returns it."""
    ctx = vitnp.Context(train=train, rng=seed, record=True)
    y = layer.forward(x, ctx)
    dx = layer.backward(dy(y) if callable(dy) else dy, ctx)
    return {**layer.gradients(ctx), "input": dx}


def both_gradients(layer, x, seed=3, train=True):
    """Handwritten and numeric gradients of ⟨output, a random cotangent⟩."""
    shape = layer.forward(x, vitnp.Context(train=train, rng=seed)).shape
    dy = normal(shape, seed=seed + 1)
    found = handwritten_gradients(layer, x, dy, seed, train)
    return found, numeric_gradients(layer, x, lambda y: (y * dy).sum(), seed, train)


def worst_error(found, truth, floor=1e-8):
    """The largest difference, in units of the largest entry of its tensor (or of `floor` times that of all tensors)."""
    assert found.keys() == truth.keys()
    largest = max(np.abs(array).max() for array in truth.values())
    errors = []
    for name, true in truth.items():
        assert found[name].shape == true.shape, name
        scale = max(np.abs(true).max(), np.abs(found[name]).max(), floor * largest)
        if name.endswith("k_norm.beta"):
            scale = largest  # it adds the same to all scores of a query: the gradient is 0 but for what rounding leaves
        errors.append(np.abs(found[name] - true).max() / scale)
    return max(errors)


def error(found, truth):
    """The largest difference, in units of the largest entry of `truth`."""
    found, truth = np.asarray(found), np.asarray(truth)
    assert found.shape == truth.shape
    return np.abs(found - truth).max() / np.abs(truth).max()


# -- passes -----------------------------------------------------------------------------------------------------------


def one_pass(model, ctx, images, labels, label_smoothing=0.0):
    """Forward, loss and backward: -> logits, loss, dimages."""
    logits = model.forward(images, ctx)
    loss, dlogits = vitnp.softmax_cross_entropy(logits, labels, label_smoothing)
    return logits, loss, model.backward(dlogits, ctx)


def arrays_of(value):
    """Every array in a context or a layer, wherever it is kept."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_of(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from arrays_of(item)
    elif type(value).__module__.split(".")[0] in ("vitnp", "types", "helpers") and hasattr(value, "__dict__"):
        yield from arrays_of(vars(value))


def copies(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# -- devices ----------------------------------------------------------------------------------------------------------


class Backend(NamedTuple):
    """Where arrays live: `name` is that of the fixture's parameter, `device` the one that vitnp knows."""

    name: str
    device: str

    def put(self, x):
        """A NumPy array -> the same on the device."""
        return vitnp.to_device(x, self.device)

    def get(self, x):
        """An array on the device -> the same in NumPy; fails for one that is not there."""
        on_cpu = vitnp.array_module(x).__name__ == "numpy"
        assert on_cpu == (self.device == "cpu"), f"an array of {type(x)} on the device {self.device}"
        return vitnp.to_cpu(x)


CPU = Backend("numpy", "cpu")
