import numpy as np
import pytest
from helpers import both_gradients, handwritten_gradients, normal, worst_error

import vitnp
from vitnp.layers import MaxPool


def one_by_one(x, dy):
    """y and dx of windows of 3 in strides of 2, one window at a time; borders as TensorFlow's padding SAME has them."""
    B, H, W, C = x.shape
    h, w = -(-H // 2), -(-W // 2)
    top, left = (max((m - 1) * 2 + 3 - n, 0) // 2 for m, n in ((h, H), (w, W)))
    y, dx = np.empty((B, h, w, C)), np.zeros_like(x)
    for b, i, j, c in np.ndindex(y.shape):
        rows, columns = range(2 * i - top, 2 * i - top + 3), range(2 * j - left, 2 * j - left + 3)
        places = [(r, s) for r in rows for s in columns if 0 <= r < H and 0 <= s < W]
        values = [x[b, r, s, c] for r, s in places]
        y[b, i, j, c] = max(values)
        r, s = places[values.index(max(values))]  # the first of equal ones
        dx[b, r, s, c] += dy[b, i, j, c]
    return y, dx


@pytest.mark.parametrize("shape", [(3, 6, 5, 2), (3, 7, 8, 2), (1, 1, 2, 3), (2, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_the_first_of_the_largest_numbers_is_taken_and_gets_the_gradient(shape, ties):
    x = np.random.default_rng(1).integers(-3, 0, shape).astype(float) if ties else normal(shape, 1) - 3
    layer, ctx = MaxPool(), vitnp.Context(record=True)
    y = layer.forward(x, ctx)
    dy = normal(y.shape, 2)
    true_y, true_dx = one_by_one(x, dy)
    assert np.array_equal(y, true_y)
    np.testing.assert_allclose(layer.backward(dy, ctx), true_dx, rtol=1e-14, atol=1e-15)


def test_every_gradient_is_the_derivative():
    assert worst_error(*both_gradients(MaxPool(), normal((3, 6, 5, 2), 1))) < 1e-12


def test_the_real_part_of_complex_numbers_decides():
    x = np.array([1 + 0j, 0.5 + 9j, 0, 0]).reshape(1, 2, 2, 1)
    assert MaxPool().forward(x, vitnp.Context()).item() == 1


@pytest.mark.parametrize("place", range(4))
def test_a_nan_is_the_largest_wherever_it_is(place):
    x = normal((1, 2, 2, 1), 1)
    x.reshape(-1)[place] = np.nan
    assert np.isnan(MaxPool().forward(x, vitnp.Context())).all()


def test_what_a_window_took_is_one_byte():
    layer, ctx = MaxPool(), vitnp.Context(record=True)
    layer.forward(normal((2, 6, 6, 3), 1), ctx)
    assert ctx.saved(layer).which.dtype == "uint8"
    assert handwritten_gradients(layer, normal((2, 6, 6, 3), 1), np.ones((2, 3, 3, 3)))["input"].sum() == 54
