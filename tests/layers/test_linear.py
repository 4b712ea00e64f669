import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, numeric_gradients, randomize, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.initializers import constant
from vitnp.layers import Linear


def linear(d_in=6, d_out=7, seed=0):
    return randomize(Linear(d_in, d_out, dtype="float64"), seed)


@pytest.mark.parametrize("axes", [(1,), (5,), (5, 9), (5, 3, 2)], ids=str)
def test_output_is_the_affine_map_of_every_row(axes):
    layer, x = linear(), normal((*axes, 6), 1)
    y = layer.forward(x, vitnp.Context())
    truth = np.empty((*axes, 7))
    for index in np.ndindex(truth.shape):
        truth[index] = sum(x[index[:-1]] * layer.weight[:, index[-1]]) + layer.bias[index[-1]]
    assert error(y, truth) < 1e-14


@pytest.mark.parametrize("axes", [(1,), (5,), (5, 9), (5, 3, 2)], ids=str)
def test_every_gradient_is_the_derivative(axes):
    assert worst_error(*both_gradients(linear(), normal((*axes, 6), 1))) < 1e-12


def test_gradcheck_passes_on_every_coordinate():
    vitnp.gradcheck(linear(), normal((5, 9, 6), 1), mode="full", tolerance=1e-12).raise_if_failed()


@pytest.mark.parametrize("axes", [(5,), (5, 9)], ids=str)
def test_gradients_are_the_products_of_the_docstring(axes):
    layer, x, dy = linear(), normal((*axes, 6), 1), normal((*axes, 7), 2)
    found = handwritten_gradients(layer, x, dy)
    truth = {
        "weight": sum(np.outer(x[row], dy[row]) for row in np.ndindex(axes)),
        "bias": sum(dy[row] for row in np.ndindex(axes)),
        "input": np.einsum("...j,ij->...i", dy, layer.weight),
    }
    assert worst_error(found, truth) < 1e-14


def test_input_and_cotangent_may_be_strided():
    layer, x, dy = linear(), normal((6, 9, 5), 1).T, normal((7, 9, 5), 2).T
    found = handwritten_gradients(layer, x, dy)
    assert worst_error(found, handwritten_gradients(layer, x.copy(), dy.copy())) < 1e-14


def test_weight_starts_uniform_within_the_xavier_limit():
    weight, limit = Linear(300, 500, dtype="float64").weight, np.sqrt(6 / 800)
    assert 0.999 * limit < weight.max() <= limit
    assert -limit <= weight.min() < -0.999 * limit
    assert weight.mean() == pytest.approx(0, abs=4 * limit / np.sqrt(3 * weight.size))
    assert weight.var() == pytest.approx(2 / 800, rel=0.01)


def test_bias_starts_at_zero():
    assert not Linear(6, 7).bias.any()


def test_other_initializers_are_used_where_given():
    layer = Linear(6, 7, weight_init=constant(2), bias_init=constant(3))
    assert (layer.weight == 2).all()
    assert (layer.bias == 3).all()


def test_weight_decays_and_bias_does_not():
    assert {name: spec.decay for name, spec in Linear(6, 7).specs.items()} == {"weight": True, "bias": False}


@given(
    rows=st.integers(1, 4),
    d_in=st.integers(1, 6),
    d_out=st.integers(1, 6),
    scale=st.sampled_from([1e-6, 1e-3, 1, 1e4]),
    seed=st.integers(0, 99),
)
def test_gradients_are_right_for_any_shape_and_scale(rows, d_in, d_out, scale, seed):
    layer, x, dy = linear(d_in, d_out, seed), normal((rows, d_in), seed, scale), normal((rows, d_out), seed + 1)
    found = handwritten_gradients(layer, x, dy)
    truth = numeric_gradients(layer, x, lambda y: (y * dy).sum())
    gross = {
        "weight": abs(x).T @ abs(dy),
        "bias": abs(dy).sum(0),
        "input": abs(dy) @ abs(layer.weight).T,
    }
    assert all((abs(found[name] - truth[name]) <= 1e-12 * gross[name].max()).all() for name in gross)
