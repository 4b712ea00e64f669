"""Twelve mistakes that Vision Transformers written by hand were found to have; each has a test of its name."""

import math

import numpy as np
import pytest
from helpers import (
    BATCH,
    DRAW_ALWAYS,
    HARD,
    LAYERS,
    both_gradients,
    error,
    handwritten_gradients,
    hard_model,
    images_for,
    labels_for,
    make_layer,
    normal,
    one_pass,
    randomize,
    same_bits,
    worst_error,
)

from vitnp import Adam, Context
from vitnp.layers import Block, Dropout, Embeddings, LayerNorm, Linear, Softmax


def test_trap_1_softmax_of_four_axes_with_rows_of_different_maxima_and_its_whole_jacobian():
    x, dp = normal((5, 2, 9, 9), 1, scale=6) + 20 * normal((5, 2, 9, 1), 2), normal((5, 2, 9, 9), 3)
    layer, ctx = Softmax(), Context(record=True)
    p = layer.forward(x, ctx)
    shifted = np.exp(x - x.max(-1, keepdims=True))
    assert error(p, shifted / shifted.sum(-1, keepdims=True)) < 1e-14
    jacobian = p[..., :, None] * (np.eye(9) - p[..., None, :])
    assert error(layer.backward(dp, ctx), (jacobian @ dp[..., None])[..., 0]) < 1e-13


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("stem", "vit_hybrid")])  # of large inputs
def test_trap_2_the_gradient_of_the_input_and_not_only_of_the_weights(name):
    found, truth = both_gradients(*make_layer(name))
    assert error(found["input"], truth["input"]) < 1e-12


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_trap_3_a_batch_of_unequal_samples_is_the_sum_of_its_samples(pool):
    model = hard_model(pool=pool, dropout=0.0, attention_dropout=0.0)
    images, dlogits = images_for(model), normal((BATCH, 4), 3)
    found = handwritten_gradients(model, images, dlogits)
    alone = [handwritten_gradients(model, images[i : i + 1], dlogits[i : i + 1]) for i in range(BATCH)]
    truth = {name: sum(gradients[name] for gradients in alone) for name in found if name != "input"}
    truth["input"] = np.concatenate([gradients["input"] for gradients in alone])
    assert worst_error(found, truth) < 1e-12


@pytest.mark.parametrize("name", ["cls_token", "pos_embed"])
def test_trap_4_class_token_and_positions_have_gradients_and_they_are_the_finite_differences(name):
    model = hard_model()
    images, labels = images_for(model), labels_for(model)

    def loss():
        return one_pass(model, Context(train=True, rng=0), images, labels)[1]

    ctx, parameter, h = Context(train=True, rng=0), model.parameters()[name], 1e-5
    one_pass(model, ctx, images, labels)
    numeric = np.empty(parameter.shape)
    for index in np.ndindex(parameter.shape):
        value = parameter[index]
        parameter[index] = value + h
        above = loss()
        parameter[index] = value - h
        numeric[index] = (above - loss()) / (2 * h)
        parameter[index] = value
    gradient = model.gradients(ctx)[name]
    assert (gradient != 0).all()
    assert error(gradient, numeric) < 1e-6


@pytest.mark.parametrize("silent", ["attn.proj", "mlp.fc2"])
def test_trap_5_each_residual_path_alone(silent):
    layer, x, dy = randomize(Block(6, 2, 7, dtype="float64")), normal((5, 9, 6), 1), normal((5, 9, 6), 2)
    for name in (f"{silent}.weight", f"{silent}.bias"):
        layer.parameters()[name].fill(0)
    branch = (layer.norm2, layer.mlp) if silent == "attn.proj" else (layer.norm1, layer.attn)
    ctx = Context(record=True)
    truth = x + branch[1].forward(branch[0].forward(x, ctx), ctx)
    dtruth = dy + branch[0].backward(branch[1].backward(dy, ctx), ctx)
    assert error(layer.forward(x, Context()), truth) < 1e-15
    assert error(handwritten_gradients(layer, x, dy)["input"], dtruth) < 1e-15


