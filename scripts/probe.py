#!/usr/bin/env python3
"""Tell how good a network's features are: a linear classifier on a few images of each class, the network frozen.

    python scripts/probe.py runs/mnist/checkpoint.safetensors
    python scripts/probe.py --pretrained ViT-B_16.npz --set cifar10 --shots 5,10,25,all

The classifier is solved for, not trained: regularised least squares, its strength chosen on images held out of the
training set: on the data set of a checkpoint's run, those that the run itself held out. Each row is the mean over some
choices of the shots, each with the accuracy on the whole test set.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import train_digits

import vitnp
from vitnp import data, train
from vitnp.folder_runs import hold_out_a_tenth
from vitnp.options import PRETRAINED, add_pretrained_options, told_of_pretrained
from vitnp.pretrained import read_scale

ALL = "all"  # as many shots as there are


def load_network(args):
    """Return the model, what its images are normalised with, and the settings of its run, where they are known."""
    if args.pretrained is None:
        trained = vitnp.load_classifier(args.checkpoint, args.device)
        return trained.model, {"mean": trained.mean, "std": trained.std}, trained.progress
    # a probe reads features alone: whatever classifier there is, or is not, stays out of it
    model = vitnp.load_pretrained(args.pretrained, num_classes=1, **told_of_pretrained(args))
    (mean, std), half = read_scale(args.pretrained), [0.5] * model.config.channels
    return model.to_device(args.device), {"mean": args.mean or mean or half, "std": args.std or std or half}, {}


def name_of_set(progress):
    """Return which data set a run was of, by its script: one of --set's, "folder", or None where nothing tells."""
    settings = progress.get("settings", {})
    return {
        "train_digits.py": "digits",
        "train_mnist.py": "fashion-mnist" if settings.get("fashion") else "mnist",
        "train_cifar.py": f"cifar{settings.get('classes')}",
        "train_folder.py": "folder",
        "finetune.py": settings.get("dataset"),
        "pretrain_masked.py": settings.get("set"),
    }.get(progress.get("script"))


def take_settings(args, progress):
    """Return the settings of the run whose images these are, none for others; hold out what the run has held out."""
    name = "folder" if args.folder is not None else args.set
    known = name_of_set(progress)
    settings = progress.get("settings", {}) if known is not None and name in (None, known) else {}
    seed, held_out = settings.get("seed", 0), settings.get("held_out", 1000)
    if settings and args.folder is None:  # in a folder there may be other images
        if args.seed not in (None, seed):
            raise ValueError(f"--seed is {args.seed}, but the run held out its images by seed {seed}: leave it out")
        if args.held_out is not None and args.held_out > held_out:
            raise ValueError(
                f"--held-out is {args.held_out}, but the run held out {held_out}, and trained on the others"
            )
    args.seed = seed if args.seed is None else args.seed
    if args.held_out is None and (settings or args.folder is None):
        args.held_out = min(1000, held_out)
    return settings


def find_splits(args, settings):
    """Return the image files of --folder for training and test, divided as the run did if it was one of a folder."""
    test_root = args.test_data or settings.get("test_data")
    splits = data.find_splits(args.folder, test_root, settings.get("test_share", 0.1), args.seed)
    if args.test_data is None and test_root is not None and splits[0].digest != settings["files"][0]:
        raise ValueError(
            f"{args.folder}: not the files that the run began with, whose test was in {test_root}: "
            "name a folder for the test by --test-data"
        )
    return splits


def load_sets(args, model, progress):
    """Return training set and test set."""
    name, config, settings = args.set or name_of_set(progress), model.config, take_settings(args, progress)
    if args.folder is not None:
        splits = find_splits(args, settings)
        return [split.read(config.image_size, config.channels) for split in splits]
    if name == "folder":
        raise ValueError("the network learned from a folder of images: name it by --folder, or others by --set")
    if name is None:
        raise ValueError(f"the network is of {progress.get('script') or args.pretrained}: name its images by --set")
    if name == "digits":  # the very ones of train_digits.py
        count = settings.get("images", 4000) + settings.get("held_out", 1000)
        return data.load_digits(count, args.seed), train_digits.test_set(args.seed)
    return [data.NAMED_SETS[name].loader(part, args.data) for part in ("train", "test")]


