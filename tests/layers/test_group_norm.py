import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, randomize, same_bits, worst_error
from hypothesis import given, settings
from hypothesis import strategies as st

import vitnp
from vitnp.layers import GroupNorm, LayerNorm

SHAPE = (5, 4, 3, 6)


def group_norm(groups=2, **options):
    return randomize(GroupNorm(6, groups, dtype="float64", **options))


def forward(layer, x):
    return layer.forward(x, vitnp.Context()).copy()


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_each_group_of_neighbouring_channels_of_one_image_is_standardised(groups, eps):
    layer, x = group_norm(groups, eps=eps), normal(SHAPE, 1, scale=3) + 2
    truth = np.empty(SHAPE)
    for b in range(5):
        for channels in np.split(np.arange(6), groups):
            part = x[b, :, :, channels]
            truth[b, :, :, channels] = (part - part.mean()) / np.sqrt(part.var() + eps)
    assert error(forward(layer, x), truth * layer.gamma + layer.beta) < 1e-13


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 2, 6)], ids=str)
def test_every_gradient_is_the_derivative(groups, shape):
    assert worst_error(*both_gradients(group_norm(groups), normal(shape, 1) + 0.7)) < 1e-12


def test_gradients_where_eps_dominates():
    assert worst_error(*both_gradients(group_norm(eps=1e-2), normal(SHAPE, 1, scale=0.03))) < 1e-12


def test_gradcheck_passes_on_every_coordinate():
    vitnp.gradcheck(group_norm(), normal(SHAPE, 1), mode="full", tolerance=1e-12).raise_if_failed()


def test_one_group_at_one_place_is_a_layer_norm():
    layer, twin, x, dy = (
        group_norm(1),
        randomize(LayerNorm(6, dtype="float64")),
        normal((5, 1, 1, 6), 1),
        normal((5, 6)),
    )
    found, truth = handwritten_gradients(layer, x, dy.reshape(x.shape)), handwritten_gradients(twin, x[:, 0, 0], dy)
    truth["input"] = truth["input"].reshape(x.shape)
    assert worst_error(found, truth) < 1e-13


def test_epsilon_and_groups_are_those_of_the_original_unless_said():
    layer = GroupNorm(64)
    assert (layer.eps, layer.groups) == (1e-6, 32)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="32 groups do not divide 48 channels: use a multiple of 32 channels"):
        GroupNorm(48)


def test_gamma_starts_as_told_and_neither_it_nor_beta_decays():
    layer = GroupNorm(6, 2, gamma=0.0)
    assert not layer.gamma.any()
    assert not layer.beta.any()
    assert (GroupNorm(6, 2).gamma == 1).all()
    assert {name: spec.decay for name, spec in layer.specs.items()} == {"gamma": False, "beta": False}


def test_images_do_not_touch_one_another():
    layer, x = group_norm(), normal(SHAPE, 1)
    alone = np.concatenate([forward(layer, x[i : i + 1]) for i in range(5)])
    assert same_bits(forward(layer, x), alone)


def test_dx_is_orthogonal_to_a_shift_of_a_group():
    dx = handwritten_gradients(group_norm(3), normal(SHAPE, 1), normal(SHAPE, 2))["input"]
    assert abs(dx.reshape(5, 12, 3, 2).sum((1, 3))).max() < 1e-13 * abs(dx).max()


def test_variance_of_float32_with_a_large_mean_keeps_its_digits():
    x = (1e3 + 0.29 * normal((2, 20, 20, 6), 1)).astype("float32")
    truth = forward(GroupNorm(6, 2, dtype="float64"), x.astype("float64"))
    assert error(GroupNorm(6, 2).forward(x, vitnp.Context()), truth) < 3e-3


@settings(max_examples=30)
@given(groups=st.integers(1, 3), members=st.integers(1, 3), places=st.integers(2, 4), seed=st.integers(0, 99))
def test_gradients_are_right_for_any_number_of_groups(groups, members, places, seed):
    layer = randomize(GroupNorm(groups * members, groups, dtype="float64", eps=1e-2), seed)
    assert worst_error(*both_gradients(layer, normal((3, places, 2, groups * members), seed))) < 1e-11
