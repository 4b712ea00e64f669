#!/usr/bin/env python3
"""Time training steps: forward, cross-entropy, backward and Adam, in float32; with --compare, beside PyTorch's.

Both sides start from the same weights and see the same batch, take turns in one process, and their losses are compared,
so that neither is timed at other work. Medians count; on a shared machine only ratios do. Further sides tell what data
cost: the same step on images that are shifted, flipped (and changed by RandAugment) ahead of it on a thread.
"""

import argparse
import functools
import itertools
import statistics
import time

import numpy as np

import vitnp
from vitnp import train
from vitnp.data import Augmentation, Batches, Dataset, channel_statistics, prepared_ahead

WORKLOADS = {
    "mnist-p7": (
        128,
        {"image_size": 28, "patch_size": 7, "channels": 1, "dim": 64, "depth": 6, "num_heads": 4, "mlp_dim": 128},
    ),
    "mnist-p4": (
        128,
        {"image_size": 28, "patch_size": 4, "channels": 1, "dim": 64, "depth": 4, "num_heads": 4, "mlp_dim": 128},
    ),
    "cifar-96": (
        128,
        {"image_size": 32, "patch_size": 4, "channels": 3, "dim": 96, "depth": 6, "num_heads": 3, "mlp_dim": 192},
    ),
    "cifar-192": (
        128,
        {"image_size": 32, "patch_size": 4, "channels": 3, "dim": 192, "depth": 6, "num_heads": 3, "mlp_dim": 768},
    ),
    "ti-224": (8, vars(vitnp.ViTConfig.named("Ti/16"))),
}
LEARNING_RATE = 1e-3
TURN = 0.5  # seconds


def vitnp_step(model, images, labels, device):
    """Return a function that takes one training step and returns its loss."""
    model = model.to_device(device)
    step = vitnp.ShardedStep(model, vitnp.Adam(model, LEARNING_RATE))
    images = vitnp.to_device(images, device)
    return lambda: float(step.step(images, labels))


def torch_step(model, images, labels, device):
    """Return the same for PyTorch in eager mode, with its fused attention, from the same weights."""
    import torch
    import torch.nn.functional as F

    config = model.config
    p = {
        # F.linear wants weights as (d_out, d_in)
        name: torch.tensor(array.T.copy() if name.endswith(".weight") else array, device=device, requires_grad=True)
        for name, array in model.parameters().items()
    }
    optimizer = torch.optim.Adam(p.values(), LEARNING_RATE)
    x, y = torch.tensor(images, device=device), torch.tensor(labels, device=device)
    (H, W), (P, _), C = config.image_size, config.patch_size, config.channels
    patches = x.reshape(len(x), H // P, P, W // P, P, C).swapaxes(2, 3).reshape(len(x), -1, P * P * C)

    def linear(x, name):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (config.dim,), p[f"{name}.gamma"], p[f"{name}.beta"], config.layer_norm_eps)

    def forward():
        x = linear(patches, "patch_embed")
        x = torch.cat([p["cls_token"].expand(len(x), -1, -1), x], 1) + p["pos_embed"]
        for i in range(config.depth):
            name = f"blocks.{i}"
            qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
            q, k, v = qkv.unflatten(-1, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + linear(heads, f"{name}.attn.proj")
            hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"), approximate="tanh")
            x = x + linear(hidden, f"{name}.mlp.fc2")
        return linear(norm(x[:, 0], "norm"), "head")

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def augmented_step(model, images, labels, device, **changes):
    """Return the step of vitnp where every batch is chosen, augmented and normalised while the one before trains."""
    rng, batch = np.random.default_rng(0), len(images)
    images = rng.integers(0, 256, (16 * batch, *images.shape[1:]), np.uint8)
    names = tuple(map(str, range(model.config.num_classes)))
    dataset = Dataset(images, np.tile(labels, 16), names, "noise")
    mean, std = channel_statistics(images)
    batches = Batches(dataset, batch, mean=mean, std=std, augmentation=Augmentation(**changes))
    stream = prepared_ahead(batch for epoch in itertools.count() for batch in batches.epoch(epoch))
    model = model.to_device(device)
    step = vitnp.ShardedStep(model, vitnp.Adam(model, LEARNING_RATE))

    def take():
        images, labels = next(stream)
        return float(step.step(vitnp.to_device(images, device), labels))

    return take


SIDES = {
    "vitnp": vitnp_step,
    "torch": torch_step,
    "shift-flip": functools.partial(augmented_step, shift=4, flip=True),
    "rand-augment": functools.partial(augmented_step, shift=4, flip=True, rand_augment=9.0),
}


def time_in_turn(steps, seconds):
    """Return the milliseconds of each side's steps, taken in turns for so many seconds, and their first losses."""
    losses = {side: [step() for _ in range(3)] for side, step in steps.items()}
    times = {side: [] for side in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["vitnp"]) < 5:
        for side, step in steps.items():
            step()  # not counted: the other side's threads may still spin, waiting for work
            turn = time.perf_counter() + TURN
            while (start := time.perf_counter()) < turn:
                step()
                times[side].append(1000 * (time.perf_counter() - start))
    return times, losses


def benchmark(args):
    sides = ["vitnp", *args.compare]
    columns = " ".join(f"{side + ' ms':>15} {'images/s':>9}" for side in sides)
    print(f"{'workload':10} {'batch':>5} {columns}   {'faster by' if args.compare else ''}")
    for name in args.workloads:
        batch, sizes = WORKLOADS[name]
        config = vitnp.ViTConfig(**sizes)
        model = vitnp.VisionTransformer(config, rng=0)
        rng = np.random.default_rng(0)
        images = rng.standard_normal((batch, *config.image_size, config.channels), np.float32)
        labels = rng.integers(0, config.num_classes, batch)
        steps = {side: SIDES[side](model.astype("float32"), images, labels, args.device) for side in sides}
        times, losses = time_in_turn(steps, args.seconds)
        for side in {"torch"}.intersection(args.compare):
            if not np.allclose(losses[side], losses["vitnp"], rtol=1e-4):
                raise ValueError(f"{side} computes other losses, {losses[side]}, than vitnp, {losses['vitnp']}")
        medians = {side: statistics.median(values) for side, values in times.items()}
        row = " ".join(f"{ms:15.1f} {1000 * batch / ms:9,.0f}" for ms in medians.values())
        ratios = " ".join(f"{medians[side] / medians['vitnp']:.2f}" for side in args.compare)
        print(f"{name:10} {batch:5} {row}   {ratios}", flush=True)
    return 0


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument(
        "--compare", action="append", choices=list(SIDES)[1:], default=[], help="time it in the same run"
    )
    parser.add_argument("--seconds", type=float, default=20, help="how long to measure a workload, all sides together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    parser = make_parser()
    args = parser.parse_args()
    if unknown := [name for name in args.workloads if name not in WORKLOADS]:
        parser.error(f"there is no workload {unknown[0]!r}; choose from {', '.join(WORKLOADS)}")
    raise SystemExit(train.report_errors(lambda: benchmark(args), debug=args.debug))
