"""Writes golden.npz, the figures that vitnp must reproduce where PyTorch is not installed.

    python tests/reference/make_golden.py

Everything is stored as arrays, nothing as a seed: what a generator draws may change with NumPy.

    <case>/config                   a ViTConfig as JSON            for the cases in NETWORKS
    <case>/label_smoothing, images, labels
    <case>/parameters/<name>        <case>/gradients/<name>
    <case>/logits, loss, image_gradient
    adam/config, start/<name>, base/<name>, phase/<name>, rates
                                    the gradient of step t = 1, 2, ... is base * cos(t / 10 + phase)
    adam/<rule>/settings            keyword arguments of the optimizer, as JSON
    adam/<rule>/<t>/<name>          the parameters after step t
    curve/config, rates, weight_decay, start/<name>, <i>/images, <i>/labels
                                    step t = 0, 1, ... takes rates[t] and batch t modulo their number
    curve/losses                    of each step, before its update
    curve/end/<name>                the parameters after the last step

Before anything is written the reference is checked against itself assembled in another way, the optimizer
against the two papers' formulas in extended precision, and every gradient for being large enough to matter.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch_vit import TorchViT, adam_path, hard_parameters, logits_by_another_road

PATH = Path(__file__).with_name("golden.npz")
STOPS = (1, 2, 10, 1000)

# No two axes that meet anywhere have the same length, so that no lost transpose can fit by chance.
NETWORKS = {
    "token-tanh": {
        "batch": 5,
        "label_smoothing": 0.0,
        "config": {
            "image_size": [12, 30], "patch_size": [4, 5], "channels": 2, "num_classes": 9, "dim": 14,
            "depth": 2, "num_heads": 2, "mlp_dim": 22, "pool": "token", "gelu": "tanh",
        },
    },
    "mean-erf-smoothed": {
        "batch": 5,
        "label_smoothing": 0.1,
        "config": {
            "image_size": [20, 12], "patch_size": [5, 2], "channels": 3, "num_classes": 7, "dim": 12,
            "depth": 2, "num_heads": 3, "mlp_dim": 26, "pool": "mean", "gelu": "erf",
        },
    },
    "representation-soft-labels": {
        "batch": 4,
        "label_smoothing": 0.0,
        "config": {
            "image_size": [18, 20], "patch_size": [3, 5], "channels": 2, "num_classes": 8, "dim": 15,
            "depth": 3, "num_heads": 5, "mlp_dim": 19, "pool": "token", "gelu": "tanh",
            "layer_norm_eps": 1e-5, "representation_size": 11,
        },
    },
}  # fmt: skip

SMALLEST = {
    "image_size": [2, 6], "patch_size": [2, 3], "channels": 1, "num_classes": 3, "dim": 4, "depth": 1,
    "num_heads": 2, "mlp_dim": 5,
}  # fmt: skip
RULES = {
    "adam": {"weight_decay": 0.0},
    "adamw": {"weight_decay": 0.1},
    "adamw-other-betas": {"weight_decay": 0.05, "betas": [0.8, 0.95], "eps": 1e-6},
}

CURVE = {
    "image_size": [6, 8], "patch_size": [3, 2], "channels": 2, "num_classes": 5, "dim": 12, "depth": 2,
    "num_heads": 3, "mlp_dim": 20,
}  # fmt: skip
CURVE_BATCHES = (8, 8, 5)
CURVE_WEIGHT_DECAY = 0.1


def network(case, batch, label_smoothing, config, rng):
    model = hard_model(config, rng)
    images = pictures(batch, config, rng)
    labels = rng.integers(config["num_classes"], size=batch)
    if "soft" in case:
        labels = rng.dirichlet(np.ones(config["num_classes"]), size=batch)
    check_reference(model, images)
    logits, loss, gradients, image_gradient = model.measure(images, labels, label_smoothing)
    check_gradients(gradients)
    return {
        "config": json.dumps(config),
        "label_smoothing": label_smoothing,
        "images": images,
        "labels": labels,
        **named("parameters", model.arrays()),
        "logits": logits,
        "loss": loss,
        **named("gradients", gradients),
        "image_gradient": image_gradient,
    }


def adam(rng):
    """Gradients from below Adam's eps to far above it, for the place of eps to show; one tensor has none."""
    shapes = {name: array.shape for name, array in TorchViT(**SMALLEST).arrays().items()}
    start = hard_parameters(shapes, rng)
    base = {name: rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 3, shape) for name, shape in shapes.items()}
    base["pos_embed"] = np.zeros(shapes["pos_embed"])
    phase = {name: np.round(rng.uniform(0, 2 * math.pi, shape) * 1024) / 1024 for name, shape in shapes.items()}
    rates = warmup_cosine(1000, warmup=30, peak=3e-3) + 1e-4
    written = {"config": json.dumps(SMALLEST), "rates": rates}
    for kind, arrays in (("start", start), ("base", base), ("phase", phase)):
        written.update(named(kind, arrays))
    for rule, settings in RULES.items():
        path = adam_path(TorchViT(**SMALLEST).load(start), base, phase, rates, settings, STOPS)
        check_adam(path, start, base, phase, rates, **settings)
        written[f"{rule}/settings"] = json.dumps(settings)
        for stop, arrays in path.items():
            written.update(named(f"{rule}/{stop}", arrays))
    return written


