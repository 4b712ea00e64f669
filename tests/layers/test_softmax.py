import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, numeric_gradients, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.layers import Softmax


def forward(x):
    return Softmax().forward(x, vitnp.Context()).copy()


@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (5, 2, 9, 8)], ids=str)
def test_output_is_the_quotient_of_exponentials(shape):
    x = normal(shape, 1, scale=3)
    assert error(forward(x), np.exp(x) / np.exp(x).sum(-1, keepdims=True)) < 1e-14


@pytest.mark.parametrize("scale", [1, 50, 1e4, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_sum_to_one_at_any_scale(scale, dtype):
    p = forward(normal((5, 2, 9, 8), 1, scale).astype(dtype))
    assert (p >= 0).all()
    assert abs(p.sum(-1) - 1).max() < 4 * np.finfo(dtype).eps


def test_a_score_of_minus_infinity_has_probability_zero():
    assert forward(np.array([[0.0, -np.inf, 0.0]])).tolist() == [[0.5, 0, 0.5]]


def test_a_row_of_one_score_has_probability_one():
    assert forward(normal((5, 1), 1)).tolist() == [[1]] * 5


@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (5, 2, 9, 8)], ids=str)
def test_gradient_is_the_derivative(shape):
    assert worst_error(*both_gradients(Softmax(), normal(shape, 1))) < 1e-12


def test_gradient_of_nearly_saturated_rows():
    assert worst_error(*both_gradients(Softmax(), normal((5, 2, 9, 8), 1, scale=8))) < 1e-12


def test_gradient_of_saturated_rows_vanishes():
    x = np.array([[0.0, 800.0, -800.0], [0.0, 0.0, 800.0]])
    assert not handwritten_gradients(Softmax(), x, normal((2, 3), 2))["input"].any()


def test_gradcheck_passes_on_every_coordinate():
    vitnp.gradcheck(Softmax(), normal((5, 2, 9, 8), 1), mode="full", tolerance=1e-12).raise_if_failed()


def test_dx_is_the_jacobian_times_dp_off_its_diagonal_too():
    x, dp = normal((5, 8), 1), normal((5, 8), 2)
    p = forward(x)
    jacobians = np.einsum("bi,ij->bij", p, np.eye(8)) - np.einsum("bi,bj->bij", p, p)
    truth = np.einsum("bij,bj->bi", jacobians, dp)
    assert error(handwritten_gradients(Softmax(), x, dp)["input"], truth) < 1e-14


def test_dx_is_orthogonal_to_a_shift_of_the_row():
    dx = handwritten_gradients(Softmax(), normal((5, 8), 1), normal((5, 8), 2))["input"]
    assert abs(dx.sum(-1)).max() < 1e-15


@given(rows=st.integers(1, 3), columns=st.integers(1, 6), scale=st.sampled_from([1e-6, 1e-3, 1, 30, 1e4]))
def test_gradient_is_right_for_any_shape_and_scale(rows, columns, scale):
    x, dp = normal((rows, columns), 1, scale), normal((rows, columns), 2)
    found = handwritten_gradients(Softmax(), x, dp)["input"]
    truth = numeric_gradients(Softmax(), x, lambda p: (p * dp).sum())["input"]
    assert abs(found - truth).max() <= 1e-12 * abs(dp).max()


@given(shift=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_a_shift_of_a_row_cancels(shift, seed):
    x = normal((4, 6), seed)
    assert error(forward(x + shift), forward(x)) < 1e-11
