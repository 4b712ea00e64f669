#!/usr/bin/env python3
"""Train a Vision Transformer with each of the classic wrong gradients, beside the right one: a few minutes.

For every exhibit of vitnp.museum: what is wrong, how far its gradient is from the right one, what a gradient check
says, and how far it trains on rendered digits, from the same start, on the same batches, with the same dropout masks.
Read the last column first: many wrong gradients still train. (One or two points are chance: a gradient that is wrong in
its seventh digit alone, as linear-in-float32 is, ends as far from the right one.)
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np

import vitnp
from vitnp import museum, train
from vitnp.data import Batches, channel_statistics, load_digits
from vitnp.inspection import check_new_picture
from vitnp.museum.pictures import Curve, curves_picture

TEST_SEED = 1_000_000
NETWORK = {"patch_size": 7, "dim": 32, "depth": 2, "num_heads": 4, "mlp_dim": 64, "dropout": 0.05}
BATCH, PEAK = 128, 1.2e-2


class Bench:
    """The digits, and one recipe for all: train a network and test it, or compare two gradients."""

    def __init__(self, args):
        digits, test = load_digits(args.images, seed=args.seed), load_digits(2000, seed=TEST_SEED + args.seed)
        mean, std = channel_statistics(digits.images)
        batches = Batches(digits, BATCH, seed=args.seed, mean=mean, std=std)
        self.batches = lambda: itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
        self.test, self.scale = test, {"mean": mean, "std": std}
        self.args, self.config = args, vitnp.ViTConfig(**NETWORK)

    def model(self):
        return vitnp.VisionTransformer(self.config, rng=self.args.seed)

    def train(self, model, optimizer, name, kind):
        """Train `model`, and return its curve; one that diverges has no more steps from there on."""
        optimizer = optimizer(model, weight_decay=0.05)
        step = vitnp.ShardedStep(model, optimizer, shards=self.args.shards, clip_norm=1.0, rng=self.args.seed)
        steps, accuracies = self.args.steps, []
        try:
            for i, (images, labels) in enumerate(itertools.islice(self.batches(), steps)):
                optimizer.lr = vitnp.warmup_decay(i, peak=PEAK, total_steps=steps, warmup_steps=steps // 10)
                step.step(images, labels)
                accuracies.append(int(step.correct) / len(labels))
            tested = vitnp.evaluate(model, self.test.images, self.test.labels, **self.scale)
        except (FloatingPointError, ValueError):  # the gradient or the logits are no longer finite
            return Curve(name, kind, accuracies, math.nan)
        return Curve(name, kind, accuracies, tested.accuracy)

    def error(self, exhibit, model):
        """How far the exhibit's gradient is from the right one at the parameters of `model`, on the first batch."""
        right, (images, labels) = model.astype("float64"), next(self.batches())
        return museum.relative_error(exhibit.install(right), right, images.astype("float64"), labels)


def with_a_head(model, seed):
    """Fill a new model's head, for zeros in it let no gradient through."""
    head = model.classifier.head.weight
    head[...] = np.random.default_rng(seed).standard_normal(head.shape) / math.sqrt(len(head))
    return model


def check(exhibit, seed):
    """What a gradient check says of a small network in which nothing is zero, square or alone, and the first tensor.

    That is the first whose gradient is wrong on the way back from the loss: the mistake is in its layer or right above.
    """
    rng = np.random.default_rng(seed)
    sizes = {"image_size": (6, 8), "patch_size": (3, 2), "channels": 2, "num_classes": 7}
    sizes |= {"dim": 6, "depth": 2, "num_heads": 2, "mlp_dim": 10, "dropout": 0.2, "attention_dropout": 0.3}
    model = vitnp.VisionTransformer(vitnp.ViTConfig(**sizes), dtype="float64")
    for parameter in model.parameters().values():
        parameter[...] = 0.5 * rng.standard_normal(parameter.shape)
    report = vitnp.gradcheck(exhibit.install(model), rng.standard_normal((3, 6, 8, 2)), [3, 0, 5])
    return report, museum.first_on_the_way_back(model, [row.name for row in report.rows if row.verdict == "FAIL"])


