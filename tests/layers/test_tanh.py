import math

import numpy as np
from helpers import both_gradients, error, handwritten_gradients, normal, worst_error

import vitnp
from vitnp.layers import Tanh


def test_output_is_the_hyperbolic_tangent():
    x = normal((5, 11), 1)
    truth = np.array([math.tanh(z) for z in x.flat]).reshape(x.shape)
    assert error(Tanh().forward(x, vitnp.Context()), truth) < 1e-15


def test_gradient_is_the_derivative():
    assert worst_error(*both_gradients(Tanh(), normal((5, 11), 1))) < 1e-12


def test_gradient_of_a_saturated_element_is_zero():
    assert handwritten_gradients(Tanh(), np.array([[-400.0, 400.0]]), np.ones((1, 2)))["input"].tolist() == [[0, 0]]


def test_gradcheck_passes_on_every_coordinate():
    vitnp.gradcheck(Tanh(), normal((5, 11), 1), mode="full", tolerance=1e-12).raise_if_failed()
