import math

import pytest

from vitnp import warmup_decay

RUN = {"peak": 0.4, "total_steps": 100, "warmup_steps": 10, "final": 0.05}
DECAYS = ("cosine", "linear")


@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_is_a_straight_line_that_ends_at_the_peak(decay):
    rates = [warmup_decay(step, decay=decay, **RUN) for step in range(10)]
    assert rates == pytest.approx([0.4 * (step + 1) / 10 for step in range(10)], rel=1e-15)


@pytest.mark.parametrize("decay", DECAYS)
def test_first_step_after_the_warm_up_is_at_the_peak(decay):
    assert warmup_decay(10, decay=decay, **RUN) == 0.4


@pytest.mark.parametrize("decay", DECAYS)
def test_without_warm_up_the_first_step_is_at_the_peak(decay):
    assert warmup_decay(0, decay=decay, peak=0.4, total_steps=100) == 0.4


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("step", [100, 101, 1000])
def test_rate_is_final_from_the_end_on(decay, step):
    assert warmup_decay(step, decay=decay, **RUN) == pytest.approx(0.05, rel=1e-14)


@pytest.mark.parametrize("decay", DECAYS)
def test_halfway_down_is_the_mean_of_peak_and_final(decay):
    assert warmup_decay(55, decay=decay, **RUN) == pytest.approx((0.4 + 0.05) / 2, rel=1e-14)


@pytest.mark.parametrize("step", [10, 25, 40, 77, 99])
def test_cosine_is_half_a_wave(step):
    truth = 0.05 + 0.35 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
    assert warmup_decay(step, decay="cosine", **RUN) == pytest.approx(truth, rel=1e-14)


@pytest.mark.parametrize("step", [10, 25, 40, 77, 99])
def test_linear_is_a_straight_line(step):
    truth = 0.4 - 0.35 * (step - 10) / 90
    assert warmup_decay(step, decay="linear", **RUN) == pytest.approx(truth, rel=1e-14)


def test_cosine_to_zero_is_what_is_meant_unless_said():
    rates = [warmup_decay(step, peak=0.4, total_steps=4) for step in range(5)]
    assert rates == pytest.approx([0.4 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)], abs=1e-16)


def test_rate_is_a_python_float():
    assert type(warmup_decay(40, **RUN)) is float


def test_unknown_decay_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="decay is 'step'; choose one of 'cosine', 'linear'"):
        warmup_decay(0, peak=0.4, total_steps=10, decay="step")


@pytest.mark.parametrize("warmup_steps", [-1, 10, 11])
def test_warm_up_that_does_not_fit_is_refused(warmup_steps):
    with pytest.raises(ValueError, match=f"warmup_steps is {warmup_steps}.*below the 10 steps"):
        warmup_decay(0, peak=0.4, total_steps=10, warmup_steps=warmup_steps)
