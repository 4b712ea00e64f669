#!/usr/bin/env python3
"""Train a Vision Transformer on rendered digits: no download, about a minute on two cores.

The digits are drawn on the spot with a font, then warped, blurred and covered with noise: a data set for a first run,
not handwriting (for that, see train_mnist.py).
"""

from pathlib import Path

from vitnp import train
from vitnp.data import load_digits
from vitnp.options import training_parser

TEST_SEED = 1_000_000


def load_data(args):
    return load_digits(args.images + args.held_out, seed=args.seed), test_set(args.seed)


def test_set(seed):
    # Another seed draws other digits: no test image is a training image.
    return load_digits(2000, seed=TEST_SEED + seed)


def image_fields(args):
    return {"image_size": 28, "channels": 1, "num_classes": 10}


def make_parser():
    parser = training_parser(
        __doc__.split("\n")[0],
        patch_size=7,
        dim=64,
        depth=4,
        heads=4,
        mlp_dim=128,
        epochs=5,
        batch_size=128,
        lr=2e-3,
        warmup_epochs=0.5,
        weight_decay=0.05,
        label_smoothing=0.05,
        shift=2,
        held_out=1000,
        out=Path("runs/digits"),
    )
    parser.add_argument("--images", type=int, default=40000, help="training images to render")
    return parser


if __name__ == "__main__":
    raise SystemExit(train.main(make_parser(), load_data, image_fields))