def test_trap_6_layer_norm_whose_gamma_is_not_one_and_whose_beta_is_not_zero():
    layer = randomize(LayerNorm(6, dtype="float64"))
    assert abs(layer.gamma - 1).min() > 1e-2
    assert abs(layer.beta).min() > 1e-2
    assert worst_error(*both_gradients(layer, normal((5, 9, 6), 1))) < 1e-12


@pytest.mark.parametrize("axes", [(5,), (5, 9)], ids=["2-D", "3-D"])
def test_trap_7_the_bias_gradient_sums_over_all_axes_but_the_last(axes):
    layer, dy = randomize(Linear(6, 7, dtype="float64")), normal((*axes, 7), 2)
    found = handwritten_gradients(layer, normal((*axes, 6), 1), dy)["bias"]
    assert error(found, dy.reshape(-1, 7).sum(0)) < 1e-15


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_trap_8_dropout_with_its_mask_held_and_at_rate_zero(rate):
    assert worst_error(*both_gradients(Dropout(rate), normal((5, 9, 6), 1))) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_trap_9_backward_twice_gives_the_same_answer(name):
    layer, x = make_layer(name)
    ctx = Context(train=True, rng=3)
    dy = normal(layer.forward(x, ctx).shape, 9)
    first = layer.backward(dy, ctx).copy()
    assert same_bits(layer.backward(dy, ctx).copy(), first)


def test_trap_10_gradients_are_those_of_the_mean_loss():
    model = hard_model(dropout=0.0, attention_dropout=0.0)
    images, labels = images_for(model), labels_for(model)
    once, twice = Context(record=True), Context(record=True)
    one_pass(model, once, images, labels)
    one_pass(model, twice, np.concatenate([images, images]), np.concatenate([labels, labels]))
    assert worst_error(model.gradients(twice), model.gradients(once)) < 1e-12


def test_trap_11_no_two_sizes_of_one_array_are_equal_so_that_a_lost_transpose_changes_a_shape():
    model = hard_model(representation_size=11)
    parameters = {name: p.squeeze() for name, p in model.parameters().items()}
    (H, W), (P_h, P_w), D = HARD["image_size"], HARD["patch_size"], HARD["dim"]
    heads, tokens = HARD["num_heads"], model.config.num_tokens
    assert H != W
    assert P_h != P_w
    for shape in (
        (BATCH, H, W, HARD["channels"]),
        (BATCH, tokens, D, HARD["mlp_dim"]),
        (BATCH, heads, tokens, D // heads),
        *(p.shape for name, p in parameters.items() if not name.endswith("proj.weight")),  # D x D by its nature
    ):
        assert len(set(shape)) == len(shape)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_trap_12_adam_is_its_closed_form(steps):
    model, ctx, g = hard_model(), Context(), 10.0 ** np.arange(-9, 3)
    gradients = np.resize(g, model.flat.shape)
    start = model.flat.copy()
    optimizer = Adam(model, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    for _ in range(steps):
        ctx.flat_grad(model.layout, like=model.flat)[...] = gradients
        optimizer.step(ctx)
    # under a constant gradient the corrected means are g and g² at every step
    truth = start - steps * 1e-3 * gradients / (gradients + 1e-8)
    assert abs(model.flat - truth).max() < 1e-15 * steps * 10


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_comes_out_has_the_dtype_of_what_went_in(name, dtype):
    layer, x = make_layer(name, dtype)
    ctx = Context(train=True, rng=3)
    y = layer.forward(x, ctx)
    assert y.dtype == layer.backward(y.copy(), ctx).dtype == dtype


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in DRAW_ALWAYS])
def test_evaluation_is_the_same_whatever_was_trained_or_drawn_between(name):
    layer, x = make_layer(name)
    first = layer.forward(x, Context()).copy()
    layer.forward(x, Context(train=True, rng=8))
    np.random.default_rng(1).random()
    assert same_bits(layer.forward(x, Context(rng=5)).copy(), first)


def test_all_samples_of_the_embedding_share_one_token():
    layer = randomize(Embeddings(8, 6, dtype="float64"))
    y = layer.forward(np.zeros((BATCH, 8, 6)), Context())
    assert all(same_bits(y[b].copy(), y[0].copy()) for b in range(BATCH))
    assert math.isclose(y[0, 0, 0], layer.cls_token[0, 0, 0] + layer.pos_embed[0, 0, 0], rel_tol=1e-15)
