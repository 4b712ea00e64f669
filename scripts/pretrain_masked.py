#!/usr/bin/env python3
"""Pre-train a Vision Transformer without labels: half of the patches are hidden, and their colours to be predicted.

    python scripts/pretrain_masked.py --set cifar10
    python scripts/pretrain_masked.py --set folder --data FOLDER     FOLDER/one/1.jpg, FOLDER/other/2.png, ...
    python scripts/probe.py runs/masked/backbone.safetensors         what a linear classifier reads from its features

Accuracies are the share of hidden patches whose mean colour, 3 bits a channel, was predicted right.
"""

from pathlib import Path

from vitnp import data, train
from vitnp.folder_runs import hold_out_a_tenth, read_splits
from vitnp.options import add_download_options, check_held_out, load_named_set, training_parser
from vitnp.pretraining import MaskedTrainer, masked_model

HELD_OUT = 1000  # for validation, of a data set that has a name


def find_folder(args):
    if args.data is None:
        raise ValueError("--set folder has no images: name their folder by --data")
    return data.find_splits(args.data, None, 0.1, args.seed)


def load_data(args):
    if args.set == "folder":
        return read_splits(args, find_folder(args))
    return load_named_set(args.set, args)


def make_model(args):
    if args.set == "folder":
        hold_out_a_tenth(args, find_folder(args)[0])
    else:
        check_held_out(args.set, args, HELD_OUT)
    # how many classes there are is nothing to the network, which predicts colours
    return masked_model(args, {"image_size": args.image_size, "channels": args.channels})


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
        lr=1e-3,
        warmup_epochs=1.0,
        weight_decay=0.1,
        label_smoothing=0.0,
        held_out=None,  # 1000, or a tenth of a folder
        out=Path("runs/masked"),
    )
    parser.add_argument("--set", choices=[*data.NAMED_SETS, "folder"], default="cifar10", help="the images")
    parser.add_argument("--image-size", type=int, default=32, help="pixels on a side that images of a folder have")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 for grey, 3 for colour")
    add_download_options(parser, "the data set's files, or images in sub-folders")
    for name in ("mnist", "fashion-mnist"):
        parser.when("set", name, image_size=28, channels=1)
    for name in ("cifar10", "cifar100"):
        parser.when("set", name, flip=True)
    return parser


if __name__ == "__main__":
    raise SystemExit(train.main(make_parser(), load_data, make_model=make_model, trainer=MaskedTrainer))