def curve(rng):
    """Batches of unequal size whose classes differ in their mean picture: there is something to learn."""
    model = hard_model(CURVE, rng)
    start = model.arrays()
    prototypes = pictures(CURVE["num_classes"], CURVE, rng)
    batches = []
    for size in CURVE_BATCHES:
        labels = rng.integers(CURVE["num_classes"], size=size)
        batches.append((np.round((prototypes[labels] + pictures(size, CURVE, rng)) * 64) / 64, labels))
    rates = warmup_cosine(100, warmup=10, peak=5e-3)
    losses = model.train_on(batches, rates, CURVE_WEIGHT_DECAY)
    if not losses[-3:].mean() < 0.1 * losses[:3].mean():
        raise AssertionError(f"the model does not learn: {losses[:3]} ... {losses[-3:]}")
    print(f"curve: loss {losses[0]:.3f} to {losses[-1]:.3f}")
    written = {
        "config": json.dumps(CURVE),
        "rates": rates,
        "weight_decay": CURVE_WEIGHT_DECAY,
        "losses": losses,
    }
    for i, (images, labels) in enumerate(batches):
        written.update({f"{i}/images": images, f"{i}/labels": labels})
    return {**written, **named("start", start), **named("end", model.arrays())}


def hard_model(config, rng):
    model = TorchViT(**config)
    return model.load(hard_parameters({name: array.shape for name, array in model.arrays().items()}, rng))


def pictures(batch, config, rng):
    """Unequal samples of unequal contrast, in steps of 1/64 (small when compressed)."""
    images = rng.standard_normal((batch, *config["image_size"], config["channels"]))
    return np.round(images * np.linspace(0.5, 1.5, batch)[:, None, None, None] * 64) / 64


def warmup_cosine(steps, warmup, peak):
    t = np.arange(steps)
    return peak * np.minimum(
        (t + 1) / warmup, 0.5 * (1 + np.cos(math.pi * np.maximum(t - warmup, 0) / (steps - warmup)))
    )


def named(prefix, arrays):
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def check_reference(model, images):
    x = torch.from_numpy(images)
    with torch.no_grad():
        here, there = model(x), logits_by_another_road(model, x)
    gap = float((here - there).abs().max() / here.abs().max())
    print(f"reference against nn.TransformerEncoderLayer: {gap:.1e}")
    if gap > 1e-14:
        raise AssertionError("the reference disagrees with torch's own encoder")


def check_gradients(gradients):
    """A gradient that is zero anyway proves nothing. Only the key bias may be: softmax does not see it."""
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        parts = np.split(gradient, 3, axis=-1) if "qkv" in name else [gradient]
        sizes = [np.abs(part).max() / largest for part in parts]
        if name.endswith("qkv.bias"):
            del sizes[1]
        if min(sizes) < 1e-4:
            raise AssertionError(f"{name} has a gradient too small to be a test: {sizes}")


def check_adam(path, start, base, phase, rates, weight_decay, betas=(0.9, 0.999), eps=1e-8):
    """Kingma and Ba (arXiv 1412.6980), algorithm 1; decay as in Loshchilov and Hutter (arXiv 1711.05101)."""
    worst, beta1, beta2 = 0.0, np.longdouble(betas[0]), np.longdouble(betas[1])
    for name, value in start.items():
        decay = weight_decay if name.endswith(".weight") else 0.0
        x, m, v = value.astype(np.longdouble), np.longdouble(0), np.longdouble(0)
        for t, rate in enumerate(rates, start=1):
            g = (base[name] * np.cos(0.1 * t + phase[name])).astype(np.longdouble)
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            x = x - rate * (m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps) + decay * x)
            if t in path:
                worst = max(worst, float(np.abs(path[t][name] - x).max() / np.abs(x).max()))
    print(f"torch.optim.AdamW against the formula in extended precision: {worst:.1e}")
    if worst > 1e-14:
        raise AssertionError("torch's AdamW is not the formula of the papers")


def main():
    torch.set_num_threads(1)
    rng = np.random.default_rng(2010_11929)
    written = {}
    for case, setup in NETWORKS.items():
        written.update(named(case, network(case, rng=rng, **setup)))
    written.update(named("adam", adam(rng)))
    written.update(named("curve", curve(rng)))
    np.savez_compressed(PATH, **written)
    print(f"{PATH.name}: {len(written)} arrays, {PATH.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
