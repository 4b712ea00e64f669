import copy
import itertools
import json
import math
import pickle

import helpers
import numpy as np
import pytest
from helpers import (
    BATCH,
    HARD,
    HYBRID,
    copies,
    error,
    handwritten_gradients,
    hard_model,
    images_for,
    labels_for,
    normal,
    numeric_gradients,
    one_pass,
    same_bits,
    soft_labels_for,
    worst_error,
)

import vitnp
from vitnp import Adam, ConfigError, Context, ShardedStep, VisionTransformer, ViTConfig, softmax_cross_entropy

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
VARIANTS = {
    "token, tanh": {},
    "token, erf, representation": {"gelu": "erf", "representation_size": 11},
    "mean, tanh, representation": {"pool": "mean", "representation_size": 11},
    "mean, then its norm, erf": {"pool": "mean-norm", "gelu": "erf"},
    "one block, three heads": {"depth": 1, "num_heads": 3},
    "large eps": {"layer_norm_eps": 0.5},
    "no dropout": NO_DROPOUT,
}
POSITIONS = {
    "a table for each layer": {"positions": "learned", "pos_at": "layers"},
    "a table for all layers": {"positions": "learned", "pos_at": "shared", "depth": 3},
    "rows and columns": {"positions": "learned-2d"},
    "rows and columns for each layer": {"positions": "learned-2d", "pos_at": "layers"},
    "rows and columns for all layers": {"positions": "learned-2d", "pos_at": "shared"},
    "waves": {"positions": "sincos", "dim": 8},
    "waves for all layers": {"positions": "sincos", "pos_at": "shared", "dim": 8},
    "relative": {"positions": "relative"},
    "relative in raster order": {"positions": "relative-1d"},
    "none": {"positions": "none", "pool": "mean"},
}
LATER = {
    "stochastic depth": {"stochastic_depth": 0.4},
    "layer scale": {"layer_scale": 0.1},
    "registers": {"registers": 2},
    "registers in a mean": {"registers": 2, "pool": "mean"},
    "q/k norm": {"qk_norm": True},
    "all at once": {**helpers.LATER, "positions": "relative", "pool": "mean", "depth": 3},
}
OPTIONS = POSITIONS | LATER
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
every_option = pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())


# -- the network ------------------------------------------------------------------------------------------------------