def choose(fit, args):
    """Return for each number of shots a list of choices, each the indices of its images."""
    found = {}
    for shots in args.shots:
        if shots == ALL:
            found[shots] = [np.arange(len(fit))]
        else:
            options = {"num_classes": len(fit.class_names)}
            found[shots] = [vitnp.few_shot_indices(fit.labels, shots, seed=k, **options) for k in range(args.choices)]
    return found


def print_row(shots, classes, training, held_out, test):
    """Print what came out for so many shots; `training` has features and labels for each choice."""
    probes = [vitnp.linear_probe(*one, num_classes=classes, validation=held_out) for one in training]
    validation = 100 * np.mean([probe.accuracies[probe.strength] for probe in probes])
    accuracies = [100 * probe.accuracy(*test) for probe in probes]
    strengths = ", ".join(f"2^{np.log2(probe.strength):.0f}" for probe in probes)
    numbers = f"{validation:10.2f} % {np.mean(accuracies):8.2f} % {np.std(accuracies):6.2f}"
    print(f"{shots:>5} {len(training[0][1]):8,} {numbers}   {strengths}", flush=True)


def probe(args):
    started = time.perf_counter()
    if args.choices < 1:
        raise ValueError(f"--choices is {args.choices}; it must be at least 1")
    model, scale, progress = load_network(args)
    whole, test = load_sets(args, model, progress)
    hold_out_a_tenth(args, whole)  # of a folder, unless --held-out says another number
    fit, held_out = whole.split(args.held_out, args.seed)
    choices = choose(fit, args)
    used = np.unique(np.concatenate([few for of_shots in choices.values() for few in of_shots]))  # no others pass

    def features_and_labels(dataset):
        return vitnp.features(model, dataset.images, **scale, fit=True), dataset.labels

    features = features_and_labels(fit.subset(used))[0]
    validation, test_pair = features_and_labels(held_out), features_and_labels(test)
    print(
        f"{whole.name}: {len(fit):,} images to choose from, {len(held_out):,} that choose the strength, "
        f"{len(test):,} of the test\n{features.shape[1]} features\n\n"
        "shots   images   validation       test      ±   strength, one for each choice of the shots"
    )
    for shots, of_shots in choices.items():
        training = [(features[np.searchsorted(used, few)], fit.labels[few]) for few in of_shots]
        print_row(shots, len(whole.class_names), training, validation, test_pair)
    print(f"{time.perf_counter() - started:.1f} s in all")
    return 0


def shots(text):
    return [word if word == ALL else int(word) for word in text.split(",")]


def numbers(text):
    return tuple(map(float, text.split(",")))


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="as a training script leaves it")
    parser.add_argument("--pretrained", type=Path, metavar="PATH", help="a published model instead of a checkpoint")
    add_pretrained_options(parser)
    parser.add_argument("--mean", type=numbers, help="what is taken from its pixels in [0, 1]; the model's, or 0.5")
    parser.add_argument("--std", type=numbers, help="what they are divided by then; the model's, or 0.5")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--set", choices=["digits", *data.NAMED_SETS], help="the images; unless said, those of the checkpoint's run"
    )
    source.add_argument("--folder", type=Path, help="your own images instead: a sub-folder per class")
    parser.add_argument("--test-data", type=Path, help="with --folder: another one, for the test alone; the run's")
    parser.add_argument("--data", type=Path, help="where the data set is, as in training")
    parser.add_argument("--shots", type=shots, default="5,10,25", help="images of each class, or all, after commas")
    parser.add_argument("--choices", type=int, default=3, help="how often the shots are chosen anew")
    parser.add_argument(
        "--held-out", type=int, help="training images that choose the strength; 1000, or the run's; of a folder a tenth"
    )
    parser.add_argument("--seed", type=int, help="of what is held out; the run's, for the same images, or 0")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    parser = make_parser()
    args = parser.parse_args()
    if (args.checkpoint is None) == (args.pretrained is None):
        parser.error("expected a checkpoint or --pretrained PATH, one of the two")
    for option in (*PRETRAINED, "mean", "std"):
        if args.pretrained is None and getattr(args, option) is not None:
            parser.error(f"--{option.replace('_', '-')} goes with --pretrained: a checkpoint tells it itself")
    if args.test_data is not None and args.folder is None:
        parser.error("--test-data goes with --folder: a data set has a test of its own")
    raise SystemExit(train.report_errors(lambda: probe(args), debug=args.debug))
