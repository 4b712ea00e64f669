"""Adam and SGD against closed forms, which share nothing with their recurrences."""

import math

import numpy as np
import pytest
from helpers import error, hard_model, normal, same_bits

import vitnp
from vitnp import SGD, Adam, Context, clip_global_norm

BETAS = (0.9, 0.999)


def parameters_and_gradients(dtype="float64", **changes):
    model, ctx = hard_model(dtype, **changes), Context(train=True, rng=0)
    return model, ctx, model.gradients(ctx)


def gradient(t, shape):
    """Of every size, and another at every step."""
    rng = np.random.default_rng(5)
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 3, shape) * np.cos(0.7 * t + rng.uniform(0, 6, shape))


def moments(t, beta, power, shape):
    """The mean of all gradients to `power`, each weighted by β to its age: what m̂ and v̂ are, without a recurrence."""
    weights = [beta ** (t - i) for i in range(1, t + 1)]
    return sum(w * gradient(i, shape) ** power for i, w in enumerate(weights, start=1)) / math.fsum(weights)


def run(steps, rate=lambda t: 1e-3, dtype="float64", **settings):
    """-> start, end: parameters by name"""
    model, ctx, grads = parameters_and_gradients(dtype)
    start = {name: array.copy() for name, array in model.parameters().items()}
    optimizer = Adam(model, **settings)
    for t in range(1, steps + 1):
        for array in grads.values():
            array[...] = gradient(t, array.shape)
        optimizer.lr = rate(t)
        optimizer.step(ctx)
    return start, model.parameters()


def change(t, shape, lr=1e-3, betas=BETAS, eps=1e-8):
    """By how much step t lowers the parameter."""
    return lr * moments(t, betas[0], 1, shape) / (np.sqrt(moments(t, betas[1], 2, shape)) + eps)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_parameters_after_some_steps_are_the_closed_form(steps):
    start, end = run(steps)
    for name, p in start.items():
        truth = p - sum(change(t, p.shape) for t in range(1, steps + 1))
        assert error(end[name], truth) < 1e-14


def test_the_thousandth_step_is_the_closed_form():
    _, before = run(999)
    _, after = run(1000)
    for name in ("head.weight", "cls_token"):
        assert abs(before[name] - after[name] - change(1000, after[name].shape)).max() < 1e-14


def test_a_constant_gradient_moves_by_the_same_amount_in_a_thousand_steps():
    model, ctx, grads = parameters_and_gradients()
    start, g = model.flat.copy(), ctx.flat_grad(model.layout, like=model.flat)
    for name, array in grads.items():
        array[...] = gradient(1, array.shape) if name != "cls_token" else 0
    optimizer = Adam(model, lr=1e-3)
    for _ in range(1000):
        optimizer.step(ctx)
    assert abs(model.flat - (start - 1000 * 1e-3 * g / (abs(g) + 1e-8))).max() < 1e-11


def test_other_settings_are_the_closed_form_too():
    start, end = run(10, rate=lambda t: 1e-2 / t, betas=(0.5, 0.9), eps=1e-3)
    for name, p in start.items():
        truth = p - sum(change(t, p.shape, 1e-2 / t, (0.5, 0.9), 1e-3) for t in range(1, 11))
        assert error(end[name], truth) < 1e-14


def test_without_memory_every_step_is_by_the_sign_of_the_gradient():
    start, end = run(2, betas=(0.0, 0.0), eps=1e-30)
    for name, p in start.items():
        steps = sum(np.sign(gradient(t, p.shape)) for t in (1, 2))
        assert error(end[name], p - 1e-3 * steps) < 1e-14


def test_eps_is_added_to_the_root_after_the_correction():
    model, ctx, grads = parameters_and_gradients()
    grads["head.weight"][...] = g = 1e-6
    before = model.parameters()["head.weight"].copy()
    Adam(model, lr=1.0, eps=1e-6).step(ctx)
    assert error(before - model.parameters()["head.weight"], np.full(before.shape, g / (g + 1e-6))) < 1e-9


