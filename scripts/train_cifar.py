#!/usr/bin/env python3
"""Train a Vision Transformer on CIFAR-10 or CIFAR-100, photographs of 32 x 32 pixels in 10 or 100 classes.

The files are looked for under --data, $VITNP_DATA, the platform's cache folder and Keras' folder, else downloaded.
"""

from pathlib import Path

from vitnp import train
from vitnp.options import add_download_options, check_held_out, load_named_set, training_parser


def load_data(args):
    return load_named_set(f"cifar{args.classes}", args)


def image_fields(args):
    check_held_out(f"cifar{args.classes}", args)
    return {"image_size": 32, "channels": 3, "num_classes": args.classes}


def make_parser():
    parser = training_parser(
        __doc__.split("\n")[0],
        patch_size=4,
        dim=96,
        depth=6,
        heads=3,
        mlp_dim=192,
        pool="mean",
        pos_init="sincos",
        epochs=12,
        batch_size=128,
        lr=2e-3,
        warmup_epochs=1.0,
        weight_decay=0.05,
        label_smoothing=0.1,
        shift=4,
        flip=True,
        held_out=1000,
        out=Path("runs/cifar10"),
    )
    parser.add_argument("--classes", type=int, choices=(10, 100), default=10, help="CIFAR-10 or CIFAR-100")
    add_download_options(parser, "the archive, or with cifar-10-batches-bin/ and the like")
    parser.add_argument("--preset", choices=("hour",), help="train for about an hour on two cores")
    parser.when("preset", "hour", epochs=44, warmup_epochs=2.0, out=Path("runs/cifar10-hour"))
    parser.when("classes", 100, out=Path("runs/cifar100"))
    return parser


if __name__ == "__main__":
    raise SystemExit(train.main(make_parser(), load_data, image_fields))
