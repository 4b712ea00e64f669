#!/usr/bin/env python3
"""Check every hand-written gradient: each layer alone, then a whole Vision Transformer.

The set-up is made to hide nothing: three unequal samples, sizes that are all different, images and patches that are
not square, random parameters everywhere (a head of zeros would hide nearly every error below it), dropout on.
The exit status is the verdict: 0 if every gradient is right.
"""

import argparse

import numpy as np

import vitnp
from vitnp import layers, train

B, N, D, HEADS, MLP_DIM = 3, 5, 6, 2, 10


def make_targets(rng):
    """Return (target, input, labels) of every check."""
    kw = {"dtype": "float64"}
    tokens = rng.standard_normal((B, N, D))
    rates = {"dropout": 0.2, "attention_dropout": 0.3}
    images = rng.standard_normal((B, 6, 8, 2))
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
    ]
    sizes = {"image_size": (6, 8), "patch_size": (3, 2), "channels": 2, "num_classes": 7}
    sizes |= {"dim": D, "depth": 2, "num_heads": HEADS, "mlp_dim": MLP_DIM, **rates}
    models = [
        vitnp.VisionTransformer(vitnp.ViTConfig(**sizes, pool="token", gelu="tanh"), **kw),
        vitnp.VisionTransformer(vitnp.ViTConfig(**sizes, pool="mean", gelu="erf", representation_size=9), **kw),
    ]
    for layer in [*(target for target, _ in targets), *models]:
        for parameter in layer.parameters().values():
            parameter[...] = 0.5 * rng.standard_normal(parameter.shape)
    return [*((*target, None) for target in targets), *((model, images, [3, 0, 5]) for model in models)]


def check_all(args):
    reports = []
    for target, x, labels in make_targets(np.random.default_rng(args.seed)):
        target = target if args.device == "cpu" else target.to_device(args.device)
        x = vitnp.to_device(x, args.device)
        report = vitnp.gradcheck(target, x, labels, method=args.method, mode=args.mode, seed=args.seed)
        print(report, end="\n\n")
        reports.append(report)
    passed, worst = sum(report.ok for report in reports), max(report.worst.error for report in reports)
    tensors = sum(len(report.rows) for report in reports)
    print(f"{passed} of {len(reports)} targets pass: {tensors} tensors, largest error {worst:.0e}")
    return 0 if passed == len(reports) else 1


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--method", choices=("auto", "complex", "central"), default="auto", help="numeric derivative")
    parser.add_argument("--mode", choices=("auto", "full", "directions"), default="auto", help="what is perturbed")
    parser.add_argument("--seed", type=int, default=0, help="of parameters, inputs and directions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    args = make_parser().parse_args()
    raise SystemExit(train.report_errors(lambda: check_all(args), debug=args.debug))
