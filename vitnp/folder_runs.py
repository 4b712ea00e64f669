"""What scripts that train on a folder of images share: how many are held out, and that a resumed run has the same."""

from __future__ import annotations

import argparse
from collections.abc import Sized

from vitnp.data import DataError, Dataset, ImageFiles
from vitnp.data.dataset import whole_number

MOST_HELD_OUT = 1000
Splits = tuple[ImageFiles, ImageFiles]


def hold_out_a_tenth(args: argparse.Namespace, training: Sized) -> None:
    """Set `held_out` where it is not said, to a tenth of the images; DataError where it leaves none to train on."""
    if args.held_out is None:
        args.held_out = max(1, min(MOST_HELD_OUT, len(training) // 10))
    whole_number("--held-out", args.held_out, 1, len(training) - 1)  # or it would be found when all are read


def read_splits(args: argparse.Namespace, splits: Splits) -> tuple[Dataset, Dataset]:
    """Read the images for training and test, at `args.image_size` with `args.channels`.

    Raises DataError for files that cannot be used, and for others than the run began with.
    """
    # Other files would be divided otherwise: a resumed run could be tested on what it was trained on.
    digests = [files.digest for files in splits]
    if getattr(args, "files", digests) != digests:
        raise DataError(
            f"{args.data}: not the files that the run began with; expected the same names, no more, no fewer"
        )
    args.files = digests  # a setting of the run, and so in its checkpoint
    training, test = (files.read(args.image_size, args.channels) for files in splits)
    return training, test
