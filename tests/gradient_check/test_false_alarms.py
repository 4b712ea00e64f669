"""A hundred right networks of random shapes, none of which may fail, by any method, as a whole or layer by layer."""

import numpy as np
import pytest
from helpers import normal, randomize

from vitnp import VisionTransformer, ViTConfig, check_layers, gradcheck

SEEDS = range(100)
FEWER = range(25)  # for methods that take several times as long


def network(seed):
    """A random network, a batch for it, and a label smoothing.

    Tokens have four features at least: a layer norm of two keeps their signs alone, and no gradient comes through.
    """
    rng = np.random.default_rng(seed)
    heads, head_size = rng.choice([(1, 4), (1, 5), (2, 2), (2, 3), (3, 2), (3, 3)])
    patch = rng.integers(1, 4, 2)
    size = patch * rng.integers(1, 4, 2)
    config = ViTConfig(
        image_size=tuple(size.tolist()),
        patch_size=tuple(patch.tolist()),
        channels=int(rng.integers(1, 4)),
        num_classes=int(rng.integers(2, 6)),
        dim=int(heads * head_size),
        depth=int(rng.integers(1, 4)),
        num_heads=int(heads),
        mlp_dim=int(rng.integers(2, 9)),
        dropout=float(rng.choice([0, 0.2])),
        attention_dropout=float(rng.choice([0, 0.3])),
        pool=str(rng.choice(["token", "mean"])),
        gelu=str(rng.choice(["tanh", "erf"])),
        representation_size=int(rng.integers(2, 7)) if rng.random() < 0.3 else None,
    )
    model = randomize(VisionTransformer(config, rng=None, dtype="float64"), seed=seed)
    images = normal((int(rng.integers(2, 5)), *config.image_size, config.channels), seed + 1)
    labels = rng.integers(0, config.num_classes, len(images))
    return model, images, labels, float(rng.choice([0, 0.1]))


@pytest.mark.parametrize(("method", "seeds"), [("complex", SEEDS), ("richardson", FEWER), ("5point", FEWER)])
def test_no_right_network_fails(method, seeds):
    for seed in seeds:
        model, images, labels, smoothing = network(seed)
        report = gradcheck(
            model, images, labels, label_smoothing=smoothing, method=method, mode="directions", seed=seed
        )
        assert report.verdict == "PASS", f"seed {seed}\n{report}"


def test_no_layer_of_a_right_network_fails():
    for seed in SEEDS:
        model, images, labels, smoothing = network(seed)
        report = check_layers(model, images, labels, label_smoothing=smoothing, seed=seed)
        assert not [row for row in report.rows if row.verdict not in ("PASS", "ZERO")], f"seed {seed}\n{report}"