def test_decay_multiplies_decayed_parameters_and_no_others():
    model, ctx, _ = parameters_and_gradients()
    start = {name: array.copy() for name, array in model.parameters().items()}
    optimizer = Adam(model, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.step(ctx)
    for name, p in model.parameters().items():
        factor = 0.95**3 if name.endswith("weight") else 1
        assert error(p, factor * start[name]) < 1e-15


def test_decay_is_apart_from_the_gradient():
    start, end = run(1, weight_decay=0.1)
    for name, p in start.items():
        factor = 1 - 1e-3 * 0.1 if name.endswith("weight") else 1
        assert error(end[name], factor * p - change(1, p.shape)) < 1e-14


def test_elements_beyond_the_first_block_are_updated_alike():
    model = vitnp.VisionTransformer(vitnp.ViTConfig(depth=2), rng=0, dtype="float64")
    assert model.layout.size > 2 * (1 << 15)
    ctx, start = Context(), model.flat.copy()
    g = ctx.flat_grad(model.layout, like=model.flat)
    g[...] = normal(g.shape, 1)
    Adam(model, lr=1e-3).step(ctx)
    assert abs(model.flat - (start - 1e-3 * g / (abs(g) + 1e-8))).max() < 1e-15


def test_float32_follows_float64():
    _, end = run(10)
    _, end32 = run(10, dtype="float32")
    for name, p in end.items():
        assert p.dtype == np.float64
        assert end32[name].dtype == np.float32
        assert error(end32[name], p) < 1e-6


def test_gradients_are_left_as_they_are():
    model, ctx, grads = parameters_and_gradients()
    grads["head.weight"][...] = 1
    before = ctx.flat_grad(model.layout, like=model.flat).copy()
    Adam(model, weight_decay=0.1).step(ctx)
    assert same_bits(ctx.flat_grad(model.layout, like=model.flat), before)


def test_state_starts_at_zero_in_the_layout_of_the_model():
    model, _, _ = parameters_and_gradients("float32")
    optimizer = Adam(model)
    for vector in (optimizer.m, optimizer.v):
        assert (vector.shape, vector.dtype, vector.any()) == (model.flat.shape, np.float32, False)
    assert optimizer.steps == 0


def test_means_are_those_of_the_gradients():
    model, ctx, grads = parameters_and_gradients()
    optimizer = Adam(model, betas=(0.8, 0.95))
    for t in (1, 2, 3):
        grads["head.weight"][...] = gradient(t, grads["head.weight"].shape)
        optimizer.step(ctx)
    shape = grads["head.weight"].shape
    for vector, beta, power in ((optimizer.m, 0.8, 1), (optimizer.v, 0.95, 2)):
        found = model.layout.view(vector, "head.weight")
        assert error(found, (1 - beta**3) * moments(3, beta, power, shape)) < 1e-14


def test_steps_are_counted():
    model, ctx, _ = parameters_and_gradients()
    optimizer = Adam(model)
    for _ in range(3):
        optimizer.step(ctx)
    assert optimizer.steps == 3


def test_gaps_between_parameters_stay_zero():
    model, ctx, grads = parameters_and_gradients()
    for array in grads.values():
        array[...] = 1
    optimizer = Adam(model, weight_decay=0.1)
    optimizer.step(ctx)
    for vector in (model.flat, optimizer.m, optimizer.v):
        inside = vector.copy()
        for name in model.layout.names:
            model.layout.view(inside, name)[...] = 0
        assert not inside.any()


@pytest.mark.parametrize("kind", [Adam, SGD])
@pytest.mark.parametrize("lr", [0, -1e-3, math.nan, math.inf])
def test_rate_outside_its_range_is_refused(kind, lr):
    with pytest.raises(ValueError, match=f"lr is {lr}"):
        kind(hard_model(), lr=lr)


# -- SGD --------------------------------------------------------------------------------------------------------------


def run_sgd(steps, rate=lambda t: 0.1, dtype="float64", **settings):
    """-> start, end: parameters by name"""
    model, ctx, grads = parameters_and_gradients(dtype)
    start = {name: array.copy() for name, array in model.parameters().items()}
    optimizer = SGD(model, lr=1.0, **settings)
    for t in range(1, steps + 1):
        for array in grads.values():
            array[...] = gradient(t, array.shape)
        optimizer.lr = rate(t)
        optimizer.step(ctx)
    return start, model.parameters()


def change_by_sgd(t, shape, lr=0.1, momentum=0.9):
    """By how much step t of SGD lowers the parameter: the sum of all gradients, each times μ to its age."""
    return lr * sum(momentum ** (t - i) * gradient(i, shape) for i in range(1, t + 1))


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_parameters_after_some_steps_of_sgd_are_the_closed_form(steps):
    start, end = run_sgd(steps)
    for name, p in start.items():
        assert error(end[name], p - sum(change_by_sgd(t, p.shape) for t in range(1, steps + 1))) < 1e-14


def test_the_rate_of_sgd_acts_at_once_and_other_settings_are_the_closed_form_too():
    start, end = run_sgd(5, rate=lambda t: 0.5 / t, momentum=0.3)
    for name, p in start.items():
        assert error(end[name], p - sum(change_by_sgd(t, p.shape, 0.5 / t, 0.3) for t in range(1, 6))) < 1e-14


def test_sgd_without_momentum_steps_along_the_gradient():
    start, end = run_sgd(3, momentum=0.0)
    for name, p in start.items():
        assert error(end[name], p - 0.1 * sum(gradient(t, p.shape) for t in (1, 2, 3))) < 1e-14


def test_sgd_decays_weights_and_no_others_apart_from_gradient_and_momentum():
    start, end = run_sgd(3, weight_decay=0.5)
    for name, p in start.items():
        truth, factor = p, 0.95 if name.endswith("weight") else 1
        for t in (1, 2, 3):
            truth = factor * truth - change_by_sgd(t, p.shape)
        assert error(end[name], truth) < 1e-14


def test_sgd_reaches_elements_beyond_the_first_block_and_keeps_float32():
    model = vitnp.VisionTransformer(vitnp.ViTConfig(depth=2), rng=0)
    ctx, start = Context(), model.flat.copy()
    g = ctx.flat_grad(model.layout, like=model.flat)
    g[...] = normal(g.shape, 1)
    optimizer = SGD(model, lr=0.1)
    optimizer.step(ctx)
    assert optimizer.u.dtype == model.flat.dtype == np.float32
    assert abs(model.flat - (start - np.float32(0.1) * g)).max() < 1e-6
    assert same_bits(optimizer.u, g)


def test_without_a_gradient_and_decay_nothing_moves_by_a_bit():
    for kind in (Adam, SGD):
        model, ctx, grads = parameters_and_gradients("float32")
        before, optimizer = {name: p.copy() for name, p in model.parameters().items()}, kind(model, lr=0.1)
        for t in (1, 2):
            grads["head.weight"][...] = gradient(t, grads["head.weight"].shape)
            optimizer.step(ctx)
        moved = {name for name, p in model.parameters().items() if not same_bits(p, before[name])}
        assert moved == {"head.weight"}


def test_sgd_leaves_gradients_as_they_are_counts_its_steps_and_keeps_gaps_at_zero():
    model, ctx, grads = parameters_and_gradients()
    for array in grads.values():
        array[...] = 1
    before = ctx.flat_grad(model.layout, like=model.flat).copy()
    optimizer = SGD(model, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.step(ctx)
    assert same_bits(ctx.flat_grad(model.layout, like=model.flat), before)
    assert optimizer.steps == 3
    for vector in (model.flat, optimizer.u):
        inside = vector.copy()
        for name in model.layout.names:
            model.layout.view(inside, name)[...] = 0
        assert not inside.any()


@pytest.mark.parametrize(
    "betas", [(-0.1, 0.999), (1, 0.999), (0.9, 1.0), (0.9, -0.1), (math.nan, 0.999), (0.9,), (0.9, 0.99, 0.999), ()]
)
def test_betas_outside_their_range_are_refused(betas):
    with pytest.raises(ValueError, match="betas are"):
        Adam(hard_model(), betas=betas)


@pytest.mark.parametrize("eps", [0, -1e-8, math.nan])
def test_eps_outside_its_range_is_refused(eps):
    with pytest.raises(ValueError, match=f"eps is {eps}; it must be above 0"):
        Adam(hard_model(), eps=eps)


@pytest.mark.parametrize("kind", [Adam, SGD])
@pytest.mark.parametrize("decay", [-0.1, math.nan, math.inf])
def test_a_decay_outside_its_range_is_refused(kind, decay):
    with pytest.raises(ValueError, match=f"weight_decay is {decay}; it must be at least 0"):
        kind(hard_model(), lr=0.1, weight_decay=decay)


@pytest.mark.parametrize("momentum", [-0.1, 1, math.nan])
def test_momentum_outside_its_range_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum is {momentum}; it must be at least 0 and below 1"):
        SGD(hard_model(), lr=0.1, momentum=momentum)


# -- clipping ---------------------------------------------------------------------------------------------------------


def test_clipping_scales_a_long_gradient_to_the_norm():
    g = normal(1000, 1)
    expected = g * 0.5 / np.linalg.norm(g)
    clip_global_norm(g, 0.5)
    assert error(g, expected) < 1e-14


@pytest.mark.parametrize("max_norm", [1.0001, 2, 1e30])
def test_clipping_never_enlarges(max_norm):
    g = normal(1000, 1)
    g /= np.linalg.norm(g)
    before = g.copy()
    clip_global_norm(g, max_norm)
    assert same_bits(g, before)


def test_clipping_to_an_infinite_norm_changes_nothing():
    g = normal(1000, 1)
    clip_global_norm(g, math.inf)
    assert same_bits(g, normal(1000, 1))


def test_clipping_returns_the_norm_before():
    g = normal(1000, 1)
    norm = np.linalg.norm(g)
    assert float(clip_global_norm(g, 0.5)) == pytest.approx(norm, rel=1e-14)


def test_clipping_leaves_zero_at_zero():
    g = np.zeros(10)
    assert float(clip_global_norm(g, 1.0)) == 0
    assert not g.any()


def test_clipping_keeps_float32():
    g = normal(1000, 1).astype("float32")
    assert clip_global_norm(g, 0.5).dtype == g.dtype == np.float32


def test_a_gradient_whose_squares_overflow_is_clipped_all_the_same():
    g = np.array([2e19, -2e19, 2e19, 1e19], "float32")
    with np.errstate(over="ignore"):
        norm = clip_global_norm(g, 0.5)
    assert norm.dtype == g.dtype == np.float32
    assert float(norm) == pytest.approx(13**0.5 * 1e19, rel=1e-6)
    np.testing.assert_allclose(g, 0.5 * np.array([2, -2, 2, 1]) / 13**0.5, rtol=1e-6)


def test_where_nothing_is_clipped_squares_that_overflow_raise_as_an_optimizer_may_need_them():
    g = np.array([2e19, 1.0], "float32")
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match="the gradient's norm is inf"):
        clip_global_norm(g, math.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_norm_that_is_not_finite_raises_and_changes_nothing(bad):
    g = np.array([1.0, bad, 2.0])
    with pytest.raises(FloatingPointError, match="the gradient's norm is"):
        clip_global_norm(g, 1.0)
    assert g[[0, 2]].tolist() == [1, 2]
