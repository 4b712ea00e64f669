#!/usr/bin/env python3
"""Train a Vision Transformer on your own images: a folder with a sub-folder per class.

    python scripts/train_folder.py --data FOLDER        FOLDER/cat/1.jpg, FOLDER/dog/2.png, ...

A tenth of each class is held out for the test, unless FOLDER holds just a folder train and a folder test, or another
folder of the same classes is given with --test-data; of the rest, a tenth or --held-out images are for validation.
Images are cut to their centre and scaled.
"""

import os
from pathlib import Path

from vitnp import train
from vitnp.data import find_splits
from vitnp.folder_runs import hold_out_a_tenth, read_splits
from vitnp.options import training_parser


def find_data(args):
    return find_splits(args.data, args.test_data, args.test_share, args.seed)


def image_fields(args):
    training = find_data(args)[0]
    hold_out_a_tenth(args, training)
    return {"image_size": args.image_size, "channels": args.channels, "num_classes": len(training.class_names)}


def load_data(args):
    return read_splits(args, find_data(args))


def make_parser():
    parser = training_parser(
        __doc__.split("\n")[0],
        patch_size=8,
        dim=128,
        depth=6,
        heads=4,
        mlp_dim=256,
        epochs=30,
        batch_size=64,
        lr=1e-3,
        warmup_epochs=2.0,
        weight_decay=0.05,
        label_smoothing=0.1,
        shift=4,
        held_out=None,  # a tenth, once they are counted
        out=Path("runs/folder"),
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with a sub-folder per class")
    parser.add_argument("--test-data", type=os.path.abspath, help="another one, for the test alone")
    parser.add_argument("--test-share", type=float, default=0.1, help="of each class, held out where there is none")
    parser.add_argument("--image-size", type=int, default=64, help="pixels on a side that images are scaled to")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 for grey, 3 for colour")
    return parser


if __name__ == "__main__":
    raise SystemExit(train.main(make_parser(), load_data, image_fields))
