"""vitnp against figures that PyTorch computed once (reference/make_golden.py). Needs no PyTorch.

The bars: 1e-12 of the largest entry of each tensor for one pass and for Adam, 1e-10 over a hundred training
steps. Of the mistakes that no gradient check can see, the slightest (the layer norm's eps outside its root)
moves these logits by 5e-7.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import vitnp

with np.load(Path(__file__).parent / "reference" / "golden.npz", allow_pickle=False) as file:
    GOLDEN = dict(file)

NETWORKS = ("token-tanh", "mean-erf-smoothed", "representation-soft-labels")
RULES = ("adam", "adamw", "adamw-other-betas")


def under(prefix):
    """The arrays whose key begins with `prefix/`, by the rest of their key."""
    return {key.removeprefix(f"{prefix}/"): array for key, array in GOLDEN.items() if key.startswith(f"{prefix}/")}


def build(config, parameters):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(**json.loads(str(config))), rng=0, dtype="float64")
    assert model.parameters().keys() == parameters.keys()
    for name, array in model.parameters().items():
        array[...] = parameters[name]
    return model


def step_forward_and_back(model, ctx, images, labels, label_smoothing=0.0):
    logits = model.forward(images, ctx)
    loss, dlogits = vitnp.softmax_cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return logits, loss, model.backward(dlogits, ctx)


@cache
def one_pass(case):
    """-> what vitnp computes, under the keys of the golden file"""
    model = build(GOLDEN[f"{case}/config"], under(f"{case}/parameters"))
    ctx = vitnp.Context(train=True, rng=1)
    data = (GOLDEN[f"{case}/images"], GOLDEN[f"{case}/labels"], float(GOLDEN[f"{case}/label_smoothing"]))
    logits, loss, dimages = step_forward_and_back(model, ctx, *data)
    gradients = {f"gradients/{name}": gradient.copy() for name, gradient in model.gradients(ctx).items()}
    return {"logits": logits, "loss": loss, "image_gradient": dimages, **gradients}


@cache
def adam_path(rule):
    """-> {step: {name: parameters}}, under the gradients base * cos(t / 10 + phase)"""
    model = build(GOLDEN["adam/config"], under("adam/start"))
    ctx, base, phase = vitnp.Context(train=True, rng=1), under("adam/base"), under("adam/phase")
    optimizer = vitnp.Adam(model, lr=1.0, **json.loads(str(GOLDEN[f"adam/{rule}/settings"])))
    path = {}
    for t, rate in enumerate(GOLDEN["adam/rates"].tolist(), start=1):
        for name, gradient in model.gradients(ctx).items():
            gradient[...] = base[name] * np.cos(0.1 * t + phase[name])
        optimizer.lr = rate
        optimizer.step(ctx)
        if t in (1, 2, 10, 1000):
            path[t] = {name: array.copy() for name, array in model.parameters().items()}
    return path


@cache
def training_run():
    """-> losses before each step, parameters after the last"""
    model = build(GOLDEN["curve/config"], under("curve/start"))
    ctx, losses = vitnp.Context(train=True, rng=1), []
    batches = [(GOLDEN[f"curve/{i}/images"], GOLDEN[f"curve/{i}/labels"]) for i in range(3)]
    optimizer = vitnp.Adam(model, lr=1.0, weight_decay=float(GOLDEN["curve/weight_decay"]))
    for t, rate in enumerate(GOLDEN["curve/rates"].tolist()):
        _, loss, _ = step_forward_and_back(model, ctx, *batches[t % 3])
        losses.append(float(loss))
        optimizer.lr = rate
        optimizer.step(ctx)
        ctx.zero_grad()
    return np.array(losses), model.parameters()


def error(found, truth, scale=None):
    """The worst entry, in units of the largest true one (or of `scale`)."""
    found, truth = np.asarray(found), np.asarray(truth)
    assert found.shape == truth.shape
    return np.abs(found - truth).max() / (np.abs(truth).max() if scale is None else scale)


def gradients_of(case, kind=""):
    return [(case, key) for key in under(f"{case}/gradients") if kind in key]


@pytest.mark.parametrize("case", NETWORKS)
def test_logits_are_those_of_torch(case):
    assert error(one_pass(case)["logits"], GOLDEN[f"{case}/logits"]) < 1e-12


@pytest.mark.parametrize("case", NETWORKS)
def test_the_loss_is_that_of_torch(case):
    assert error(one_pass(case)["loss"], GOLDEN[f"{case}/loss"]) < 1e-12


@pytest.mark.parametrize("case", NETWORKS)
def test_the_image_gradient_is_that_of_torch(case):
    assert error(one_pass(case)["image_gradient"], GOLDEN[f"{case}/image_gradient"]) < 1e-12


@pytest.mark.parametrize(("case", "name"), [pair for case in NETWORKS for pair in gradients_of(case)])
def test_the_gradient_is_that_of_torch(case, name):
    assert error(one_pass(case)[f"gradients/{name}"], GOLDEN[f"{case}/gradients/{name}"]) < 1e-12


@pytest.mark.parametrize(("case", "name"), [pair for case in NETWORKS for pair in gradients_of(case, "qkv")])
def test_q_k_and_v_are_each_right_on_their_own_scale(case, name):
    largest = max(np.abs(gradient).max() for gradient in under(f"{case}/gradients").values())
    truth = np.split(GOLDEN[f"{case}/gradients/{name}"], 3, axis=-1)
    found = np.split(one_pass(case)[f"gradients/{name}"], 3, axis=-1)
    # A constant added to a row is nothing to softmax: the key bias has no gradient and no scale of its own.
    scales = [None, largest if name.endswith("bias") else None, None]
    assert max(error(f, t, scale) for f, t, scale in zip(found, truth, scales, strict=True)) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("rule", RULES)
def test_adam_ends_where_torch_ends(rule, steps):
    truth = under(f"adam/{rule}/{steps}")
    assert max(error(array, truth[name]) for name, array in adam_path(rule)[steps].items()) < 1e-12


def test_a_hundred_training_steps_have_the_losses_of_torch():
    losses, _ = training_run()
    truth = GOLDEN["curve/losses"]
    assert (np.abs(losses - truth) / truth).max() < 1e-10


def test_a_hundred_training_steps_end_at_the_weights_of_torch():
    _, found = training_run()
    truth = under("curve/end")
    # The key bias has no gradient, and Adam makes steps even of the rounding noise there: q and v only.
    for name in [name for name in truth if name.endswith("qkv.bias")]:
        found = {**found, name: np.delete(found[name].reshape(3, -1), 1, axis=0)}
        truth[name] = np.delete(truth[name].reshape(3, -1), 1, axis=0)
    assert max(error(found[name], truth[name]) for name in truth) < 1e-10
