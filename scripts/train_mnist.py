#!/usr/bin/env python3
"""Train a Vision Transformer on MNIST, handwritten digits, or Fashion-MNIST, clothes in the same format.

The four files are looked for under --data, $VITNP_DATA, the platform's cache folder and Keras' folder, else downloaded.
"""

from pathlib import Path

from vitnp import train
from vitnp.data import load_mnist


def load_data(args):
    return load_mnist("train", args.data), load_mnist("test", args.data)


def image_fields(args):
    return {"image_size": 28, "channels": 1, "num_classes": 10}


def make_parser():
    parser = train.training_parser(
        __doc__.split("\n")[0],
        patch_size=4,
        dim=64,
        depth=4,
        heads=4,
        mlp_dim=128,
        epochs=14,
        batch_size=128,
        lr=3e-3,
        warmup_epochs=1.0,
        weight_decay=0.05,
        label_smoothing=0.05,
        shift=2,
        held_out=2000,
        out=Path("runs/mnist"),
    )
    parser.add_argument("--data", type=Path, help="folder with the files, themselves or in mnist/ or MNIST/raw/")
    return parser


if __name__ == "__main__":
    raise SystemExit(train.main(make_parser(), load_data, image_fields))