def show(exhibit):
    print(f"\n{exhibit.name}: {exhibit.title}")
    print(f"    wrong  {exhibit.wrong}\n           {exhibit.why}\n    right  {exhibit.right}")


def choose(only):
    """Return the exhibits of --only, each once."""
    if only in ("all", ["all"]):
        return museum.exhibits()
    if "all" in only:
        raise ValueError(f"--only is {' '.join(only)}; expected all, or names, not both")
    return [museum.exhibit(name) for name in dict.fromkeys(only)]


def run(args):
    for name, least in (("steps", 1), ("images", BATCH), ("seed", 0), ("shards", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    chosen = choose(args.only)
    if args.out.exists() and not args.out.is_dir():
        raise NotADirectoryError(f"--out is {args.out}, a file; expected a folder, or a name for a new one")
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.out / "wrong_gradients.png"
    check_new_picture(picture)
    bench = Bench(args)
    trained = bench.model()
    right = bench.train(trained, vitnp.Adam, "right", "right")
    print(f"{args.steps} steps of {BATCH} digits: the right gradient gets {percent(right)} of the test right")
    curves, lines = [], [row("right", "", 0, 0, "PASS", "", right)]
    for exhibit in chosen:
        show(exhibit)
        start = bench.error(exhibit, with_a_head(bench.model(), args.seed))
        end = bench.error(exhibit, trained)
        report, first = check(exhibit, args.seed)
        curve = bench.train(exhibit.install(bench.model()), exhibit.optimizer, exhibit.name, exhibit.kind)
        print(f"    gradient off by {start:.1e} of its length at the start, {end:.1e} where the right one has trained")
        print(f"    gradcheck {report.verdict}{f', first at {first} on the way back' if first else ''}")
        print(f"    accuracy {percent(curve)}, the right one's {percent(right)}", flush=True)
        worst = f"{report.worst.error:.0e} {report.worst.name}"
        lines.append(row(exhibit.name, exhibit.kind, start, end, report.verdict, worst, curve))
        curves.append(curve)
    print("\n" + row("exhibit", "wrong", "at start", "trained", "check", "worst tensor", "accuracy"), *lines, sep="\n")
    near = sum(curve.tested >= right.tested - 0.05 for curve in curves)
    print(f"\n{near} of {len(curves)} end within 5 points of the right one, or above it")
    title = f"Wrong beside right: accuracy on the training batches of {args.steps} steps; the number is the test's"
    curves_picture(title, right, curves, picture)
    print(f"the curves are in {picture}")
    return 0


def row(name, kind, start, end, verdict, worst, curve):
    """A line of the table; start and end are numbers, or the heads of their columns."""
    start, end = (value if isinstance(value, str) else f"{value:.1e}" for value in (start, end))
    accuracy = curve if isinstance(curve, str) else percent(curve)
    return f"{name:31} {kind:8} {start:>8} {end:>8}  {verdict:5} {worst:32} {accuracy:>8}"


def percent(curve):
    return "diverged" if math.isnan(curve.tested) else f"{100 * curve.tested:.1f} %"


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600, help="training steps of each network")
    parser.add_argument("--only", nargs="+", metavar="NAME", default="all", help="the exhibits to show, or all")
    parser.add_argument("--images", type=int, default=20000, help="training images to render")
    parser.add_argument("--seed", type=int, default=0, help="of parameters, digits, their order and dropout")
    parser.add_argument("--shards", type=int, default=2, help="parts of a batch, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/museum"), help="folder for the picture")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    args = make_parser().parse_args()
    raise SystemExit(train.report_errors(lambda: run(args), debug=args.debug))
