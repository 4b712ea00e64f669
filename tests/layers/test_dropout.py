import math

import numpy as np
import pytest
from helpers import both_gradients, handwritten_gradients, normal, same_bits, worst_error

import vitnp
from vitnp import ContextError
from vitnp.layers import Dropout

RATE = 0.3


class Pair(vitnp.Layer):
    """Two dropout layers, which a tree of layers gives two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Dropout(RATE), Dropout(RATE)
        self.built(rng=None)


def mask(shape, layer=None, seed=7, step=0, first_row=0, dtype="float64", rate=RATE):
    """The mask of one pass: what becomes of ones."""
    ctx = vitnp.Context(train=True, rng=seed)
    ctx.step, ctx.first_row = step, first_row
    return (layer or Dropout(rate)).forward(np.ones(shape, dtype), ctx).copy()


def correlation(a, b):
    """Of what was kept, in standard deviations: of the order of one where a and b are independent."""
    a, b = (a > 0) - (1 - RATE), (b > 0) - (1 - RATE)
    return (a * b).sum() / (math.sqrt(a.size) * RATE * (1 - RATE))


# -- what it computes -------------------------------------------------------------------------------------------------


def test_output_is_the_input_times_its_mask():
    x = normal((5, 9, 6), 1)
    y = Dropout(RATE).forward(x, vitnp.Context(train=True, rng=7))
    assert np.array_equal(y, x * mask(x.shape))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_what_is_kept_is_scaled_up(rate):
    assert np.unique(mask((50, 60), rate=rate)) == pytest.approx([0, 1 / (1 - rate)], rel=1e-15)


def test_dx_is_dy_times_the_same_mask():
    x, dy = normal((5, 9, 6), 1), normal((5, 9, 6), 2)
    assert np.array_equal(handwritten_gradients(Dropout(RATE), x, dy, seed=7)["input"], dy * mask(x.shape))


def test_gradient_is_the_derivative_with_the_mask_held():
    assert worst_error(*both_gradients(Dropout(RATE), normal((5, 9, 6), 1))) < 1e-12


def test_gradcheck_passes_on_every_coordinate():
    vitnp.gradcheck(Dropout(RATE), normal((5, 9, 6), 1), mode="full", tolerance=1e-12).raise_if_failed()


def test_evaluation_is_the_identity():
    x = normal((5, 9, 6), 1)
    assert np.array_equal(Dropout(RATE).forward(x, vitnp.Context(rng=7)), x)


def test_recorded_evaluation_passes_the_gradient_unchanged():
    x, dy = normal((5, 9, 6), 1), normal((5, 9, 6), 2)
    assert np.array_equal(handwritten_gradients(Dropout(RATE), x, dy, train=False)["input"], dy)


def test_rate_zero_is_the_identity_and_needs_no_seed():
    x = normal((5, 9, 6), 1)
    assert np.array_equal(Dropout(0).forward(x, vitnp.Context(train=True)), x)


def test_active_dropout_without_a_seed_is_refused():
    with pytest.raises(ContextError, match="rng=0"):
        Dropout(RATE).forward(np.ones((2, 3)), vitnp.Context(train=True))


@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, 1.5, math.nan])
def test_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match=f"the rate of Dropout is {rate}"):
        Dropout(rate)


# -- of what the mask is a function -----------------------------------------------------------------------------------


def test_the_same_seed_and_step_give_the_same_mask():
    assert same_bits(mask((5, 9, 6)), mask((5, 9, 6)))


@pytest.mark.parametrize("parts", [[5], [2, 3], [1, 1, 1, 2], [4, 1]], ids=str)
def test_the_mask_is_the_same_however_the_batch_is_cut(parts):
    starts = np.cumsum([0, *parts[:-1]])
    pieces = [mask((rows, 9, 6), first_row=start) for start, rows in zip(starts, parts, strict=True)]
    assert same_bits(np.concatenate(pieces), mask((5, 9, 6)))


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_the_mask_drops_the_same_in_every_dtype(dtype):
    assert np.array_equal(mask((5, 9, 6), dtype=dtype) != 0, mask((5, 9, 6)) != 0)


def test_the_mask_does_not_depend_on_the_shape_of_a_sample():
    assert np.array_equal(mask((5, 54)).reshape(5, 9, 6), mask((5, 9, 6)))


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"seed": 8}, {"first_row": 1}, {"layer": Pair().first}, {"seed": -7}, {"seed": 7 + 2**64}],
    ids=str,
)
def test_another_step_seed_row_or_layer_has_another_mask(other):
    n = 40 * 50
    same = (mask((40, 50)) == mask((40, 50), **other)).mean()
    expected = RATE**2 + (1 - RATE) ** 2
    assert same == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / n))


# -- its statistics: five standard deviations, of figures that are the same in every run -------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_share_of_what_is_kept_is_one_minus_the_rate(rate):
    n = 1000 * 1000
    kept = (mask((1000, 1000), rate=rate) > 0).mean()
    assert kept == pytest.approx(1 - rate, abs=5 * math.sqrt(rate * (1 - rate) / n))


def test_share_of_what_is_kept_is_that_in_every_row_and_column():
    kept, sigma = mask((1000, 1000)) > 0, math.sqrt(RATE * (1 - RATE) / 1000)
    assert abs(kept.mean(0) - (1 - RATE)).max() < 5 * sigma
    assert abs(kept.mean(1) - (1 - RATE)).max() < 5 * sigma


@pytest.mark.parametrize("lag", [1, 2, 3, 6, 16, 64])
def test_elements_of_a_row_are_independent(lag):
    m = mask((1000, 1000))
    assert abs(correlation(m[:, lag:], m[:, :-lag])) < 5


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("shift", [0, 1, 16])
def test_rows_are_independent(rows, shift):
    m = mask((1000, 1000))
    assert abs(correlation(m[rows:, shift:], m[:-rows, : 1000 - shift])) < 5


def test_layers_are_independent():
    pair = Pair()
    assert abs(correlation(mask((1000, 1000), pair.first), mask((1000, 1000), pair.second))) < 5


@pytest.mark.parametrize("other", [{"step": 1}, {"step": 2}, {"seed": 8}, {"seed": 1007}], ids=str)
def test_steps_and_seeds_are_independent(other):
    assert abs(correlation(mask((1000, 1000)), mask((1000, 1000), **other))) < 5


def test_no_row_repeats_among_many():
    rows = mask((3000, 64)) > 0
    assert len(np.unique(np.packbits(rows, axis=1), axis=0)) == 3000


def test_random_bits_are_uniform_in_every_byte():
    ctx, layer = vitnp.Context(train=True, rng=7), Dropout(RATE)
    bits = ctx.random_bits(layer, (500, 500), like=np.ones(1))
    counts = np.stack([np.bincount((bits.ravel() >> shift) & 255, minlength=256) for shift in (0, 8, 16, 24)])
    expected = bits.size / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum(-1)  # 255 degrees of freedom
    assert abs(chi_squared - 255).max() < 5 * math.sqrt(2 * 255)
