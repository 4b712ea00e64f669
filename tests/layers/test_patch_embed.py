import math

import numpy as np
import pytest
from helpers import both_gradients, error, normal, randomize, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.layers import PatchEmbed
from vitnp.layers.patch_embed import patchify, unpatchify

IMAGE, PATCH, CHANNELS, DIM = (6, 8), (3, 2), 3, 7


def patch_embed(**options):
    return randomize(PatchEmbed(IMAGE, PATCH, CHANNELS, DIM, dtype="float64"), **options)


def images(batch=5):
    return normal((batch, *IMAGE, CHANNELS), 1)


def patches_one_by_one(x, patch_size):
    """(B, H, W, C) -> (B, N, P_h P_w C), one number at a time."""
    (B, H, W, C), (P_h, P_w) = x.shape, patch_size
    patches = np.empty((B, (H // P_h) * (W // P_w), P_h * P_w * C), x.dtype)
    for b, row, column, channel in np.ndindex(x.shape):
        patch = row // P_h * (W // P_w) + column // P_w
        place = (row % P_h * P_w + column % P_w) * C + channel
        patches[b, patch, place] = x[b, row, column, channel]
    return patches


def test_patches_count_row_by_row_and_flatten_as_row_column_channel():
    assert np.array_equal(patchify(images(), PATCH), patches_one_by_one(images(), PATCH))


def test_output_is_the_projection_of_every_patch():
    layer = patch_embed()
    truth = patches_one_by_one(images(), PATCH) @ layer.weight + layer.bias
    assert error(layer.forward(images(), vitnp.Context()), truth) < 1e-14


def test_output_is_a_convolution_whose_stride_is_its_kernel():
    layer = patch_embed()
    kernel = layer.weight.reshape(*PATCH, CHANNELS, DIM)
    windows = np.lib.stride_tricks.sliding_window_view(images(), PATCH, axis=(1, 2))[:, :: PATCH[0], :: PATCH[1]]
    truth = np.einsum("bhwcij,ijcd->bhwd", windows, kernel).reshape(5, -1, DIM) + layer.bias
    assert error(layer.forward(images(), vitnp.Context()), truth) < 1e-14


@pytest.mark.parametrize("batch", [1, 5])
def test_every_gradient_is_the_derivative(batch):
    assert worst_error(*both_gradients(patch_embed(), images(batch))) < 1e-12


def test_gradcheck_passes_on_every_coordinate():
    vitnp.gradcheck(patch_embed(), images(), mode="full", tolerance=1e-12).raise_if_failed()


def test_one_patch_may_be_the_whole_image():
    layer = randomize(PatchEmbed(IMAGE, IMAGE, CHANNELS, DIM, dtype="float64"))
    assert worst_error(*both_gradients(layer, images())) < 1e-12


def test_one_patch_may_be_one_pixel():
    layer = randomize(PatchEmbed((3, 2), (1, 1), CHANNELS, DIM, dtype="float64"))
    assert worst_error(*both_gradients(layer, normal((4, 3, 2, CHANNELS), 1))) < 1e-12


def test_weight_starts_normal_cut_at_two_deviations_with_variance_one_over_its_inputs():
    weight = PatchEmbed((16, 16), (16, 16), 3, 400, dtype="float64").weight
    assert weight.var() == pytest.approx(1 / 768, rel=0.01)
    assert weight.mean() == pytest.approx(0, abs=5 / math.sqrt(768 * weight.size))
    # a normal cut at ±2 has the standard deviation 0.8796256610342398 (scipy.stats.truncnorm)
    assert 0.999 < abs(weight).max() / (2 / 0.8796256610342398 / math.sqrt(768)) <= 1


def test_bias_starts_at_zero():
    assert not PatchEmbed(IMAGE, PATCH, CHANNELS, DIM).bias.any()


sizes = st.tuples(*[st.integers(1, 3) for _ in range(6)])


@given(sizes)
def test_unpatchify_inverts_patchify(sizes):
    B, rows, columns, P_h, P_w, C = sizes
    x = normal((B, rows * P_h, columns * P_w, C), 1)
    assert np.array_equal(unpatchify(patchify(x, (P_h, P_w)), (P_h, P_w), x.shape[1:3]), x)


@given(sizes)
def test_patchify_inverts_unpatchify(sizes):
    B, rows, columns, P_h, P_w, C = sizes
    patches = normal((B, rows * columns, P_h * P_w * C), 1)
    image = unpatchify(patches, (P_h, P_w), (rows * P_h, columns * P_w))
    assert np.array_equal(patchify(image, (P_h, P_w)), patches)
