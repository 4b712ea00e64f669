import numpy as np
from helpers import both_gradients, handwritten_gradients, normal, same_bits, worst_error

import vitnp
from vitnp.layers import ReLU


def test_output_is_the_larger_of_the_input_and_zero():
    x = normal((5, 4, 3, 6), 1)
    assert np.array_equal(ReLU().forward(x, vitnp.Context()), np.maximum(x, 0))


def test_every_gradient_is_the_derivative():
    assert worst_error(*both_gradients(ReLU(), normal((5, 4, 3, 6), 1))) < 1e-12


def test_the_slope_is_zero_where_the_input_is():
    dx = handwritten_gradients(ReLU(), np.array([[0.0, -0.0, 1e-300, -1e-300]]), np.ones((1, 4)))["input"]
    assert dx.tolist() == [[0, 0, 1, 0]]


def test_the_real_part_of_a_complex_number_decides():
    x = np.array([[1 - 2j, -1 + 2j, 1e-30j]])
    assert ReLU().forward(x, vitnp.Context()).tolist() == [[1 - 2j, 0, 0]]


def test_y_is_saved():
    layer, ctx = ReLU(), vitnp.Context(record=True)
    y = layer.forward(normal((2, 3), 1), ctx)
    assert same_bits(ctx.saved(layer).y, y)


def test_a_nan_stays():
    assert np.isnan(ReLU().forward(np.array([[np.nan, 1]]), vitnp.Context())[0, 0])
