"""The moving average against closed forms, alone and in a training step."""

import math

import numpy as np
import pytest
from helpers import error, hard_model, images_for, labels_for, normal, same_bits

import vitnp
from vitnp import SGD, MovingAverage, ShardedStep
from vitnp.layers import Linear


def weights(decays):
    """How much the parameters after each update count in the last average, and first those at the start."""
    kept = [math.prod(decays[i:]) for i in range(len(decays) + 1)]
    return [kept[0], *((1 - d) * k for d, k in zip(decays, kept[1:], strict=True))]


def risen(t, decay):
    return min(decay, (1 + t) / (10 + t))


def averaged(decay, updates, dtype="float64"):
    """-> what the parameters were at the start and after each step, the average"""
    model = hard_model(dtype)
    average, seen = MovingAverage(model, decay), [model.flat.copy()]
    for t in range(1, updates + 1):
        for name, parameter in model.parameters().items():
            parameter[...] = normal(parameter.shape, 100 * t + len(name))
        seen.append(model.flat.copy())
        average.update()
    return seen, average


@pytest.mark.parametrize(("decay", "updates"), [(0.9999, 1), (0.9999, 2), (0.9999, 30), (0.5, 1), (0.5, 12)])
def test_average_is_the_closed_form(decay, updates):
    seen, average = averaged(decay, updates)
    share = weights([risen(t, decay) for t in range(1, updates + 1)])
    assert sum(share) == pytest.approx(1, abs=1e-14)
    assert error(average.averaged.flat, sum(w * p for w, p in zip(share, seen, strict=True))) < 1e-14
    assert average.updates == updates


def test_the_first_update_keeps_two_elevenths_and_later_ones_the_decay():
    seen, average = averaged(0.9999, 1)
    assert error(average.averaged.flat, (2 * seen[0] + 9 * seen[1]) / 11) < 1e-15
    seen, average = averaged(0.1, 1)
    assert error(average.averaged.flat, 0.1 * seen[0] + 0.9 * seen[1]) < 1e-15


def test_an_average_in_a_short_run_forgets_its_start_and_is_a_tenth_of_the_run_old():
    share = np.array(weights([risen(t, 0.9999) for t in range(1, 1001)]))
    assert share[:500].sum() < 0.0021  # 1 in 2⁹
    assert (share * np.arange(1000, -1, -1)).sum() == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_stands_still_is_in_the_average_to_the_bit(dtype):
    model = hard_model(dtype)
    average = MovingAverage(model, 0.97)
    for _ in range(50):
        model.parameters()["head.bias"][...] += 1
        average.update()
    for name, parameter in model.parameters().items():
        assert same_bits(average.averaged.parameters()[name], parameter) == (name != "head.bias")


def test_elements_beyond_the_first_block_are_averaged_alike_and_threads_may_share_the_work():
    model = vitnp.VisionTransformer(vitnp.ViTConfig(depth=2), rng=0)
    assert model.layout.size > 2 * (1 << 15)
    whole, shared = MovingAverage(model, 0.3), MovingAverage(model, 0.3)
    before = model.flat.copy()
    model.flat += 1
    whole.update()
    shared.update(lambda work, size: [work(0, 1000), work(1000, size)])
    share = np.float32(2 / 11)
    assert abs(whole.averaged.flat - (share * before + (1 - share) * model.flat)).max() < 1e-6
    assert same_bits(whole.averaged.flat, shared.averaged.flat)


def test_a_model_and_its_average_share_no_memory_and_the_model_is_only_read():
    model = hard_model()
    average, before = MovingAverage(model), model.flat.copy()
    average.averaged.flat += 1
    average.update()
    assert same_bits(model.flat, before)
    assert average.averaged.config == model.config


@pytest.mark.parametrize("shards", [1, 2])
def test_a_training_step_takes_the_parameters_that_it_ends_with(shards):
    model = hard_model()
    average = MovingAverage(model, 0.6)
    step = ShardedStep(model, SGD(model, 0.1), shards=shards, average=average)
    truth = model.flat.copy()
    for t in (1, 2, 3):
        step.step(images_for(model, seed=t), labels_for(model, seed=t))
        truth = risen(t, 0.6) * truth + (1 - risen(t, 0.6)) * model.flat
    assert error(average.averaged.flat, truth) < 1e-14
    assert average.updates == 3


def test_a_step_that_fails_changes_no_average():
    model = hard_model()
    average = MovingAverage(model)
    step, before = ShardedStep(model, SGD(model, 0.1), shards=1, average=average), average.averaged.flat.copy()
    images = images_for(model)
    images[0, 0, 0, 0] = np.nan
    with pytest.raises((FloatingPointError, ValueError)):
        step.step(images, labels_for(model))
    assert same_bits(average.averaged.flat, before)
    assert average.updates == 0


@pytest.mark.parametrize("decay", [0, 1, -0.1, math.nan])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}; it must be above 0 and below 1"):
        MovingAverage(hard_model(), decay)


def test_an_average_of_a_lone_layer_is_refused():
    with pytest.raises(TypeError, match="MovingAverage averages a VisionTransformer"):
        MovingAverage(Linear(2, 2))
