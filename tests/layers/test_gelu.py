import cmath
import math

import numpy as np
import pytest
from helpers import both_gradients, error, handwritten_gradients, normal, numeric_gradients, same_bits, worst_error
from hypothesis import given
from hypothesis import strategies as st

import vitnp
from vitnp.layers import GELU
from vitnp.layers.gelu import erf

FORMS = ("tanh", "erf")
GRID = np.linspace(-8, 8, 100_001)


def formula(form, z):
    """The definition, for one number."""
    if form == "tanh":
        return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    return 0.5 * z * (1 + math.erf(z / math.sqrt(2)))


def forward(form, x):
    return GELU(form).forward(np.asarray(x), vitnp.Context()).copy()


def slope(form, x):
    layer, ctx = GELU(form), vitnp.Context(record=True)
    layer.forward(np.asarray(x), ctx)
    return ctx.saved(layer).slope


@pytest.mark.parametrize("form", FORMS)
def test_output_is_the_formula(form):
    x = np.linspace(-6, 6, 4001)
    truth = np.array([formula(form, float(z)) for z in x])
    assert abs(forward(form, x) - truth).max() < 5e-15


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1,), (5, 7), (5, 9, 7)], ids=str)
def test_gradient_is_the_derivative(form, shape):
    assert worst_error(*both_gradients(GELU(form), normal(shape, 1, scale=2))) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_passes_on_every_coordinate(form):
    vitnp.gradcheck(GELU(form), normal((5, 9, 7), 1, scale=2), mode="full", tolerance=1e-12).raise_if_failed()


def test_slope_of_the_tanh_form_is_that_of_a_formula_written_apart():
    x, a = np.linspace(-6, 6, 1001), 0.044715
    u, du = math.sqrt(2 / math.pi) * (x + a * x**3), math.sqrt(2 / math.pi) * (1 + 3 * a * x**2)
    truth = 0.5 * (1 + np.tanh(u)) + 0.5 * x / np.cosh(u) ** 2 * du
    assert abs(slope("tanh", x) - truth).max() < 5e-15


def test_slope_of_the_exact_form_is_the_distribution_plus_x_times_the_density():
    x = np.linspace(-6, 6, 1001)
    phi = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    cdf = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in x])
    assert abs(slope("erf", x) - (cdf + x * phi)).max() < 5e-15


def test_the_two_forms_differ_by_as_much_as_is_known():
    x = np.linspace(-6, 6, 4001)
    assert 4.7e-4 < abs(forward("tanh", x) - forward("erf", x)).max() < 4.8e-4


@pytest.mark.parametrize("form", FORMS)
def test_float32_is_as_exact_as_float32_can_be(form):
    x = np.linspace(-6, 6, 4001, dtype="float32")
    truth = np.array([formula(form, float(z)) for z in x])
    assert abs(forward(form, x) - truth).max() < 6e-7


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_far_out_it_is_zero_or_the_identity(form, dtype):
    x = np.array([-1e4, -40, 40, 1e4], dtype)
    assert (forward(form, x) == [0, 0, 40, 1e4]).all()
    assert (slope(form, x) == [0, 0, 1, 1]).all()


def test_tanh_form_of_numbers_whose_squares_overflow():
    x = np.array([-1e30, 1e30], "float32")
    with np.errstate(over="ignore"):  # as in a training step
        assert (forward("tanh", x) == [0, x[1]]).all()
        assert (slope("tanh", x) == [0, 1]).all()


def test_numbers_beside_one_whose_square_overflows_are_as_without_it():
    x = normal((3, 50), 5).astype("float32")
    y, dy = forward("tanh", x), slope("tanh", x)
    x[1, 7] = 1e30
    with np.errstate(over="ignore"):
        beside_y, beside_dy = forward("tanh", x), slope("tanh", x)
    y[1, 7], dy[1, 7] = x[1, 7], 1
    assert same_bits(beside_y, y)
    assert same_bits(beside_dy, dy)


def test_the_form_is_tanh_unless_said():
    assert GELU().form == "tanh"


def test_unknown_form_is_refused_by_name():
    with pytest.raises(ValueError, match=r"gelu is 'exact'.*tanh.*erf"):
        GELU("exact")


@pytest.mark.parametrize("form", FORMS)
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 4)), scale=st.sampled_from([1e-6, 1e-3, 1, 10, 1e4]))
def test_gradient_is_right_for_any_shape_and_scale(form, shape, scale):
    x, dy = normal(shape, 1, scale), normal(shape, 2)
    found = handwritten_gradients(GELU(form), x, dy)["input"]
    truth = numeric_gradients(GELU(form), x, lambda y: (y * dy).sum())["input"]
    assert abs(found - truth).max() <= 1e-12 * abs(dy).max()


# -- the error function -----------------------------------------------------------------------------------------------


def test_erf_is_math_erf_to_2e_15():
    truth = np.array([math.erf(z) for z in GRID])
    assert abs(erf(GRID) - truth).max() <= 2e-15


def test_erf_in_float32_is_math_erf_to_float32():
    x = GRID.astype("float32")
    truth = np.array([math.erf(z) for z in x.astype("float64")])
    assert abs(erf(x) - truth).max() <= 1.2e-7
    assert erf(x).dtype == np.float32


def test_imaginary_part_of_erf_is_its_derivative():
    h = 1e-30
    found = erf(GRID + 1j * h).imag / h
    assert abs(found - 2 / math.sqrt(math.pi) * np.exp(-GRID * GRID)).max() < 2e-14


def test_erf_of_complex_numbers_near_the_axis_is_its_series():
    def series(z):
        """2/√π e^(−z²) Σ 2ᵏ z^(2k+1) / (2k+1)!!"""
        term = total = z
        for k in range(1, 150):
            term *= 2 * z * z / (2 * k + 1)
            total += term
        return 2 / math.sqrt(math.pi) * cmath.exp(-z * z) * total

    z = np.linspace(-3, 3, 401) + 1e-3j
    assert abs(erf(z) - np.array([series(complex(w)) for w in z])).max() < 2e-13


def test_erf_is_odd():
    assert error(erf(-GRID), -erf(GRID)) < 1e-15


def test_erf_of_infinity_is_one():
    assert erf(np.array([-np.inf, -30.0, 30.0, np.inf])).tolist() == [-1, -1, 1, 1]


def test_erf_of_nan_is_nan():
    found = erf(np.array([np.nan, 0.5]))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(math.erf(0.5), abs=2e-15)