def equations(model, images):
    """Equations 1 to 4 of the paper, without dropout, one sample and one head at a time: -> logits (B, classes)"""
    p, c = model.parameters(), model.config

    def norm(x, name):
        deviation = np.sqrt(x.var(-1, keepdims=True) + c.layer_norm_eps)
        return p[f"{name}.gamma"] * (x - x.mean(-1, keepdims=True)) / deviation + p[f"{name}.beta"]

    def linear(x, name):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def gelu(x):
        if c.gelu == "erf":
            return x * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(x)
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attention(x, name):
        size = c.dim // c.num_heads
        q, k, v = np.split(linear(x, f"{name}.qkv"), 3, axis=-1)
        heads = []
        for columns in (slice(h * size, (h + 1) * size) for h in range(c.num_heads)):
            weights = np.exp(q[:, columns] @ k[:, columns].T / math.sqrt(size))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, columns])
        return linear(np.concatenate(heads, -1), f"{name}.proj")

    logits, (P_h, P_w) = [], c.patch_size
    for image in images:
        rows = [image[i : i + P_h] for i in range(0, len(image), P_h)]
        patches = [row[:, j : j + P_w].ravel() for row in rows for j in range(0, row.shape[1], P_w)]
        x = linear(np.array(patches), "patch_embed")
        if c.pool == "token":
            x = np.concatenate([p["cls_token"][0], x])
        x = x + p["pos_embed"][0]
        for block in (f"blocks.{i}" for i in range(c.depth)):
            x = x + attention(norm(x, f"{block}.norm1"), f"{block}.attn")
            x = x + linear(gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        if c.pool == "mean-norm":
            x = norm(x.mean(0), "norm")
        else:
            x = norm(x, "norm")
            x = x[0] if c.pool == "token" else x.mean(0)
        if c.representation_size:
            x = np.tanh(linear(x, "pre_logits"))
        logits.append(linear(x, "head"))
    return np.array(logits)


@every_variant
def test_logits_are_those_of_the_equations(changes):
    model = hard_model(**changes)
    assert error(model.forward(images_for(model)), equations(model, images_for(model))) < 1e-13


@every_variant
def test_every_gradient_of_the_model_is_the_derivative_of_the_loss(changes):
    model = hard_model(**changes)
    images, labels = images_for(model), labels_for(model)
    found = handwritten_gradients(model, images, lambda y: softmax_cross_entropy(y, labels, 0.1)[1])
    truth = numeric_gradients(model, images, lambda y: softmax_cross_entropy(y, labels, 0.1)[0])
    assert worst_error(found, truth) < 1e-12


@every_variant
def test_gradcheck_passes_on_every_coordinate_with_soft_labels(changes):
    model = hard_model(**changes)
    report = vitnp.gradcheck(model, images_for(model), soft_labels_for(model), mode="full", tolerance=1e-12)
    report.raise_if_failed()


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_gradcheck_passes_with_a_random_cotangent(pool):
    model = hard_model(pool=pool)
    vitnp.gradcheck(model, images_for(model), mode="full", tolerance=1e-12).raise_if_failed()


@pytest.mark.parametrize("changes", [{}, {"pool": "mean", "gelu": "erf"}], ids=str)
def test_gradcheck_passes_on_a_model_of_the_size_that_people_train(changes):
    config = ViTConfig(dropout=0.1, attention_dropout=0.1, **changes)
    model = VisionTransformer(config, rng=1, dtype="float64")
    model.parameters()["head.weight"][...] = normal((64, 10), 2, 0.1)
    report = vitnp.gradcheck(model, normal((3, 28, 28, 1), 3), [1, 4, 4], mode="directions", label_smoothing=0.1)
    report.raise_if_failed()


def test_gradients_of_black_images_whose_tokens_are_constant_rows():
    model = hard_model(**NO_DROPOUT)
    p, images = model.parameters(), images_for(model)
    p["patch_embed.bias"][...], p["pos_embed"][...], images[:2] = 0.3, 0, 0
    vitnp.gradcheck(model, images, labels_for(model), mode="full", tolerance=1e-12).raise_if_failed()


def test_gradients_where_attention_is_nearly_saturated():
    model = hard_model()
    for block in model.blocks:
        block.attn.qkv.weight[...] *= 4
    report = vitnp.gradcheck(model, images_for(model), labels_for(model), mode="full", tolerance=1e-10)
    report.raise_if_failed()


def test_final_norm_stands_before_the_mean():
    model = hard_model(pool="mean", **NO_DROPOUT)
    ctx = Context(record=True)
    logits = model.forward(images_for(model), ctx)
    normed = model.classifier.norm.forward(ctx.saved(model.classifier).tokens, Context())
    assert error(logits, normed.mean(1) @ model.classifier.head.weight + model.classifier.head.bias) < 1e-14


def test_dropout_follows_the_positions_too():
    model = hard_model(dropout=0.5)
    ctx = Context(train=True, rng=1)
    model.forward(images_for(model), ctx)
    assert ctx.saved(model.dropout).mask.shape == (BATCH, 9, 6)


def test_dropout_rates_of_the_configuration_reach_their_layers():
    model = hard_model(depth=1)
    rates = {layer.path: layer.rate for layer in model.layers() if hasattr(layer, "rate")}
    assert rates == {
        "dropout": 0.2,
        "blocks.0.attn.dropout": 0.3,
        "blocks.0.dropout": 0.2,
        "blocks.0.mlp.dropout1": 0.2,
        "blocks.0.mlp.dropout2": 0.2,
    }


def test_every_dropout_of_a_model_has_a_mask_of_its_own():
    model = hard_model(depth=2, mlp_dim=6, dropout=0.5, attention_dropout=0.5)
    ctx = Context(train=True, rng=1)
    model.forward(images_for(model), ctx)
    masks = [ctx.saved(layer).mask for layer in model.layers() if hasattr(layer, "rate")]
    assert len(masks) == 9
    assert len({mask.tobytes() for mask in masks if mask.shape == (BATCH, 9, 6)}) == 7
    assert len({mask.tobytes() for mask in masks}) == 9


def test_evaluation_uses_no_dropout():
    model, plain = hard_model(), hard_model(**NO_DROPOUT)
    assert same_bits(model.forward(images_for(model)), plain.forward(images_for(model)))


def test_a_pass_without_a_context_is_an_evaluation():
    model = hard_model()
    assert same_bits(model.forward(images_for(model)), model.forward(images_for(model), Context()))


def test_a_single_image_has_the_logits_that_it_has_in_a_batch():
    model = hard_model()
    images = images_for(model)
    alone = np.concatenate([model.forward(images[i : i + 1]) for i in range(BATCH)])
    assert error(alone, model.forward(images)) < 1e-14


def test_logits_are_a_fresh_array_in_every_pass():
    model, ctx = hard_model(), Context()
    first = model.forward(images_for(model), ctx)
    before = first.copy()
    second = model.forward(images_for(model, seed=7), ctx)
    assert not np.shares_memory(first, second)
    assert same_bits(first, before)


@every_variant
def test_dimages_are_a_fresh_array_in_every_pass(changes):
    model, ctx = hard_model(**changes), Context(train=True, rng=0)
    first = one_pass(model, ctx, images_for(model), labels_for(model))[2]
    before = first.copy()
    second = one_pass(model, ctx, images_for(model, seed=7), labels_for(model))[2]
    assert not np.shares_memory(first, second)
    assert same_bits(first, before)


def test_a_context_without_input_gradient_has_all_others_bit_for_bit():
    model = hard_model()
    dlogits, found = normal((BATCH, model.config.num_classes), 3), {}
    for wanted in (True, False):
        ctx = Context(train=True, rng=1, input_grad=wanted)
        model.forward(images_for(model), ctx)
        dimages = model.backward(dlogits, ctx)
        assert (dimages is not None) == wanted
        found[wanted] = {name: gradient.copy() for name, gradient in model.gradients(ctx).items()}
    assert all(same_bits(found[False][name], found[True][name]) for name in found[True])


def test_dimages_are_fresh_where_one_patch_is_the_image():
    model, ctx = hard_model(image_size=(3, 2)), Context(train=True, rng=0)
    dimages = one_pass(model, ctx, images_for(model), labels_for(model))[2]
    assert not any(np.shares_memory(dimages, buffer) for buffer in ctx._buffers.values())


# -- the architectures of other papers, and of the paper's appendix ---------------------------------------------------


@every_option
def test_every_gradient_of_another_architecture_is_the_derivative(changes):
    model = hard_model(**changes)
    data = images_for(model, 3), labels_for(model, 3)
    vitnp.gradcheck(model, *data, mode="directions", tolerance=1e-12, label_smoothing=0.1).raise_if_failed()


@every_option
def test_another_architecture_trains_in_shards_as_in_one(changes):
    found = []
    for options in ({"shards": 1, "micro_batch": BATCH}, {"shards": 2, "micro_batch": 2}):
        model = hard_model(**changes)
        step = ShardedStep(model, Adam(model), rng=5, **options)
        loss = step.step(images_for(model), labels_for(model))
        found.append({"loss": np.array(loss), **copies(model.parameters())})
    assert worst_error(*found) < 1e-9  # Adam's first step divides small differences by small gradients


@every_option
def test_another_architecture_is_kept_by_a_checkpoint_and_by_every_copy(changes, tmp_path):
    model = hard_model(**changes)
    logits = model.forward(images_for(model))
    vitnp.save_checkpoint(tmp_path / "c.safetensors", model)
    for twin in (
        vitnp.load_checkpoint(tmp_path / "c.safetensors").model,
        copy.deepcopy(model),
        model.astype("float64"),
    ):
        assert twin.config == model.config
        assert same_bits(twin.forward(images_for(model)), logits)
    assert same_bits(pickle.loads(pickle.dumps(model)).forward(images_for(model)), logits)


@every_option
def test_another_architecture_predicts_in_little_memory_what_it_computes(changes):
    model = hard_model(**changes)
    images = images_for(model)
    logits = model.forward(images)
    weights = np.exp(logits)
    assert error(vitnp.predict(model, images), weights / weights.sum(1, keepdims=True)) < 1e-14


@every_option
def test_check_layers_finds_nothing_in_another_architecture(changes):
    model = hard_model(**changes)
    vitnp.check_layers(model, images_for(model), labels_for(model)).raise_if_failed()


def test_a_network_without_positions_does_not_see_the_order_of_its_patches():
    model = hard_model(positions="none", pool="mean")
    images = images_for(model)
    swapped = np.concatenate([images[:, 3:], images[:, :3]], 1)  # the two rows of patches
    assert error(model.forward(swapped), model.forward(images)) < 1e-14
    model = hard_model(positions="relative", pool="mean")
    assert error(model.forward(swapped), model.forward(images)) > 1e-3


def test_positions_of_every_layer_are_added_to_the_input_of_its_skip_too():
    model = hard_model(positions="learned", pos_at="layers", depth=1, **NO_DROPOUT)
    block, x = model.blocks[0], normal((2, 9, 6), 1)
    for linear in (block.attn.proj, block.mlp.fc2):
        linear.weight[...] = linear.bias[...] = 0
    assert error(block.forward(x, Context()), x + block.positions.pos_embed) < 1e-15


NAMES_OF_POSITIONS = {
    ("learned", "stem"): ["pos_embed"],
    ("learned", "layers"): ["blocks.0.pos_embed", "blocks.1.pos_embed"],
    ("learned", "shared"): ["pos_embed"],
    ("learned-2d", "stem"): ["pos_embed_columns", "pos_embed_rows"],
    ("sincos", "stem"): [],
    ("relative", "stem"): [f"blocks.{i}.attn.pos_embed_{axis}" for i in range(2) for axis in ("rows", "columns")],
    ("relative-1d", "stem"): ["blocks.0.attn.pos_embed_offsets", "blocks.1.attn.pos_embed_offsets"],
    ("none", "stem"): [],
}


@pytest.mark.parametrize(("positions", "pos_at"), NAMES_OF_POSITIONS)
def test_positions_go_by_their_names(positions, pos_at):
    parameters = hard_model(dim=8, positions=positions, pos_at=pos_at).parameters()
    assert [name for name in parameters if "pos_embed" in name] == NAMES_OF_POSITIONS[positions, pos_at]


def test_rates_of_stochastic_depth_grow_from_0_to_that_of_the_last_block():
    model = hard_model(depth=4, stochastic_depth=0.3, **NO_DROPOUT)
    assert model.blocks[0].drop_path1 is model.blocks[0].drop_path2 is None
    rates = [[block.drop_path1.rate, block.drop_path2.rate] for block in model.blocks[1:]]
    assert rates == [[pytest.approx(0.3 * i / 3, rel=1e-14)] * 2 for i in (1, 2, 3)]


def test_registers_are_attended_to_and_read_by_no_classifier():
    for pool in ("token", "mean"):
        model = hard_model(registers=2, pool=pool)
        ctx = Context(record=True)
        before = model.forward(images_for(model), ctx)
        n = model.config.num_tokens - 2
        assert ctx.saved(model.blocks[0].attn).probs[..., n:].all()
        tokens = ctx.saved(model.classifier).tokens
        assert tokens.shape[1] == n + 2 == 8 + (pool == "token") + 2
        other = tokens.copy()
        other[:, n:] = 7
        assert same_bits(model.classifier.forward(other, Context()).copy(), before)
        model.parameters()["reg_token"][0, 1, 2] += 1  # of all its numbers alike, the norm would see nothing
        assert error(model.forward(images_for(model)), before) > 1e-3


def test_registers_have_no_position_of_their_own():
    for positions in ("learned", "learned-2d"):
        model = hard_model(registers=2, positions=positions)
        p = model.parameters()
        ctx = Context(record=True)
        x = model.embeddings.forward(np.zeros((3, 8, 6)), ctx)
        x = x if model.positions is None else model.positions.forward(x, ctx)
        assert np.array_equal(x[:, 9:], np.broadcast_to(p["reg_token"], (3, 2, 6)))


NAMES_OF_LATER = {
    "layer_scale": (0.1, [f"blocks.{i}.ls{j}.gamma" for i in (0, 1) for j in (1, 2)]),
    "registers": (2, ["reg_token"]),
    "qk_norm": (True, [f"blocks.{i}.attn.{x}_norm.{p}" for i in (0, 1) for x in "qk" for p in ("gamma", "beta")]),
    "stochastic_depth": (0.1, []),
}


@pytest.mark.parametrize("option", NAMES_OF_LATER)
def test_what_an_option_adds_goes_by_the_names_of_timm_and_does_not_decay(option):
    value, names = NAMES_OF_LATER[option]
    model = hard_model(**{option: value})
    assert [name for name in model.parameters() if name not in hard_model().parameters()] == names
    specs = {layer.parameter_name(name): spec for layer in model.layers() for name, spec in layer.specs.items()}
    assert not any(specs[name].decay for name in names)


def test_what_is_added_starts_as_the_papers_say():
    p = fresh(layer_scale=0.25, registers=50, qk_norm=True).parameters()
    assert (p["blocks.1.ls2.gamma"] == 0.25).all()
    assert (p["blocks.1.attn.k_norm.gamma"] == 1).all()
    assert p["reg_token"].std() == pytest.approx(0.02, rel=0.05)


# -- what it accepts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(5, 8, 6, 3), (5, 6, 8), (6, 8, 3), (5, 6, 8, 1), (5, 3, 6, 8), (0, 6, 8, 3)], ids=str
)
def test_images_of_another_shape_are_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"images have shape \(.*expected \(batch, 6, 8, 3\)"):
        hard_model().forward(np.zeros(shape))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_integer_images_are_refused_with_what_to_do(dtype):
    with pytest.raises(TypeError, match=f"images are {dtype}; expected floats: scale them first"):
        hard_model().forward(np.zeros((5, 6, 8, 3), dtype))


