import numpy as np
import pytest
from helpers import both_gradients, error, normal, randomize, worst_error

import vitnp
from vitnp.layers import ClassifierHead


def head(seed=0, **options):
    return randomize(ClassifierHead(6, 4, dtype="float64", **options), seed)


@pytest.mark.parametrize("pool", ["token", "mean", "mean-norm"])
@pytest.mark.parametrize("representation_size", [None, 7])
def test_every_gradient_is_the_complex_steps(pool, representation_size):
    layer = head(pool=pool, representation_size=representation_size)
    assert worst_error(*both_gradients(layer, normal((5, 9, 6), 1))) < 1e-12


def test_only_the_class_token_reaches_the_logits_and_has_a_gradient():
    layer, x, ctx = head(), normal((5, 9, 6), 1), vitnp.Context(record=True)
    y = layer.forward(x, ctx).copy()
    dx = layer.backward(normal((5, 4), 2), ctx)
    assert np.abs(dx[:, 0]).min() > 0
    assert not dx[:, 1:].any()
    x[:, 1:] = 0
    np.testing.assert_array_equal(layer.forward(x, vitnp.Context()), y)


def test_mean_pooling_normalises_before_the_mean():
    layer, x = head(pool="mean"), normal((5, 9, 6), 1)
    normed = layer.norm.forward(x, vitnp.Context())
    truth = normed.mean(1) @ layer.head.weight + layer.head.bias
    assert error(layer.forward(x, vitnp.Context()), truth) < 1e-14


def test_the_norm_may_come_after_the_mean():
    layer, x = head(pool="mean-norm"), normal((5, 9, 6), 1)
    truth = layer.norm.forward(x.mean(1), vitnp.Context()) @ layer.head.weight + layer.head.bias
    assert error(layer.forward(x, vitnp.Context()), truth) < 1e-14
    assert error(head(pool="mean").forward(x, vitnp.Context()), truth) > 0.1


@pytest.mark.parametrize("pool", ["mean", "mean-norm"])
def test_the_mean_is_that_of_the_tokens_before_the_registers(pool):
    layer, x = head(pool=pool, registers=2), normal((5, 9, 6), 1)
    assert error(layer.forward(x, vitnp.Context()), head(pool=pool).forward(x[:, :7], vitnp.Context())) < 1e-14


@pytest.mark.parametrize("pool", ["token", "mean", "mean-norm"])
def test_every_gradient_is_the_derivative_with_registers_which_have_none(pool):
    layer, x, ctx = head(pool=pool, registers=2), normal((3, 9, 6), 1), vitnp.Context(record=True)
    assert worst_error(*both_gradients(layer, x)) < 1e-12
    layer.forward(x, ctx)
    assert not layer.backward(normal((3, 4), 2), ctx)[:, 7:].any()


def test_parameters_go_by_the_names_of_the_model():
    names = list(head(representation_size=7).parameters())
    assert names == [f"{layer}.{name}" for layer, name in (
        ("norm", "gamma"), ("norm", "beta"), ("pre_logits", "weight"), ("pre_logits", "bias"),
        ("head", "weight"), ("head", "bias"))]  # fmt: skip


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pool is 'max'; choose"):
        ClassifierHead(6, 4, pool="max")
