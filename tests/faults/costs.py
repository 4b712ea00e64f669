"""What it costs to save, and to look for NaN and infinity."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import vitnp
from vitnp.nonfinite import check_update, check_variances
from vitnp.optim import in_one_part

WORKLOADS = {
    "mnist-p7": ({"image_size": 28, "patch_size": 7, "dim": 64, "depth": 6}, 128),
    "cifar-96": ({"image_size": 32, "patch_size": 4, "channels": 3, "dim": 96, "depth": 6, "num_heads": 3}, 128),
}


def save_and_load(path: Path) -> tuple[float, float]:
    """Return the median seconds for the full state of a ViT-Ti/16: weights and both moments, none of them zeros."""
    model = vitnp.VisionTransformer(vitnp.ViTConfig.named("Ti/16"), rng=0)
    optimizer, rng = vitnp.Adam(model), np.random.default_rng(0)
    optimizer.m[...], optimizer.v[...] = rng.standard_normal(optimizer.m.size), rng.random(optimizer.v.size)
    previous = path.with_name("previous")
    saving = _median(lambda: vitnp.save_checkpoint(path, model, optimizer, previous=previous))
    return saving, _median(lambda: vitnp.load_checkpoint(path))


def share_of_checks(name: str) -> float:
    """Return the share of a training step that its looking for NaN and infinity takes, were its norm not needed anyway.

    On one core and shard: what a step looks at are the logits, rstd of every layer norm, the gradient's norm, and the
    parameters after their update.
    """
    fields, batch = WORKLOADS[name]
    model = vitnp.VisionTransformer(vitnp.ViTConfig(**fields), rng=0)
    step = vitnp.ShardedStep(model, vitnp.Adam(model), shards=1, clip_norm=1.0)
    rng, config = np.random.default_rng(0), model.config
    images = rng.standard_normal((batch, *config.image_size, config.channels)).astype("float32")
    labels = rng.integers(0, config.num_classes, batch)
    whole = _median(lambda: step.step(images, labels))
    logits, ctx = model.forward(images), step.contexts[0]
    gradients = ctx.flat_grad(model.layout, like=model.flat)

    def look() -> None:
        check_variances(step._norms, ctx)
        assert (logits.real < np.inf).all()
        assert np.isfinite(np.sqrt(gradients @ gradients))
        check_update(model, in_one_part)

    return _median(look, 101) / whole


def _median(work: Callable[[], object], times: int = 15) -> float:
    work()
    return statistics.median(_seconds(work) for _ in range(times))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
