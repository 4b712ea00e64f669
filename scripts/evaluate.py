#!/usr/bin/env python3
"""Evaluate a saved model on its test set: accuracy per class, what is taken for what, and the boldest mistakes.

    python scripts/evaluate.py runs/mnist/checkpoint.safetensors --picture mistakes.png

Which data set follows from the checkpoint, which knows its training script; or give any images with --folder.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import train_digits

import vitnp
from vitnp import data, train
from vitnp.inspection import check_new_picture, mistakes_picture

TABLE = 20  # classes in a table of confusions, at most; of more, the most frequent ones are listed
NAME = 8  # characters of a class above its column
PICTURED = 24  # mistakes


def digits(settings, root):
    return train_digits.test_set(settings["seed"])


def mnist(settings, root):
    return (data.load_fashion_mnist if settings.get("fashion") else data.load_mnist)("test", root)


def cifar(settings, root):
    return (data.load_cifar100 if settings["classes"] == 100 else data.load_cifar10)("test", root)


def folder(settings, root):
    if root is None:
        raise data.DataError("the model learned from a folder; expected its images: give --data as in training")
    test = data.find_splits(root, settings["test_data"], settings["test_share"], settings["seed"])[1]
    if test.digest != settings["files"][1]:
        raise data.DataError(
            f"{test.root}: not the test images of the training run; expected the same names: for others use --folder"
        )
    return test.read(settings["image_size"], settings["channels"])


def finetuned(settings, root):
    name = settings["dataset"]
    return folder(settings, root) if name == "folder" else data.NAMED_SETS[name].loader("test", root)


TEST_SETS = {"train_digits.py": digits, "train_mnist.py": mnist, "train_cifar.py": cifar, "train_folder.py": folder}
TEST_SETS["finetune.py"] = finetuned


def check_digest(test, expected):
    if (digest := test.digest()) != expected:
        raise data.DataError(
            f"{test.name}: not the test images of the training run: they have SHA-256 {digest}, expected {expected}: "
            "for others use --folder"
        )


def load_images(classifier, args):
    """Return the data set to evaluate on, its labels numbered as the model's classes are."""
    if args.folder is not None:
        config = classifier.model.config
        found = data.load_folder(args.folder, config.image_size, config.channels)
    else:
        script = str(classifier.progress.get("script"))
        if script not in TEST_SETS:
            known = ", ".join(TEST_SETS)
            raise ValueError(f"the model is of {script}; expected one of {known}: give labelled images with --folder")
        try:
            found = TEST_SETS[script](classifier.progress["settings"], args.data)
            check_digest(found, classifier.progress["data"]["test"])
        except (KeyError, IndexError) as error:
            raise vitnp.CheckpointError(
                f"{args.checkpoint}: says nothing of {error} in the run of {script}; expected a checkpoint that this "
                "script saved: give labelled images with --folder"
            ) from error
    known = {name: number for number, name in enumerate(classifier.class_names)}
    if unknown := [name for name in found.class_names if name not in known]:
        raise data.DataError(
            f"{found.name}: has images of {', '.join(unknown[:10])}, which the model does not know; "
            f"expected {', '.join(list(known)[:10])}{', ...' if len(known) > 10 else ''}"
        )
    labels = np.array([known[name] for name in found.class_names])[found.labels]
    return data.Dataset(found.images, labels, classifier.class_names, found.name)


def print_classes(evaluation, names):
    width = max(5, *map(len, names))
    print(f"{'class':{width}}  images  accuracy")
    for name, images, accuracy in zip(names, evaluation.confusion.sum(1), evaluation.per_class, strict=True):
        print(f"{name:{width}}  {images:6}  " + ("       -" if math.isnan(accuracy) else f"{100 * accuracy:6.2f} %"))


def print_table(confusion, names):
    """Print a row for each true class, a column for each that it was taken for."""
    heads = [name if len(name) <= NAME else name[: NAME - 1] + "~" for name in names]
    first, widths = max(map(len, names)), [max(len(head), len(str(confusion.max()))) for head in heads]
    print("\nconfusion matrix: true classes down, predicted classes across")
    print(" " * first, *(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)), sep="  ")
    for name, row in zip(names, confusion, strict=True):
        counts = (f"{count or '.':>{width}}" for count, width in zip(row, widths, strict=True))
        print(f"{name:{first}}", *counts, sep="  ")


def print_most_frequent(confusion, names):
    off = confusion - np.diag(np.diagonal(confusion))
    rows, columns = np.unravel_index(np.argsort(-off, axis=None, kind="stable")[:TABLE], off.shape)
    print("\nmost frequent confusions: images, true class, taken for")
    for row, column in zip(rows, columns, strict=True):
        if off[row, column]:
            print(f"{off[row, column]:6}  {names[row]}  taken for  {names[column]}")


def print_json(evaluation, test):
    per_class = [None if math.isnan(accuracy) else accuracy for accuracy in evaluation.per_class.tolist()]
    result = {"data": test.name, "images": evaluation.samples, "loss": evaluation.loss, "accuracy": evaluation.accuracy}
    result |= {"classes": test.class_names, "per_class": per_class, "confusion": evaluation.confusion.tolist()}
    print(json.dumps(result))


def draw(evaluation, test, args):
    boldest = evaluation.mistakes()[:PICTURED]
    if len(boldest) == 0:
        print(f"no mistakes, so no {args.picture}", file=sys.stderr)
        return
    captions = [f"test image {i}" for i in boldest]
    labels, probabilities = evaluation.labels[boldest], evaluation.probabilities[boldest]
    mistakes_picture(test.images[boldest], labels, probabilities, test.class_names, captions, args.picture)


def evaluate(args):
    started = time.perf_counter()
    if args.picture is not None:
        check_new_picture(args.picture)
    classifier = vitnp.load_classifier(args.checkpoint, args.device)
    test = load_images(classifier, args)
    scale = {"mean": classifier.mean, "std": classifier.std}
    evaluation = vitnp.evaluate(classifier.model, test.images, test.labels, **scale, fit=True)
    if args.picture is not None:
        draw(evaluation, test, args)
    if args.json:
        print_json(evaluation, test)
        return 0
    print(f"{test.name}: {evaluation.samples} images, loss {evaluation.loss:.4f}\n")
    print_classes(evaluation, test.class_names)
    show = print_table if len(test.class_names) <= TABLE else print_most_frequent
    show(evaluation.confusion, test.class_names)
    wall = time.perf_counter() - started
    print(f"\ntest accuracy {100 * evaluation.accuracy:.2f} %  ({evaluation.samples} images; {wall:.1f} s in all)")
    return 0


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint.safetensors, as a training script leaves it")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="where the data set is, as in training")
    source.add_argument("--folder", type=Path, help="other images instead: all of this folder, a sub-folder per class")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw the most confident mistakes")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    args = make_parser().parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    raise SystemExit(train.report_errors(lambda: evaluate(args), debug=args.debug))
