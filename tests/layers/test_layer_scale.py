import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, randomize, worst_error

import vitnp
from vitnp.layers import LayerScale


def layer_scale(dim=6):
    return randomize(LayerScale(dim, 0.1, dtype="float64"))


def test_every_channel_has_a_weight_of_its_own():
    layer, x = layer_scale(), normal((5, 9, 6), 1)
    assert error(layer.forward(x, vitnp.Context()), x @ np.diag(layer.gamma)) < 1e-15


@pytest.mark.parametrize("shape", [(6,), (3, 6), (5, 9, 6)], ids=str)
def test_every_gradient_is_the_derivative(shape):
    assert worst_error(*both_gradients(layer_scale(), normal(shape, 1))) < 1e-12


def test_gradient_of_gamma_sums_over_all_rows():
    x, dy = normal((5, 9, 6), 1), normal((5, 9, 6), 2)
    found = handwritten_gradients(layer_scale(), x, dy)["gamma"]
    assert error(found, (dy * x).sum((0, 1))) < 1e-14


def test_gamma_starts_at_the_value_that_is_asked_for_and_does_not_decay():
    layer = LayerScale(6, 1e-5, dtype="float64")
    assert (layer.gamma == 1e-5).all()
    assert not layer.specs["gamma"].decay
