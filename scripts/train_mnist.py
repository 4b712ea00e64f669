#!/usr/bin/env python3
"""Train a Vision Transformer on MNIST, handwritten digits, or Fashion-MNIST, clothes in the same format.

The four files are looked for under --data, $VITNP_DATA, the platform's cache folder and Keras' folder, else downloaded.
"""

from pathlib import Path

from vitnp import train
from vitnp.options import add_download_options, check_held_out, load_named_set, training_parser

# Networks so small that they underfit: nothing makes the images harder, and larger steps, and more of them.
TINY = {
    "dim": 12,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 24,
    "epochs": 40,
    "lr": 1e-2,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
    "distort": 0.0,
    "pos_init": "normal",
}
SMALL = {
    "dim": 32,
    "depth": 3,
    "heads": 4,
    "mlp_dim": 60,
    "epochs": 30,
    "lr": 4e-3,
    "distort": 0.0,
    "pos_init": "normal",
}
# Patches of 7 pixels: a third of the tokens. In so few epochs the rate may be higher, and has to rise sooner.
FAST = {
    "patch_size": 7,
    "epochs": 7,
    "lr": 4e-3,
    "warmup_epochs": 0.5,
}


def load_data(args):
    return load_named_set("fashion-mnist" if args.fashion else "mnist", args)


def image_fields(args):
    check_held_out("mnist", args)
    return {"image_size": 28, "channels": 1, "num_classes": 10}


def make_parser():
    parser = training_parser(
        __doc__.split("\n")[0],
        patch_size=4,
        dim=64,
        depth=4,
        heads=4,
        mlp_dim=128,
        pool="mean",
        pos_init="sincos",
        epochs=30,
        batch_size=128,
        lr=3e-3,
        warmup_epochs=1.0,
        weight_decay=0.05,
        label_smoothing=0.05,
        distort=0.4,
        shift=1,
        held_out=2000,
        out=Path("runs/mnist"),
    )
    add_download_options(parser, "the files, themselves or in mnist/ or MNIST/raw/")
    parser.add_argument("--fashion", action="store_true", help="Fashion-MNIST instead of MNIST")
    parser.add_argument(
        "--preset",
        choices=("tiny", "small", "fast"),
        help="a network of 3,514 or 27,358 parameters, or one that trains in a minute",
    )
    parser.when("preset", "tiny", out=Path("runs/mnist-tiny"), **TINY)
    parser.when("preset", "small", out=Path("runs/mnist-small"), **SMALL)
    parser.when("preset", "fast", out=Path("runs/mnist-fast"), **FAST)
    parser.when("fashion", True, out=Path("runs/fashion"), flip=True, distort=0.0)
    return parser


if __name__ == "__main__":
    raise SystemExit(train.main(make_parser(), load_data, image_fields))
