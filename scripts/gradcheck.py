#!/usr/bin/env python3
"""Check every hand-written gradient: each layer alone, then a whole Vision Transformer; or one of any size.

    python scripts/gradcheck.py                              every layer and two small networks, every coordinate
    python scripts/gradcheck.py --model Ti/16 --layers       each layer of a ViT-Ti/16, with its own real input
    python scripts/gradcheck.py --model tiny --images digits
    python scripts/gradcheck.py --v-curve attention          how the error depends on the step, for five methods

The set-up is made to hide nothing: three unequal samples, sizes that are all different, images and patches that are
not square, random parameters everywhere (a head of zeros would hide nearly every error below it), dropout on.
The exit status is the verdict: 0 if every gradient is right.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import vitnp
from vitnp import data, layers, train
from vitnp.gradient_check import v_curve
from vitnp.gradient_check.derivatives import METHODS
from vitnp.inspection import check_new_picture

B, N, D, HEADS, MLP_DIM = 3, 5, 6, 2, 10

LESSON = """\
From large steps to small: first a difference is wrong by truncation, for it is a secant; its error falls as h
(forward), h^2 (central), h^4 (5-point, Richardson). Then rounding takes over, as 1e-16/h, and the smaller step is the
worse one. At the bottom of that V lies the best that a difference can do. The complex step subtracts nothing: its
error falls as h^2 down to the last digits, and stays there.
"""


NO_TRUNCATION = """\
What this layer computes has no third derivative, and a difference of large steps leaves nothing out but for the forward
one: of the V only the left arm is there, rounding, as 1e-16/h. A layer that bends, as attention, shows the whole.
"""


def make_targets(rng):
    """Return (target, input, labels) of every check."""
    kw = {"dtype": "float64"}
    tokens = rng.standard_normal((B, N, D))
    rates = {"dropout": 0.2, "attention_dropout": 0.3}
    images, maps = rng.standard_normal((B, 6, 8, 2)), rng.standard_normal((B, 5, 7, 4))
    targets = [
        (layers.Linear(D, 4, **kw), tokens),
        (layers.LayerNorm(D, **kw), tokens),
        (layers.GELU("tanh"), tokens),
        (layers.GELU("erf"), tokens),
        (layers.Tanh(), tokens),
        (layers.Dropout(0.3), tokens),
        (layers.Softmax(), tokens),
        (layers.PatchEmbed((6, 8), (3, 2), 2, D, **kw), images),
        (layers.Embeddings(N, D, **kw), tokens),
        (layers.Attention(D, HEADS, dropout=0.3, **kw), tokens),
        (layers.MLP(D, MLP_DIM, dropout=0.2, **kw), tokens),
        (layers.Block(D, HEADS, MLP_DIM, **rates, **kw), tokens),
        (layers.ClassifierHead(D, 7, pool="token", **kw), tokens),
        (layers.ClassifierHead(D, 7, pool="mean", representation_size=9, **kw), tokens),
        (layers.ClassifierHead(D, 7, pool="mean-norm", registers=2, **kw), tokens),
        # the paper's appendix, and later papers
        (layers.Positions("learned-2d", (2, 2), D, **kw), tokens),
        (layers.RelativePositions((2, 2), 3, **kw), rng.standard_normal((B, HEADS, N, 3))),
        (layers.RasterPositions(4, 3, **kw), rng.standard_normal((B, HEADS, N, 3))),
        (layers.StochasticDepth(0.2), tokens),
        (layers.LayerScale(D, 0.1, **kw), tokens),
        (layers.PatchCorruption(N, D, **kw), tokens),
        # a hybrid's ResNet
        (layers.StdConv(4, 6, 3, 2, **kw), maps),
        (layers.GroupNorm(4, 2, **kw), maps),
        (layers.ReLU(), maps),
        (layers.MaxPool(), maps),
        (layers.BottleneckUnit(4, 3, 2, groups=3, **kw), maps),
    ]
    sizes = {"image_size": (6, 8), "patch_size": (3, 2), "channels": 2, "num_classes": 7}
    sizes |= {"dim": D, "depth": 2, "num_heads": HEADS, "mlp_dim": MLP_DIM, **rates}
    models = [
        vitnp.VisionTransformer(vitnp.ViTConfig(**sizes, pool="token", gelu="tanh"), **kw),
        vitnp.VisionTransformer(vitnp.ViTConfig(**sizes, pool="mean", gelu="erf", representation_size=9), **kw),
    ]
    for layer in [*(target for target, _ in targets), *models]:
        randomize(layer, rng)
    return [*((*target, None) for target in targets), *((model, images, [3, 0, 5]) for model in models)]


def randomize(layer, rng):
    """Fill the parameters with numbers that hide nothing."""
    for parameter in layer.parameters().values():
        parameter[...] = 0.5 * rng.standard_normal(parameter.shape)


def load_images(args):
    """Return (images, labels, number of classes) for --model."""
    rng = np.random.default_rng(args.seed)
    if args.images == "random":
        side = 224 if args.image_size is None else args.image_size
        return rng.standard_normal((args.batch, side, side, 3)), rng.integers(0, 1000, args.batch), 1000
    load = {"digits": lambda: data.load_digits(1000), "mnist": data.load_mnist, "cifar10": data.load_cifar10}
    found = load[args.images]()
    if args.batch > len(found):
        raise ValueError(f"--batch is {args.batch}; there are {len(found)} images: ask for at most so many")
    chosen = found.subset(rng.choice(len(found), args.batch, replace=False))
    mean, std = data.channel_statistics(found.images[:1000])
    return data.normalize(chosen.images, mean, std, "float64"), chosen.labels, len(found.class_names)


def make_model(args, images, classes):
    """Return the --model for such images, all of its parameters random."""
    fields = {"image_size": images.shape[1:3], "channels": images.shape[3], "num_classes": classes}
    if args.model == "tiny":
        if images.shape[1] < 4:
            raise ValueError(f"--image-size is {images.shape[1]}; the tiny model needs at least 4")
        fields["patch_size"] = images.shape[1] // 4
        config = vitnp.ViTConfig(dim=12, depth=2, num_heads=2, mlp_dim=18, **fields)
    else:
        config = vitnp.ViTConfig.named(args.model, **fields)
    model, rng = vitnp.VisionTransformer(config, rng=args.seed, dtype="float64"), np.random.default_rng(args.seed)
    for parameter in model.parameters().values():
        parameter += 0.02 * rng.standard_normal(parameter.shape)  # else the head and the class token are zero
    return model


def check_model(args):
    """One model: every layer by itself, or every tensor through the loss."""
    images, labels, classes = load_images(args)
    model = make_model(args, images, classes).to_device(args.device)
    images = vitnp.to_device(images, args.device)
    if args.layers:
        method = "complex" if args.method == "auto" else args.method
        report = vitnp.check_layers(model, images, labels, method=method, seed=args.seed)
    else:
        report = vitnp.gradcheck(model, images, labels, method=args.method, mode=args.mode, seed=args.seed)
    print(report.to_json() if args.json else report)
    return 0 if report.ok else 1


def check_all(args):
    """Every layer and two small networks."""
    reports = []
    for target, x, labels in make_targets(np.random.default_rng(args.seed)):
        target = target if args.device == "cpu" else target.to_device(args.device)
        x = vitnp.to_device(x, args.device)
        reports.append(vitnp.gradcheck(target, x, labels, method=args.method, mode=args.mode, seed=args.seed))
        if not args.json:
            print(reports[-1], end="\n\n")
    if args.json:
        print(json.dumps([json.loads(report.to_json()) for report in reports]))
    else:
        passed, worst = sum(report.ok for report in reports), max(report.worst.error for report in reports)
        tensors = sum(len(report.rows) for report in reports)
        print(f"{passed} of {len(reports)} targets pass: {tensors} tensors, largest error {worst:.0e}")
    return 0 if all(report.ok for report in reports) else 1


def draw_curve(args):
    """The V-curve of one layer, as a table, and as a picture where one is asked for."""
    targets = dict[str, tuple]()
    for target, x, labels in make_targets(np.random.default_rng(args.seed)):
        name = type(target).__name__.lower()
        targets[f"{name}-2" if name in targets else name] = target, x, labels
    if args.v_curve not in targets:
        raise ValueError(f"--v-curve is {args.v_curve!r}; choose one of {', '.join(targets)}")
    if args.picture is not None:
        check_new_picture(args.picture)
    curve = v_curve(*targets[args.v_curve])
    print(curve, LESSON if curve.has_truncation else NO_TRUNCATION, sep="\n\n", end="")
    if args.picture is not None:
        curve.draw(args.picture)
    return 0


def check_options(args):
    """Raise ValueError for numbers that are none, and for options that would change nothing."""
    for name, least in (("batch", 1), ("seed", 0), ("image_size", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    curve = args.v_curve is not None
    needs = [
        *((name, args.model is not None, "--model") for name in ("layers", "images", "image_size", "batch")),
        ("picture", curve, "--v-curve"),
        *((name, not curve, "a check, without --v-curve") for name in ("json", "model", "method", "mode", "device")),
        ("mode", not args.layers, "a check without --layers, which take one direction each"),
        ("image_size", args.images == "random", "--images random"),
    ]
    for name, fits, what in needs:
        if getattr(args, name) != make_parser().get_default(name) and not fits:
            raise ValueError(f"--{name.replace('_', '-')} would change nothing: it needs {what}")


def run(args):
    check_options(args)
    if args.v_curve is not None:
        return draw_curve(args)
    return check_all(args) if args.model is None else check_model(args)


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", help="check this one instead: tiny, or a published size as Ti/16 or B/32")
    parser.add_argument(
        "--images", choices=("random", "digits", "mnist", "cifar10"), default="random", help="its input"
    )
    parser.add_argument("--image-size", type=int, help="side of random images, 224 unless said")
    parser.add_argument("--batch", type=int, default=2, help="how many images")
    parser.add_argument("--layers", action="store_true", help="each layer of it by itself, where a fault shows once")
    parser.add_argument("--method", choices=("auto", *METHODS), default="auto", help="numeric derivative")
    parser.add_argument("--mode", choices=("auto", "full", "directions"), default="auto", help="what is perturbed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--v-curve", metavar="LAYER", help="error against step size instead, for a layer as attention")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="of the V-curve; needs matplotlib")
    parser.add_argument("--seed", type=int, default=0, help="of parameters, inputs and directions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    args = make_parser().parse_args()
    raise SystemExit(train.report_errors(lambda: run(args), debug=args.debug))
