"""MNIST (LeCun, Cortes, Burges): 60,000 training and 10,000 test images of handwritten digits, in IDX files.

An IDX file, all numbers big-endian, is

    bytes 0-1   zero
    byte  2     type of the entries; 8 is unsigned byte, the only one here
    byte  3     number of dimensions: 3 for images, 1 for labels
    4 per dim   size of each dimension, uint32
    the rest    the entries, last dimension fastest

Nothing in the header is believed: the sizes are known beforehand, so a file is read to one byte past its
proper end and no further, whatever it claims. Names prove nothing either, as Fashion-MNIST uses the same:
the SHA-256 of the uncompressed content decides. An archive that was compressed anew is as good as the first.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import DataError, Dataset, PathLike, data_roots

SPLITS = {
    "train": (60_000, "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": (10_000, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SHA256 = {  # of the uncompressed content
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FOLDERS = ("mnist", "MNIST/raw", "", "raw")  # below a root; the second is torchvision's
ENTRY_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
CONTENTS = {1: "labels", 3: "images"}


def load_mnist(split: Literal["train", "test"] = "train", root: PathLike | None = None) -> Dataset:
    """One split of MNIST, from the files that `find_mnist(root)` finds; anything else is a DataError."""
    if split not in SPLITS:
        raise DataError(f"split is {split!r}; expected 'train' or 'test'")
    paths = find_mnist(root)
    count, images_file, labels_file = SPLITS[split]
    images = _load(paths[images_file], images_file, (count, 28, 28))
    labels = _load(paths[labels_file], labels_file, (count,))
    return Dataset(images[..., None], labels.astype(np.int64), tuple("0123456789"), f"MNIST {split}")


def find_mnist(root: PathLike | None = None) -> dict[str, Path]:
    """The paths of the four files, by name without .gz, all from the first folder that has them all."""
    if root is not None and not os.path.isdir(os.path.expanduser(root)):
        raise DataError(f"{os.fspath(root)} is not a folder; expected the one that holds the MNIST files")
    roots, incomplete = data_roots(root), ""
    for folder in (base / below for base in roots for below in FOLDERS):
        found = {name: path for name in SHA256 if (path := _present(folder / name))}
        if len(found) == len(SHA256):
            return found
        if found:
            incomplete += f"; {folder} lacks {', '.join(name for name in SHA256 if name not in found)}"
    raise DataError(
        f"no complete MNIST in {', '.join(map(str, roots))} or {', '.join(filter(None, FOLDERS))} below them"
        f"{incomplete}: put {', '.join(SHA256)} (plain or .gz) into one of them, or run train_digits.py, "
        "which needs no files"
    )


def _present(path: Path) -> Path | None:
    """The file itself, else its archive, else None."""
    return next((file for file in (path, path.with_name(path.name + ".gz")) if os.path.isfile(file)), None)


def read_idx(path: PathLike, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The entries of an IDX file, plain or gzip (content decides, not name), which must have this `shape`."""
    return _parse(_read_content(path, _content_size(shape)), path, shape)


def _load(path: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """`read_idx`, and the entries must be those of MNIST."""
    content = _read_content(path, _content_size(shape))
    entries = _parse(content, path, shape)
    if len(shape) == 1 and entries.max() > 9:
        first = int(np.argmax(entries > 9))
        raise _unusable(path, f"label {first} is {entries[first]}", "0 to 9")
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        advice = "Fashion-MNIST, for one, has the same file names: keep each in a folder of its own"
        raise _unusable(path, f"built like MNIST, but its content has SHA-256 {digest}", SHA256[name], advice)
    return entries


def _content_size(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape) + math.prod(shape)


def _read_content(path: PathLike, size: int) -> bytes:
    """The uncompressed content, up to one byte beyond `size`: enough to see that a file is too long.

    Asking for that byte also takes gzip to the end of the archive, which is where it compares checksums.
    """
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not compressed:
                return file.read(size + 1)
            with gzip.open(file) as archive:
                return archive.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unusable(path, f"damaged gzip archive ({error})", f"one of {size} bytes unpacked") from error
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise _unusable(path, found, "a readable file", "check its permissions") from error


def _parse(content: bytes, path: PathLike, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The entries of an IDX file as a read-only array, once everything before and around them is right."""
    _check_magic(content, path, len(shape))
    start, size = 4 + 4 * len(shape), _content_size(shape)
    if len(content) >= start:
        found = struct.unpack_from(f">{len(shape)}I", content, 4)
        if found != shape:
            raise _unusable(path, f"bytes 4 to {start - 1} give the sizes {found}", f"{shape}")
    if len(content) < size:
        raise _unusable(path, f"truncated, {len(content)} bytes uncompressed", f"{size}")
    if len(content) > size:
        raise _unusable(path, f"goes on after byte {size}, uncompressed", f"exactly {size} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _check_magic(content: bytes, path: PathLike, dims: int) -> None:
    """The first four bytes: two zeros, the entry type, the number of dimensions."""
    begins = f"begins with {content[:4].hex(' ')}"
    expected = f"00 00 08 {dims:02x}, an IDX file of {CONTENTS.get(dims, 'bytes')}"
    if not content:
        raise _unusable(path, "empty file", expected)
    if content[:256].lstrip().startswith(b"<"):
        raise _unusable(path, "looks like a web page", expected, "download it again, from another address")
    if len(content) < 4 or content[:2] != b"\0\0":
        raise _unusable(path, begins, expected)
    if content[2] != 8:
        entry_type = ENTRY_TYPES.get(content[2], "unknown")
        raise _unusable(path, f"{begins}: byte 2 means entries of type {entry_type}", expected)
    if content[3] != dims:
        found = CONTENTS.get(content[3], f"{content[3]} dimensions")
        raise _unusable(path, f"{begins}, an IDX file of {found}", expected, "were two files exchanged?")


def _unusable(path: PathLike, found: str, expected: str, advice: str = "download it again") -> DataError:
    return DataError(f"{os.fspath(path)}: {found}; expected {expected}: {advice}")
