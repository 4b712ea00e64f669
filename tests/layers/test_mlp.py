import math

import numpy as np
import pytest
from helpers import both_gradients, error, normal, randomize, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.layers import MLP


def mlp(gelu="tanh", dim=6, mlp_dim=7, seed=0, **options):
    return randomize(MLP(dim, mlp_dim, gelu=gelu, dtype="float64", **options), seed)


def gelu(form, x):
    if form == "erf":
        return x * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(x)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_output_is_linear_gelu_linear(form):
    layer, x = mlp(form), normal((5, 9, 6), 1)
    hidden = gelu(form, x @ layer.fc1.weight + layer.fc1.bias)
    assert error(layer.forward(x, vitnp.Context()), hidden @ layer.fc2.weight + layer.fc2.bias) < 1e-14


@pytest.mark.parametrize("form", ["tanh", "erf"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_every_gradient_is_the_derivative(form, dropout):
    assert worst_error(*both_gradients(mlp(form, dropout=dropout), normal((5, 9, 6), 1))) < 1e-12


@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_gradcheck_passes_on_every_coordinate(form):
    report = vitnp.gradcheck(mlp(form, dropout=0.4), normal((5, 9, 6), 1), mode="full", tolerance=1e-12)
    report.raise_if_failed()


def test_dropout_follows_the_gelu_and_the_second_layer():
    layer, x, ctx = mlp(dropout=0.4), normal((5, 9, 6), 1), vitnp.Context(train=True, rng=3)
    y = layer.forward(x, ctx)
    hidden = gelu("tanh", x @ layer.fc1.weight + layer.fc1.bias) * ctx.saved(layer.dropout1).mask
    truth = (hidden @ layer.fc2.weight + layer.fc2.bias) * ctx.saved(layer.dropout2).mask
    assert error(y, truth) < 1e-14


def test_the_two_dropouts_have_masks_of_their_own():
    layer, ctx = mlp(mlp_dim=6, dropout=0.4), vitnp.Context(train=True, rng=3)
    layer.forward(normal((5, 9, 6), 1), ctx)
    assert not np.array_equal(ctx.saved(layer.dropout1).mask, ctx.saved(layer.dropout2).mask)


def test_biases_start_normal_with_deviation_1e_6():
    layer = MLP(500, 2000, dtype="float64")
    assert layer.fc1.bias.std() == pytest.approx(1e-6, rel=0.1)
    assert layer.fc2.bias.std() == pytest.approx(1e-6, rel=0.2)


def test_weights_start_within_the_xavier_limit():
    layer, limit = MLP(200, 300, dtype="float64"), math.sqrt(6 / 500)
    assert 0.999 * limit < abs(layer.fc1.weight).max() <= limit
    assert 0.999 * limit < abs(layer.fc2.weight).max() <= limit


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    mlp_dim=st.integers(1, 5),
    form=st.sampled_from(["tanh", "erf"]),
    scale=st.sampled_from([1e-6, 1e-3, 1, 30]),
    seed=st.integers(0, 99),
)
def test_gradients_are_right_for_any_shape_and_scale(shape, mlp_dim, form, scale, seed):
    layer = mlp(form, shape[-1], mlp_dim, seed)
    assert worst_error(*both_gradients(layer, normal(shape, seed, scale)), floor=1) < 1e-12
