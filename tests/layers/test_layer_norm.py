import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, numeric_gradients, randomize, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.layers import LayerNorm


def layer_norm(dim=6, eps=1e-6, seed=0):
    return randomize(LayerNorm(dim, eps=eps, dtype="float64"), seed)


def forward(layer, x):
    return layer.forward(x, vitnp.Context()).copy()


def constant_rows(values=(0.0, 1.0, -3.7, 255.0), dim=6):
    return np.repeat(np.array(values), dim).reshape(-1, dim)


@pytest.mark.parametrize("shape", [(1, 6), (5, 6), (5, 9, 6)], ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_output_is_the_standardised_row_times_gamma_plus_beta(shape, eps):
    layer, x = layer_norm(eps=eps), normal(shape, 1, scale=3) + 2
    truth = layer.gamma * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) + layer.beta
    assert error(forward(layer, x), truth) < 1e-13


def test_eps_is_inside_the_root_where_it_dominates():
    layer, x = LayerNorm(6, eps=1e-6, dtype="float64"), normal((5, 6), 1, scale=1e-7)
    assert error(forward(layer, x), (x - x.mean(-1, keepdims=True)) / 1e-3) < 1e-7


def test_eps_is_that_of_the_original_unless_said():
    assert LayerNorm(6).eps == 1e-6


@pytest.mark.parametrize("shape", [(1, 6), (5, 6), (5, 9, 6)], ids=str)
def test_every_gradient_is_the_derivative(shape):
    assert worst_error(*both_gradients(layer_norm(), normal(shape, 1))) < 1e-12


def test_gradcheck_passes_on_every_coordinate():
    vitnp.gradcheck(layer_norm(), normal((5, 9, 6), 1), mode="full", tolerance=1e-12).raise_if_failed()


def test_gradients_where_eps_dominates():
    assert worst_error(*both_gradients(layer_norm(eps=1e-2), normal((5, 9, 6), 1, scale=0.03))) < 1e-12


def test_gradients_on_rows_of_a_large_mean():
    assert worst_error(*both_gradients(layer_norm(), normal((5, 6), 1) + 50)) < 1e-11


def test_dx_on_constant_rows():
    found, truth = both_gradients(layer_norm(), constant_rows())
    assert error(found["input"], truth["input"]) < 1e-12


def test_gradients_on_a_mixture_of_constant_and_other_rows():
    x = np.concatenate([constant_rows(), normal((3, 6), 1)])
    assert worst_error(*both_gradients(layer_norm(), x)) < 1e-12


def test_output_of_constant_rows_is_beta():
    layer = layer_norm()
    # to the rounding of the mean, 1e-16 · 255, over √eps
    assert abs(forward(layer, constant_rows()) - layer.beta).max() < 1e-10


def test_a_single_column_gives_beta_and_no_gradient():
    layer, x = layer_norm(dim=1), normal((5, 1), 1)
    assert error(forward(layer, x), np.broadcast_to(layer.beta, x.shape)) < 1e-15
    assert not handwritten_gradients(layer, x, normal((5, 1), 2))["input"].any()


def test_variance_of_float32_rows_with_a_large_mean_keeps_its_digits():
    x = (1e4 + 0.29 * normal((40, 64), 1)).astype("float32")
    y = LayerNorm(64).forward(x, vitnp.Context())
    truth = forward(LayerNorm(64, dtype="float64"), x.astype("float64"))
    # E[x²] − E[x]² would have none left: the variance would come out as 0
    assert error(y, truth) < 3e-3


def test_dx_is_orthogonal_to_a_shift_of_the_row():
    dx = handwritten_gradients(layer_norm(), normal((5, 9, 6), 1), normal((5, 9, 6), 2))["input"]
    assert abs(dx.sum(-1)).max() < 1e-13 * abs(dx).max()


def test_rows_do_not_touch_one_another():
    layer, x = layer_norm(), normal((5, 6), 1)
    alone = np.concatenate([forward(layer, x[i : i + 1]) for i in range(5)])
    assert error(forward(layer, x), alone) < 1e-14


def test_gamma_starts_at_one_and_beta_at_zero():
    layer = LayerNorm(6)
    assert (layer.gamma == 1).all()
    assert (layer.beta == 0).all()


def test_neither_gamma_nor_beta_decays():
    assert {name: spec.decay for name, spec in LayerNorm(6).specs.items()} == {"gamma": False, "beta": False}


def test_x_hat_and_rstd_are_saved():
    layer, x, ctx = layer_norm(), normal((5, 6), 1), vitnp.Context(record=True)
    layer.forward(x, ctx)
    saved, rstd = ctx.saved(layer), 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    assert error(saved.rstd, rstd) < 1e-14
    assert error(saved.x_hat, (x - x.mean(-1, keepdims=True)) * rstd) < 1e-14


scales = st.sampled_from([1e-6, 1e-3, 1, 1e4])


@given(
    rows=st.integers(1, 3),
    dim=st.integers(1, 6),
    scale=scales,
    spread=scales,
    eps=st.sampled_from([1e-6, 1e-2]),
    seed=st.integers(0, 99),
)
def test_gradients_are_right_for_any_shape_and_scale(rows, dim, scale, spread, eps, seed):
    layer, dy = layer_norm(dim, eps, seed), normal((rows, dim), seed + 1)
    x = normal((rows, dim), seed, scale) * spread**0.5
    found = handwritten_gradients(layer, x, dy)
    truth = numeric_gradients(layer, x, lambda y: (y * dy).sum())
    # The terms of dx may cancel: an error is measured by their size, not by what is left of them.
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    gross = {"gamma": abs(dy).sum() * 3, "beta": abs(dy).sum(), "input": abs(dy * layer.gamma).max() * rstd.max()}
    assert all(abs(found[name] - truth[name]).max() <= 1e-12 * size for name, size in gross.items())


@given(shift=st.floats(-100, 100), scale=st.floats(0.5, 50), seed=st.integers(0, 99))
def test_shift_and_scale_of_a_row_cancel(shift, scale, seed):
    layer, x = layer_norm(eps=1e-30, seed=seed), normal((4, 6), seed)
    assert error(forward(layer, scale * x + shift), forward(layer, x)) < 1e-11