@pytest.mark.parametrize("given", ["float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_are_cast_to_the_dtype_of_the_parameters(given, dtype):
    model = hard_model(dtype)
    images = images_for(model, dtype=given)
    logits = model.forward(images)
    assert same_bits(logits, model.forward(images.astype(dtype)))
    assert logits.dtype == dtype


def test_strided_images_are_accepted():
    model = hard_model()
    images = images_for(model, batch=2 * BATCH)[::-2]
    assert same_bits(model.forward(images), model.forward(images.copy()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_images_end_in_an_error_and_not_in_a_class(dtype):
    model = hard_model(dtype)
    images = images_for(model)
    images[3, 2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="logits of sample 3 are NaN"):
        softmax_cross_entropy(model.forward(images), labels_for(model))


# -- sizes ------------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "S/32": 22_878_952,
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "L/16": 304_326_632,
    "L/32": 306_535_400,
    "H/14": 632_045_800,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_is_the_published_one(name):
    assert VisionTransformer(ViTConfig.named(name), rng=None).num_parameters == PUBLISHED[name]


# of the hybrids, as timm and google-research/vision_transformer publish them: parameters, patches
HYBRIDS = {
    "R+Ti/16": (6_337_704, (7, 7)),
    "R26+S/32": (36_431_912, (7, 7)),
    "R26+B/32": (101_383_976, (7, 7)),
    "R50+B/16": (98_659_112, (14, 14)),
    "R50+L/32": (328_994_856, (7, 7)),
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_parameters_and_patches_of_a_named_hybrid_are_the_published_ones(name):
    config = ViTConfig.named(name)
    assert (VisionTransformer(config, rng=None).num_parameters, config.grid) == HYBRIDS[name]


@pytest.mark.parametrize(
    ("blocks", "image_size", "map_size"),
    [
        (None, 20, (20, 20)),
        ((), (20, 21), (5, 6)),
        ((2,), 17, (5, 5)),
        ((3, 4, 9), (224, 230), (14, 15)),
        ((1,) * 4, 33, (2, 2)),
    ],
)
def test_patches_are_cut_from_a_map_that_is_smaller_by_the_stems_stride(blocks, image_size, map_size):
    config = ViTConfig(image_size=image_size, patch_size=1, stem_blocks=blocks, stem_width=0.5, channels=2)
    assert (config.map_size, config.grid) == (map_size, map_size)
    model = VisionTransformer(config)
    if model.stem is not None:
        assert model.stem.forward(images_for(model, 1), Context()).shape[1:3] == map_size


def test_width_of_a_stem_is_in_units_of_64_channels():
    config = ViTConfig(image_size=32, patch_size=2, stem_blocks=(1, 1), stem_width=1.5)
    assert VisionTransformer(config, rng=None).parameters()["stem.stages.1.0.conv3.weight"].shape == (1, 1, 192, 768)


def test_every_layer_of_a_hybrid_is_right_by_itself():
    model = hard_model(**HYBRID)
    vitnp.check_layers(model, images_for(model, 3), labels_for(model, 3), tolerance=1e-12).raise_if_failed()


def test_gradcheck_passes_on_a_hybrid():
    model = hard_model(**{**HYBRID, "stem_blocks": (1, 1), "patch_size": 1})
    report = vitnp.gradcheck(model, images_for(model, 3), labels_for(model, 3), mode="directions", tolerance=1e-12)
    report.raise_if_failed()


def test_a_hybrid_without_input_gradient_has_all_others_bit_for_bit():
    model, found = hard_model(**HYBRID), []
    for wanted in (True, False):
        ctx = Context(train=True, rng=1)
        ctx.input_grad = wanted
        assert (one_pass(model, ctx, images_for(model), labels_for(model))[2] is None) is not wanted
        found.append(ctx.flat_grad(model.layout, model.flat))
    assert same_bits(*found)


def test_named_configuration_takes_changes():
    config = ViTConfig.named("Ti/16", image_size=(32, 48), num_classes=10, dropout=0.1)
    assert (config.dim, config.depth, config.num_heads, config.mlp_dim) == (192, 12, 3, 768)
    assert (config.image_size, config.patch_size, config.channels) == ((32, 48), (16, 16), 3)
    assert (config.num_classes, config.dropout) == (10, 0.1)


@pytest.mark.parametrize("name", ["X/16", "Ti", "Ti/15", "B-16", "", "ti/16"])
def test_unknown_name_is_refused_with_the_choices(name):
    with pytest.raises(ConfigError, match="sizes are Ti, S, B, L, H, patches 14, 16, 32"):
        ViTConfig.named(name)


@pytest.mark.parametrize(("pool", "tokens"), [("token", 9), ("mean", 8)])
def test_tokens_are_the_patches_and_the_class_token(pool, tokens):
    config = ViTConfig(**{**HARD, "pool": pool})
    assert (config.num_patches, config.num_tokens) == (8, tokens)


def test_names_of_the_parameters_are_those_that_people_know():
    block = [
        "norm1.gamma", "norm1.beta", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
        "norm2.gamma", "norm2.beta", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
    ]  # fmt: skip
    names = ["patch_embed.weight", "patch_embed.bias", "cls_token", "pos_embed"]
    names += [f"blocks.{i}.{name}" for i in range(2) for name in block]
    names += ["norm.gamma", "norm.beta", "pre_logits.weight", "pre_logits.bias", "head.weight", "head.bias"]
    assert list(hard_model(representation_size=11).parameters()) == names


def test_shapes_of_the_parameters_are_d_in_by_d_out():
    shapes = {name: p.shape for name, p in hard_model(representation_size=11).parameters().items()}
    assert shapes["patch_embed.weight"] == (18, 6)
    assert shapes["cls_token"] == (1, 1, 6)
    assert shapes["pos_embed"] == (1, 9, 6)
    assert shapes["blocks.0.attn.qkv.weight"] == (6, 18)
    assert shapes["blocks.0.mlp.fc1.weight"] == (6, 7)
    assert shapes["blocks.0.mlp.fc2.weight"] == (7, 6)
    assert shapes["pre_logits.weight"] == (6, 11)
    assert shapes["head.weight"] == (11, 4)


def test_mean_pooling_has_no_class_token():
    parameters = hard_model(pool="mean").parameters()
    assert "cls_token" not in parameters
    assert parameters["pos_embed"].shape == (1, 8, 6)


# -- the configuration ------------------------------------------------------------------------------------------------


def test_sizes_are_kept_as_pairs():
    config = ViTConfig(image_size=28, patch_size=[4, 7])
    assert (config.image_size, config.patch_size) == ((28, 28), (4, 7))


def test_defaults_are_those_that_are_documented():
    assert ViTConfig().to_dict() == {
        "image_size": (28, 28),
        "patch_size": (7, 7),
        "channels": 1,
        "num_classes": 10,
        "dim": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_dim": 128,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "pool": "token",
        "gelu": "tanh",
        "layer_norm_eps": 1e-6,
        "representation_size": None,
        "pos_init": "normal",
        "positions": "learned",
        "pos_at": "stem",
        "stochastic_depth": 0.0,
        "layer_scale": None,
        "registers": 0,
        "qk_norm": False,
        "stem_blocks": None,
        "stem_width": 1.0,
    }


def test_configuration_survives_json():
    config = ViTConfig(**{**HARD, "representation_size": 11})
    assert ViTConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, "image height 30 is not divisible by patch height 7: use an image of 28 or 35"),
        ({"image_size": (28, 30)}, "image width 30 is not divisible by patch width 7: use an image of 28 or 35"),
        (
            {"image_size": 230, "patch_size": 2, "stem_blocks": (3, 4, 9)},
            "image height 230, 15 places of the stem's map, is not divisible by patch height 2: use an image of 2",
        ),
        ({"stem_blocks": 3}, r"stem_blocks is 3; expected the units of each stage, as \(3, 4, 9\)"),
        ({"stem_blocks": (3, 0)}, "a stage of stem_blocks is 0; expected an integer of at least 1"),
        ({"stem_width": 0.75}, "stem_width is 0.75; it must be a multiple of 0.5"),
        ({"stem_width": 0.0}, "stem_width is 0.0; it must be a multiple of 0.5"),
        ({"stem_width": math.inf}, "stem_width is inf; it must be a multiple of 0.5"),
        ({"stem_width": math.nan}, "stem_width is nan; it must be a multiple of 0.5"),
        ({"stem_width": "wide"}, "stem_width is 'wide'; expected a number"),
        (
            {"image_size": 5},
            r"image height 5 is not divisible by patch height 7: use an image of 7, or another patch_size$",
        ),
        ({"image_size": (28, 28, 1)}, "image_size is .28, 28, 1.; expected an int or a .height, width. pair"),
        ({"patch_size": (7,)}, "patch_size is .7,.; expected an int or a .height, width. pair"),
        ({"patch_size": 0}, "patch_size is 0; expected an integer of at least 1"),
        ({"image_size": (28, -28)}, "image_size is -28; expected"),
        ({"image_size": (28.0, 28)}, "image_size is 28.0; expected"),
        ({"channels": 0}, "channels is 0; expected an integer of at least 1"),
        ({"num_classes": -1}, "num_classes is -1; expected"),
        ({"dim": 64.0}, "dim is 64.0; expected"),
        ({"depth": 0}, "depth is 0; expected"),
        ({"mlp_dim": True}, "mlp_dim is True; expected"),
        ({"num_heads": 10**9 + 1, "dim": 10**15}, r": use one of \[1, 2, 4, 5, 8, .*, 640, 800, 1000, 1024\]$"),
        ({"num_heads": 7, "dim": 3}, r"use one of \[1, 3\]"),
        ({"dropout": 10**400}, "dropout is an integer that no float can hold; expected a number"),
        ({"num_heads": 5}, r"dim 64 is not divisible by num_heads 5: use one of \[1, 2, 4, 8, 16\]"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1; it must be"),
        ({"dropout": math.nan}, "dropout is nan; it must be"),
        ({"pool": "max"}, "pool is 'max'; choose one of 'token', 'mean', 'mean-norm'"),
        ({"gelu": "relu"}, "gelu is 'relu'; choose one of 'tanh', 'erf'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; it must be above 0"),
        ({"representation_size": 0}, "representation_size is 0; expected"),
        ({"pos_init": "zero"}, "pos_init is 'zero'; choose one of 'normal', 'sincos'"),
        (
            {"pos_init": "sincos", "dim": 66, "num_heads": 3},
            "dim 66 is not divisible by 4, as pos_init 'sincos' wants it: use 64 or 68",
        ),
        ({"pos_init": "sincos", "dim": 3, "num_heads": 3}, "use 4"),
        (
            {"positions": "2d"},
            "is '2d'; choose one of 'learned', 'learned-2d', 'sincos', 'relative', 'relative-1d', 'none'",
        ),
        ({"positions": "relative-1d", "patch_size": 28}, r"'relative-1d', but patch_size \(28, 28\) makes 1 patch"),
        ({"positions": "sincos", "dim": 66, "num_heads": 3}, "by 4, as positions 'sincos' wants it: use 64 or 68"),
        (
            {"positions": "learned-2d", "dim": 65, "num_heads": 5},
            "by 2, as positions 'learned-2d' wants it: use 64 or 66",
        ),
        ({"pos_at": "end"}, "pos_at is 'end' beside positions 'learned'; choose one of 'stem', 'layers', 'shared'"),
        (
            {"positions": "sincos", "pos_at": "layers"},
            "'layers' beside positions 'sincos'; choose one of 'stem', 'shared'",
        ),
        ({"positions": "relative", "pos_at": "shared"}, "'shared' beside positions 'relative'; choose one of 'stem'$"),
        ({"positions": "none", "pos_at": "layers"}, "'layers' beside positions 'none'; choose one of 'stem'$"),
        ({"stochastic_depth": 1}, "stochastic_depth is 1; it must be at least 0 and below 1"),
        ({"stochastic_depth": 0.1, "depth": 1}, "stochastic_depth is 0.1 at depth 1, .* never dropped: use 0"),
        ({"layer_scale": 0}, "layer_scale is 0; it must be above 0 and at most 3.4e"),
        ({"layer_scale": math.nan}, "layer_scale is nan; it must be above 0 and at most 3.4e"),
        ({"layer_scale": True}, "layer_scale is True; expected a number"),
        ({"registers": -1}, "registers is -1; expected an integer of at least 0"),
        ({"qk_norm": 1}, "qk_norm is 1; choose True or False"),
        ({"positions": "none", "pos_init": "sincos"}, "'sincos' beside positions 'none'; choose one of 'normal'$"),
    ],
    ids=str,
)
def test_impossible_configuration_is_refused_by_field_with_what_is_valid(changes, message):
    with pytest.raises(ConfigError, match=message):
        ViTConfig(**changes)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        ViTConfig().dim = 32


# -- initialisation ---------------------------------------------------------------------------------------------------


def fresh(**changes):
    return VisionTransformer(ViTConfig(dim=128, mlp_dim=256, depth=2, **changes), rng=1, dtype="float64")


@pytest.mark.parametrize("name", ["cls_token", "head.weight", "head.bias", "patch_embed.bias", "norm.beta"])
def test_starts_at_zero(name):
    assert not fresh().parameters()[name].any()


@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.bias", "blocks.1.attn.proj.bias", "blocks.1.norm1.beta"])
def test_starts_at_zero_in_every_block(name):
    assert not fresh().parameters()[name].any()


@pytest.mark.parametrize("name", ["blocks.0.norm1.gamma", "blocks.1.norm2.gamma", "norm.gamma"])
def test_starts_at_one(name):
    assert (fresh().parameters()[name] == 1).all()


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("blocks.0.attn.qkv.weight", 2 / (128 + 128)),
        ("blocks.1.attn.proj.weight", 2 / (128 + 128)),
        ("blocks.0.mlp.fc1.weight", 2 / (128 + 256)),
        ("blocks.1.mlp.fc2.weight", 2 / (128 + 256)),
    ],
)
def test_projections_start_xavier_uniform(name, variance):
    weight, limit = fresh().parameters()[name], math.sqrt(3 * variance)
    assert weight.var() == pytest.approx(variance, rel=0.03)
    assert 0.999 * limit < abs(weight).max() <= limit
    assert weight.mean() == pytest.approx(0, abs=5 * math.sqrt(variance / weight.size))


@pytest.mark.parametrize(("name", "d_in"), [("patch_embed.weight", 49), ("pre_logits.weight", 128)])
def test_patch_embedding_and_hidden_layer_of_the_head_start_lecun_normal(name, d_in):
    weight = fresh(representation_size=200).parameters()[name]
    assert weight.var() == pytest.approx(1 / d_in, rel=0.05)
    assert 0.98 < abs(weight).max() / (2 / 0.8796256610342398 / math.sqrt(d_in)) <= 1


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_sincos_positions_are_waves_of_the_column_then_of_the_row(pool):
    config = ViTConfig(image_size=(6, 8), patch_size=(3, 2), dim=8, num_heads=2, depth=1, pool=pool, pos_init="sincos")
    positions = VisionTransformer(config, dtype="float64").parameters()["pos_embed"][0]
    first = int(pool == "token")
    assert not positions[:first].any()
    for row, column in itertools.product(range(2), range(4)):
        wave = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in (1, 0.01)]
        assert positions[first + 4 * row + column] == pytest.approx(wave, rel=1e-14)


