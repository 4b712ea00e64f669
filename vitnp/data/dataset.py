"""A labelled set of images in memory, and the folders where data files are looked for.

Images stay uint8 until a batch is made from them: a quarter of the memory of float32, and nothing is rounded.
Whatever is wrong with them is found when a Dataset is built, not in the middle of a training run.
"""

from __future__ import annotations

import hashlib
import operator
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PathLike: TypeAlias = str | os.PathLike[str]
CHUNK = 1024  # images that are hashed at a time


class DataError(ValueError):
    """Data that cannot be used. The message says what was found, what was expected and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (n, H, W, C), labels int64 (n,) that index `class_names`; DataError if they do not fit."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        _check_images(self.images, self.name)
        _check_labels(self.labels, len(self.images), self.class_names, self.name)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int] | NDArray[np.integer]) -> Dataset:
        """The images and labels at `indices`, in that order, as a copy."""
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or chosen.size == 0:
            raise DataError(f"{self.name}: indices have shape {chosen.shape}; expected a non-empty list")
        if chosen.dtype.kind not in "iu":
            hint = ": np.flatnonzero turns a mask into indices" if chosen.dtype.kind == "b" else ""
            raise DataError(f"{self.name}: indices have dtype {chosen.dtype}; expected integers{hint}")
        _check_range(f"{self.name}: indices", chosen, len(self))
        return Dataset(self.images[chosen], self.labels[chosen], self.class_names, self.name)

    def split(self, held_out: int, seed: int) -> tuple[Dataset, Dataset]:
        """(the rest, `held_out` random images): disjoint, in the old order, a pure function of `seed`."""
        rest, held = self.split_indices(held_out, seed)
        return self.subset(rest), self.subset(held)

    def split_indices(self, held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which images `split` puts into each part."""
        held_out = whole_number("held_out", held_out, 1, len(self) - 1)
        order = random_stream(seed).permutation(len(self))
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    def digest(self) -> str:
        """The SHA-256 of images, labels and class names: another one means other data."""
        digest = hashlib.sha256(f"{self.images.shape} {self.class_names}".encode())
        for start in range(0, len(self), CHUNK):  # which need not lie in order in memory
            digest.update(np.ascontiguousarray(self.images[start : start + CHUNK]).data)
        digest.update(np.ascontiguousarray(self.labels, "<i8").data)
        return digest.hexdigest()


def _check_images(images: NDArray[np.uint8], name: str) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = getattr(images, "dtype", type(images).__name__)
        raise DataError(f"{name}: images are {found}; expected a uint8 array, grey levels 0 to 255")
    if images.ndim != 4 or images.size == 0:
        expected = "(n, height, width, channels) with at least one image"
        raise DataError(f"{name}: images have shape {images.shape}; expected {expected}")
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        expected = "(n, height, width, channels): use images.transpose(0, 2, 3, 1)"
        raise DataError(f"{name}: images {images.shape} look like channels first; expected {expected}")


def _check_labels(labels: NDArray[np.int64], count: int, class_names: tuple[str, ...], name: str) -> None:
    if not isinstance(class_names, tuple) or not class_names:
        raise DataError(f"{name}: class_names is {class_names!r}; expected a non-empty tuple of strings")
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64:
        found = getattr(labels, "dtype", type(labels).__name__)
        raise DataError(f"{name}: labels are {found}; expected an int64 array: np.asarray(labels, 'int64')")
    if labels.shape != (count,):
        raise DataError(f"{name}: labels have shape {labels.shape}; expected ({count},), one per image")
    _check_range(f"{name}: labels", labels, len(class_names))


def _check_range(what: str, numbers: NDArray[np.integer], count: int) -> None:
    """Each of them must index something of that length, without counting from the end."""
    outside = np.flatnonzero((numbers < 0) | (numbers >= count))
    if outside.size:
        first = outside[0]
        raise DataError(f"{what}[{first}] is {numbers[first]}; expected 0 to {count - 1}")


def data_roots(root: PathLike | None = None) -> list[Path]:
    """Where data files are looked for, first to last: `root`, $VITNP_DATA, the user's cache folder."""
    named = [os.fspath(root) if root is not None else "", os.environ.get("VITNP_DATA", "")]
    return [Path(os.path.expanduser(folder)) for folder in (*named, _cache_folder()) if folder]


def _cache_folder() -> str:
    """Where this platform keeps files that programs can fetch again."""
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or os.path.join("~", "AppData", "Local")
    elif sys.platform == "darwin":
        parent = os.path.join("~", "Library", "Caches")
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.join(parent, "vitnp")


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """The random stream of (seed, key): always the same one, and independent of every other key's.

    The key is a spawn key. A list would not do: default_rng([s, e]) and default_rng([s, e, 0]) are the same.
    """
    return np.random.default_rng(np.random.SeedSequence(whole_number("seed", seed, 0), spawn_key=key))


def whole_number(name: str, value: int, least: int, most: int | None = None) -> int:
    """`value` as an int within [least, most], or a DataError that names it."""
    expected = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise DataError(f"{name} is {value!r}; expected {expected}") from None
    if number < least or (most is not None and number > most):
        raise DataError(f"{name} is {number}; expected {expected}")
    return number
