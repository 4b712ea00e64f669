import math

import numpy as np
import pytest
from helpers import both_gradients, normal, same_bits, worst_error

import vitnp
from vitnp.layers import Dropout, StochasticDepth

RATE = 0.3


def masks(rows, seed=7, step=0, first_row=0, rate=RATE, layer=None):
    """The factors of samples (rows,)."""
    ctx = vitnp.Context(train=True, rng=seed)
    ctx.step, ctx.first_row = step, first_row
    return (layer or StochasticDepth(rate)).forward(np.ones((rows, 2, 3)), ctx)[:, 0, 0].copy()


def test_a_sample_is_dropped_or_kept_as_a_whole():
    ctx = vitnp.Context(train=True, rng=7)
    x = normal((50, 4, 6), 1)
    y = StochasticDepth(RATE).forward(x, ctx)
    kept = y.any((1, 2))
    assert 0 < kept.sum() < 50
    assert np.allclose(y[kept], x[kept] / (1 - RATE), rtol=1e-15)
    assert not y[~kept].any()


def test_the_share_of_dropped_samples_is_the_rate_and_the_mean_stays():
    found = masks(100_000)
    assert (found == 0).mean() == pytest.approx(RATE, abs=4 * math.sqrt(RATE * (1 - RATE) / 1e5))
    assert found.max() == pytest.approx(1 / (1 - RATE), rel=1e-15)
    assert found.mean() == pytest.approx(1, abs=0.01)


def test_evaluation_is_the_identity():
    x = normal((5, 9, 6), 1)
    assert same_bits(StochasticDepth(RATE).forward(x, vitnp.Context(rng=7)), x)


def test_every_gradient_is_the_derivative():
    assert worst_error(*both_gradients(StochasticDepth(RATE), normal((9, 3, 4), 1))) < 1e-12


def test_the_mask_belongs_to_the_row_in_the_global_batch():
    whole = masks(60)
    parts = [masks(20, first_row=first) for first in (0, 20, 40)]
    assert same_bits(np.concatenate(parts), whole)


@pytest.mark.parametrize("other", [{"seed": 8}, {"step": 1}, {"first_row": 1}], ids=str)
def test_the_mask_is_another_for_another_seed_step_and_row(other):
    assert not same_bits(masks(60), masks(60, **other))


def test_the_two_branches_of_a_block_and_two_blocks_drop_other_samples():
    model = vitnp.VisionTransformer(vitnp.ViTConfig(dim=8, depth=3, num_heads=2, mlp_dim=8, stochastic_depth=0.5))
    layers = [layer for layer in model.layers() if isinstance(layer, StochasticDepth)]
    assert len({masks(60, layer=layer).tobytes() for layer in layers}) == len(layers) == 4


def test_what_is_drawn_is_no_wider_than_what_is_used():
    ctx = vitnp.Context(train=True, rng=7)
    layer = StochasticDepth(RATE)
    layer.forward(np.ones((5, 9, 6)), ctx)
    assert ctx.saved(layer).mask.shape == (5, 1, 1)
    assert isinstance(layer, Dropout)


@pytest.mark.parametrize("rate", [-0.1, 1, math.nan])
def test_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match=f"the rate of StochasticDepth is {rate}; it must be at least 0 and below 1"):
        StochasticDepth(rate)
