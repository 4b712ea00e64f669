#!/usr/bin/env python3
"""Fine-tune a Vision Transformer that has learned already, on a data set or on a folder of images.

    python scripts/finetune.py --pretrained ViT-B_16.npz --data FOLDER --image-size 384
    python scripts/finetune.py --pretrained runs/digits/checkpoint.safetensors --dataset mnist

The recipe is the paper's (section 3.2, appendix B.1.1): a new head of zeros, SGD with momentum and without weight
decay, a cosine after a linear warm-up, gradients clipped at norm 1, and where --image-size says so more patches, whose
positions are resized. --freeze trains the head alone; --scratch the same network from random weights, to see what was
gained.
"""

import math
import os
from pathlib import Path

import vitnp
from vitnp import data, train
from vitnp.checkpoint import is_checkpoint
from vitnp.folder_runs import hold_out_a_tenth, read_splits
from vitnp.options import (
    add_download_options,
    add_pretrained_options,
    check_held_out,
    check_shift,
    grid,
    load_named_set,
    told_of_pretrained,
    training_parser,
)
from vitnp.pretrained import read_scale

HELD_OUT = 1000  # for validation, of a data set that has a name


def find_folder(args):
    if args.data is None:
        raise ValueError("--data is missing: name the folder of images, or a data set with --dataset")
    args.test_share = 0.1 if args.test_share is None else args.test_share
    return data.find_splits(args.data, args.test_data, args.test_share, args.seed)


def count_classes(args):
    if args.dataset == "folder":
        training = find_folder(args)[0]
        hold_out_a_tenth(args, training)
        return len(training.class_names)
    for option in ("test_data", "test_share"):
        if (value := getattr(args, option)) is not None:
            name = option.replace("_", "-")
            raise ValueError(f"--{name} is {value}, but {args.dataset} has a test set of its own: leave it out")
    check_held_out(args.dataset, args, HELD_OUT)
    return data.NAMED_SETS[args.dataset].num_classes


def load_data(args):
    if args.dataset == "folder":
        return read_splits(args, find_folder(args))
    return load_named_set(args.dataset, args)


def load_start(args, classes):
    """Return the model that has learned, and the (mean, std) by which it takes pixels, None where nothing tells."""
    if is_checkpoint(args.pretrained):
        for name, value in told_of_pretrained(args).items():
            if value is not None:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} is {value}, which a checkpoint tells itself: leave it out")
        found = vitnp.load_classifier(args.pretrained)
        return found.model, (found.mean, found.std)
    model = vitnp.load_pretrained(args.pretrained, num_classes=classes, **told_of_pretrained(args))
    return model, read_scale(Path(args.pretrained))


def check_scale(args):
    """Raise ValueError unless there are a mean and a std for each channel."""
    for name, is_right in (("mean", math.isfinite), ("std", lambda value: 0 < value < math.inf)):
        values = getattr(args, name)
        if len(values) != args.channels or not all(map(is_right, values)):
            raise ValueError(
                f"--{name} is {','.join(map(str, values))}; expected {args.channels} finite numbers, one a channel"
                f"{', above 0' * (name == 'std')}"
            )


def make_model(args):
    if args.pretrained is None:
        raise ValueError("--pretrained is missing: name a published model, or a checkpoint of a training script")
    if args.freeze and args.scratch:
        raise ValueError("--freeze with --scratch: a head on random weights that nothing trains; leave one out")
    if args.freeze and args.weight_decay:
        raise ValueError(f"--weight-decay is {args.weight_decay}, but would move what --freeze holds: leave one out")
    classes = count_classes(args)
    start, (mean, std) = load_start(args, classes)
    args.channels = start.config.channels  # settings of the run, as are all that args holds
    args.mean = list(args.mean or mean or [0.5] * args.channels)  # 0.5 as the original
    args.std = list(args.std or std or [0.5] * args.channels)
    check_scale(args)
    if args.image_size is None:
        args.image_size = list(start.config.image_size)
    model = vitnp.adapt(start, classes, image_size=args.image_size, resize=args.resize)
    check_shift(args, model.config)
    if args.scratch:
        model.initialize(args.seed)
    return model


def size(text):
    """384 -> 384, of both sides, and 48x32 -> [48, 32]: a list, as a checkpoint's settings have it."""
    return grid(text) if "x" in text else int(text)


def numbers(text):
    return list(map(float, text.split(",")))


def make_parser():
    parser = training_parser(
        __doc__.split("\n")[0],
        network=False,
        epochs=5,
        batch_size=512,
        optimizer="sgd",
        lr=0.03,
        warmup_epochs=0.5,
        weight_decay=0.0,
        label_smoothing=0.0,
        held_out=None,  # 1000, or a tenth of a folder
        out=Path("runs/finetune"),
    )
    start = parser.add_argument_group("what it begins with")
    start.add_argument("--pretrained", type=os.path.abspath, metavar="PATH", help="a published model or a checkpoint")
    add_pretrained_options(start)
    start.add_argument(
        "--image-size", type=size, metavar="N or HxW", help="pixels that images are scaled to; the model's own"
    )
    start.add_argument(
        "--resize", choices=vitnp.pretrained.positions.RULES, default="align-corners", help="rule for positions"
    )
    start.add_argument("--mean", type=numbers, help="what is taken from pixels in [0, 1], as 0.5,0.5,0.5; the model's")
    start.add_argument("--std", type=numbers, help="what they are divided by then; the model's")
    start.add_argument("--freeze", action="store_true", help="train the new head alone")
    start.add_argument("--scratch", action="store_true", help="the same network, from random weights")
    add_download_options(parser, "the images, a sub-folder per class, or the files of --dataset")
    parser.add_argument("--dataset", choices=("folder", *data.NAMED_SETS), default="folder", help="what to learn")
    parser.add_argument("--test-data", type=os.path.abspath, help="another folder, for the test alone")
    parser.add_argument("--test-share", type=float, help="of each class, held out where there is none; 0.1 unless said")
    return parser


if __name__ == "__main__":
    raise SystemExit(train.main(make_parser(), load_data, make_model=make_model))
