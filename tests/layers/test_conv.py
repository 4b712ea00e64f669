import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, randomize, same_bits, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.layers import StdConv, conv
from vitnp.layers.windows import border

SIZES = [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)]  # kernel, stride
SHAPE = (5, 6, 5, 3)


def std_conv(kernel=3, stride=2, c_in=3, seed=0):
    return randomize(StdConv(c_in, 4, kernel, stride, dtype="float64"), seed)


def one_by_one(layer, x):
    """The convolution, one output and one place at a time; borders as TensorFlow's padding SAME has them."""
    w, k, stride = layer.weight, layer.kernel, layer.stride
    w = (w - w.mean((0, 1, 2))) / (w.std((0, 1, 2)) + 1e-5)
    B, H, W, _ = x.shape
    h, v = -(-H // stride), -(-W // stride)
    top, left = (max((m - 1) * stride + k - n, 0) // 2 for m, n in ((h, H), (v, W)))
    y = np.zeros((B, h, v, w.shape[3]))
    for i, j, r, s in np.ndindex(h, v, k, k):
        row, column = i * stride + r - top, j * stride + s - left
        if 0 <= row < H and 0 <= column < W:
            y[:, i, j] += x[:, row, column] @ w[r, s]
    return y


@pytest.mark.parametrize(("kernel", "stride"), SIZES)
@pytest.mark.parametrize("shape", [SHAPE, (1, 7, 8, 3), (2, 1, 2, 3)], ids=str)
def test_output_is_the_convolution_with_the_standardised_weights(kernel, stride, shape):
    layer, x = std_conv(kernel, stride), normal(shape, 1)
    assert error(layer.forward(x, vitnp.Context()), one_by_one(layer, x)) < 1e-13


def test_an_even_image_has_the_border_of_a_stride_of_two_behind_it():
    assert [border(6, 3, 2), border(5, 3, 2), border(6, 3, 1), border(6, 7, 2), border(6, 1, 2)] == [
        (0, 1), (1, 1), (1, 1), (2, 3), (0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(("kernel", "stride"), SIZES)
def test_every_gradient_is_the_derivative(kernel, stride):
    # of two weights alone only the sign would be left: their gradient is but epsilon's
    assert worst_error(*both_gradients(std_conv(kernel, stride), normal((3, 6, 5, 3), 1))) < 1e-12


def test_gradcheck_passes_on_every_coordinate():
    vitnp.gradcheck(std_conv(), normal(SHAPE, 1), mode="full", tolerance=1e-12).raise_if_failed()


def test_gradients_where_epsilon_counts():
    layer = std_conv(3, 1, c_in=2)
    layer.weight *= 1e-5
    assert worst_error(*both_gradients(layer, normal((3, 4, 3, 2), 1))) < 1e-12


def test_weights_that_are_all_equal_give_zeros_and_a_gradient_that_is_finite():
    layer = std_conv(1, 1)
    layer.weight[..., 1] = 0.25
    found, truth = both_gradients(layer, normal(SHAPE, 1))
    assert worst_error(found, truth) < 1e-12
    assert abs(found["weight"][..., 1]).max() > 1e3  # over epsilon
    assert not layer.forward(normal(SHAPE, 1), vitnp.Context())[..., 1].any()


def test_a_shift_or_another_scale_of_the_weights_changes_nothing_but_for_epsilon():
    layer, x = std_conv(), normal(SHAPE, 1)
    before = layer.forward(x, vitnp.Context()).copy()
    layer.weight[...] = 3e3 * layer.weight + 5e2
    assert 1e-7 < error(layer.forward(x, vitnp.Context()), before) < 1e-4


@pytest.mark.parametrize(("kernel", "stride"), SIZES)
def test_images_that_go_in_parts_give_the_same(kernel, stride, monkeypatch):
    layer, x = std_conv(kernel, stride), normal(SHAPE, 1)
    dy = normal(layer.forward(x, vitnp.Context()).shape, 2)
    whole = layer.forward(x, vitnp.Context()).copy(), handwritten_gradients(layer, x, dy)
    outputs = dy[0, :, :, 0].size
    monkeypatch.setattr(conv, "COLUMNS", 2 * outputs * layer.weight[..., 0].size)  # two, two and one
    assert [part.stop - part.start for part in layer._parts(dy)] == [2, 2, 2]
    assert error(layer.forward(x, vitnp.Context()), whole[0]) < 1e-14
    assert worst_error(handwritten_gradients(layer, x, dy), whole[1]) < 1e-13
    monkeypatch.setattr(conv, "COLUMNS", 1)
    assert len(list(layer._parts(dy))) == 5


def test_a_root_does_without_the_gradient_of_the_images_where_the_context_does():
    layer, x = std_conv(), normal(SHAPE, 1)
    grads = []
    for wanted in (True, False):
        ctx = vitnp.Context(record=True)
        ctx.input_grad, layer.reads_input = wanted, True
        dy = normal(layer.forward(x, ctx).shape, 2)
        assert (layer.backward(dy, ctx) is None) is not wanted
        grads.append(layer.gradients(ctx)["weight"])
    assert same_bits(*grads)
    ctx, layer.reads_input = vitnp.Context(record=True), False
    ctx.input_grad = False
    layer.forward(x, ctx)
    assert layer.backward(dy, ctx).shape == x.shape


def test_the_weights_start_with_variance_one_over_what_an_output_reads_and_decay():
    layer = StdConv(30, 400, 3, dtype="float64")
    assert layer.weight.var() == pytest.approx(1 / 270, rel=0.02)
    assert layer.specs["weight"].decay


def test_what_backward_needs_is_saved_and_not_the_columns():
    layer, x, ctx = std_conv(), normal(SHAPE, 1), vitnp.Context(record=True)
    layer.forward(x, ctx)
    saved, w = ctx.saved(layer), layer.weight.reshape(-1, 4)
    assert sorted(vars(saved)) == ["sigma", "w_hat", "x"]
    assert error(saved.sigma, w.std(0)) < 1e-14
    assert error(saved.w_hat, (w - w.mean(0)) / (w.std(0) + 1e-5)) < 1e-14


@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)), kernel=st.sampled_from([1, 2, 3, 5]), stride=st.integers(1, 3)
)
def test_any_size_kernel_and_stride_is_a_convolution(size, kernel, stride):
    layer, x = std_conv(kernel, stride), normal((2, *size, 3), 1)
    assert abs(layer.forward(x, vitnp.Context()) - one_by_one(layer, x)).max() < 1e-12