def test_blocks_start_apart():
    p = fresh().parameters()
    assert not np.array_equal(p["blocks.0.attn.qkv.weight"], p["blocks.1.attn.qkv.weight"])


def test_the_same_seed_gives_the_same_model():
    assert same_bits(fresh().flat, fresh().flat)


def test_another_seed_gives_another_model():
    config = ViTConfig(depth=1)
    assert not same_bits(VisionTransformer(config, rng=1).flat, VisionTransformer(config, rng=2).flat)


def test_seed_zero_and_float32_are_meant_unless_said():
    config = ViTConfig(depth=1)
    assert same_bits(VisionTransformer(config).flat, VisionTransformer(config, rng=0, dtype="float32").flat)


def test_float32_starts_at_the_rounded_values_of_float64():
    config = ViTConfig(depth=1)
    single, double = (VisionTransformer(config, rng=1, dtype=dtype).flat for dtype in ("float32", "float64"))
    assert same_bits(single, double.astype("float32"))


def test_a_fresh_model_gives_every_class_the_same_probability():
    model = fresh()
    assert not model.forward(images_for(model)).any()


def test_a_model_without_a_seed_is_left_unset_in_its_flat_vector():
    model = VisionTransformer(ViTConfig(depth=1), rng=None)
    assert model.flat.size == model.layout.size
    assert all(np.shares_memory(parameter, model.flat) for parameter in model.parameters().values())
