#!/usr/bin/env python3
"""Say what is on images: each file's most probable classes, by a model that a training script has saved.

    python scripts/predict.py runs/mnist/checkpoint.safetensors digit.png --invert --picture seen.png
    python scripts/predict.py --pretrained vit.npz --labels classes.txt cat.jpg dog.jpg

An image is read at the size and with the channels of the model: cut to its centre and scaled, turned upright, laid on
white where it is transparent. A file that cannot be read is reported, and the others go on.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import vitnp
from vitnp import train
from vitnp.data import DataError, normalize, read_image
from vitnp.data.files import one_line
from vitnp.inspection import attention_rollout, check_new_picture, prediction_picture
from vitnp.options import PRETRAINED, add_pretrained_options, told_of_pretrained
from vitnp.pretrained import read_class_names, read_scale

AT_A_TIME = 64  # images
PICTURED = 120  # images in a picture, at most


def read_labels(path, classes):
    """Return the names in a file, one a line; blank lines at its end, as editors leave them, are none."""
    try:
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()  # without the mark that some begin with
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text in UTF-8 ({error.reason} at byte {error.start}): save it as that") from None
    if len(names) != classes:
        raise ValueError(f"{path}: {len(names)} lines; expected {classes}, a name for each class of the model")
    return list(map(one_line, names))


def load_pretrained(args):
    """Return a published model as a classifier: few files say what its classes are and how it takes pixels."""
    model = vitnp.load_pretrained(args.pretrained, **told_of_pretrained(args))
    classes, channels = model.config.num_classes, model.config.channels
    names = [str(k) for k in range(classes)]
    if args.labels is not None:
        names = read_labels(args.labels, classes)
    elif len(told := read_class_names(args.pretrained) or ()) == classes:
        names = [one_line(name) for name in told]
    mean, std = (given or told for given, told in zip((args.mean, args.std), read_scale(args.pretrained), strict=True))
    if mean is None or std is None:
        print("--mean and --std are 0.5 where they are not told, as in the original", file=sys.stderr)
    scale = [tuple(given or [0.5] * channels) for given in (mean, std)]
    return vitnp.Classifier(model if args.device == "cpu" else model.to_device(args.device), tuple(names), *scale, {})


def read_images(paths, config, invert):
    """Return the paths that can be read, and their images (n, H, W, C); report the others."""
    good, images = [], []
    for path in paths:
        try:
            image = read_image(path, config.image_size, config.channels)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        good.append(path)
        images.append(255 - image if invert else image)
    return good, np.array(images)


def print_line(path, row, class_names, args, widths):
    best = np.argsort(-row, kind="stable")[: args.top]
    if args.json:
        classes = [{"class": class_names[k], "probability": float(row[k])} for k in best]
        print(json.dumps({"image": path, "classes": classes}), flush=True)
        return
    answers = (f"{class_names[k]:{widths[1]}} {100 * row[k]:5.1f} %" for k in best)
    print(f"{one_line(path):{widths[0]}}  {'   '.join(answers)}", flush=True)


def draw(seen, classifier, args):
    paths, images, probabilities = (list(column)[:PICTURED] for column in zip(*seen, strict=True))
    images, maps = np.array(images), None
    if args.attention:
        parts = [images[i : i + AT_A_TIME] for i in range(0, len(images), AT_A_TIME)]
        scaled = (normalize(part, classifier.mean, classifier.std) for part in parts)
        maps = np.concatenate([attention_rollout(classifier.model, part)[0] for part in scaled])
    captions = [Path(path).name for path in paths]
    names, options = classifier.class_names, {"top": args.top, "maps": maps, "columns": 2 if args.attention else 3}
    prediction_picture(images, np.array(probabilities), names, captions, args.picture, **options)
    if len(seen) > len(images):
        print(f"{args.picture} shows the first {len(images)} of {len(seen)} images", file=sys.stderr)


def predict(args):
    if args.top < 1:
        raise ValueError(f"--top is {args.top}; it must be at least 1")
    if args.picture is not None:
        check_new_picture(args.picture)
    elif args.attention:
        raise ValueError("--attention is drawn in the picture: name one with --picture")
    if args.pretrained is None:
        classifier = vitnp.load_classifier(args.checkpoint, args.device)
    else:
        classifier = load_pretrained(args)
    scale = {"mean": classifier.mean, "std": classifier.std}
    widths = max(len(one_line(path)) for path in args.images), max(map(len, classifier.class_names))
    seen = []
    for start in range(0, len(args.images), AT_A_TIME):
        paths, images = read_images(args.images[start : start + AT_A_TIME], classifier.model.config, args.invert)
        probabilities = vitnp.predict(classifier.model, images, **scale) if paths else []
        for path, row in zip(paths, probabilities, strict=True):
            print_line(path, row, classifier.class_names, args, widths)
        seen += zip(paths, images, probabilities, strict=True)
    if seen and args.picture is not None:
        draw(seen, classifier, args)
    return 0 if len(seen) == len(args.images) else 1


def numbers(text):
    return tuple(map(float, text.split(",")))


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="file",
        help="checkpoint.safetensors of a training script, then images; or only images",
    )
    parser.add_argument("--pretrained", type=Path, metavar="PATH", help="a published model instead of a checkpoint")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="the names of its classes, one a line; its config.json's"
    )
    add_pretrained_options(parser)
    parser.add_argument("--mean", type=numbers, help="what is taken from its pixels in [0, 1], as 0.5,0.5,0.5")
    parser.add_argument("--std", type=numbers, help="what they are divided by then")
    parser.add_argument("--top", type=int, default=3, help="how many classes to name")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw images and probabilities")
    parser.add_argument("--attention", action="store_true", help="with where the model looks, in the picture")
    parser.add_argument("--invert", action="store_true", help="exchange black and white, as for digits on paper")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs CuPy and an NVIDIA GPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def parse(parser):
    args = parser.parse_args()
    if args.pretrained is None:
        args.checkpoint, *args.images = args.files
        for option in ("labels", *PRETRAINED, "mean", "std"):
            if getattr(args, option) is not None:
                parser.error(f"--{option.replace('_', '-')} goes with --pretrained: a checkpoint tells it itself")
    else:
        args.images = args.files
    if not args.images:
        parser.error("no image: name one or more after the checkpoint")
    return args


if __name__ == "__main__":
    args = parse(make_parser())
    sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    raise SystemExit(train.report_errors(lambda: predict(args), debug=args.debug))
