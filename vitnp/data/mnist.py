"""MNIST (LeCun, Cortes, Burges) and Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747).

Both have 60,000 training and 10,000 test images of 28 x 28 grey levels in ten classes, in four IDX files, and
both use the same names for them. So the digest of the uncompressed content tells them apart: content known as
one never passes as the other, in whatever folder. Content with an unknown digest cannot be told apart, as no
statistic of the pixels is a proof; there the name of the folder decides (FashionMNIST, fashion-mnist, fashion),
and a DataNotice says so. Where it is nowhere called fashion, it is taken for MNIST.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitnp.data.archives import read_npz
from vitnp.data.dataset import DataError, Dataset, PathLike, data_roots
from vitnp.data.download import download as fetch
from vitnp.data.files import Split, mentioning, not_found, notice_unknown, recognise, search_roots, unusable
from vitnp.data.idx import idx_header, read_idx

Read = Callable[[str], NDArray[np.uint8]]  # the entries of one of the four files, by its name

SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
KERAS = "mnist.npz"  # where Keras keeps MNIST, as the arrays below
KERAS_ARRAYS = dict(zip(SHAPES, ("x_train", "y_train", "x_test", "y_test"), strict=True))

KNOWN = {  # the digest of the uncompressed content -> (data set, file)
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db": ("MNIST", "train-images-idx3-ubyte"),
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5": ("MNIST", "train-labels-idx1-ubyte"),
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7": ("MNIST", "t10k-images-idx3-ubyte"),
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2": ("MNIST", "t10k-labels-idx1-ubyte"),
    "f4a8712d7a061bf5bd6d2ca38dc4d50a": ("Fashion-MNIST", "train-images-idx3-ubyte"),
    "9018921c3c673c538a1fc5bad174d6f9": ("Fashion-MNIST", "train-labels-idx1-ubyte"),
    "8181f5470baa50b63fa0f6fddb340f0a": ("Fashion-MNIST", "t10k-images-idx3-ubyte"),
    "15d484375f8d13e6eb1aabb0c3f46965": ("Fashion-MNIST", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class _Set:
    """What differs between the two."""

    title: str
    class_names: tuple[str, ...]
    folders: tuple[str, ...]  # below a root; the first is torchvision's, and where downloads go
    mirrors: tuple[str, ...]  # folders on the web
    archives: dict[str, tuple[int, str]]  # size and SHA-256 of the published .gz of each file


MNIST = _Set(
    title="MNIST",
    class_names=tuple("0123456789"),
    folders=("MNIST/raw", "mnist", "", "raw"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    archives={
        "train-images-idx3-ubyte": (
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        "train-labels-idx1-ubyte": (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        "t10k-images-idx3-ubyte": (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        "t10k-labels-idx1-ubyte": (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    },
)
FASHION = _Set(
    title="Fashion-MNIST",
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    folders=("FashionMNIST/raw", "fashion-mnist", "fashion", "", "raw"),
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # has no https
    ),
    archives={
        "train-images-idx3-ubyte": (
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte": (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        "t10k-images-idx3-ubyte": (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        "t10k-labels-idx1-ubyte": (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    },
)


def load_mnist(
    split: Split = "train", root: PathLike | None = None, download: bool = True, mirror: str | None = None
) -> Dataset:
    """One split of MNIST: images (n, 28, 28, 1), n = 60,000 or 10,000, classes "0" to "9".

    The four IDX files, compressed or not, are looked for in `root`, $VITNP_DATA, the user's cache folder and
    Keras' folder, there also in MNIST/raw/ (torchvision), mnist/ and raw/, and as Keras' mnist.npz. Where
    nothing is found and `download` allows it, they are downloaded to the first of these folders, from `mirror` (a
    base URL) first if given. DataError if there is nothing to load, or if what is there is damaged or wrong.
    """
    return _load(MNIST, split, root, download, mirror)


def load_fashion_mnist(
    split: Split = "train", root: PathLike | None = None, download: bool = True, mirror: str | None = None
) -> Dataset:
    """One split of Fashion-MNIST: images (n, 28, 28, 1), n = 60,000 or 10,000, ten kinds of clothes.

    As `load_mnist`, but in FashionMNIST/raw/ (torchvision), fashion-mnist/ (Keras), fashion/ and raw/.
    """
    return _load(FASHION, split, root, download, mirror)


def _load(kind: _Set, split: str, root: PathLike | None, download: bool, mirror: str | None) -> Dataset:
    if split not in SPLITS:
        raise DataError(f"split is {split!r}; expected 'train' or 'test'")
    roots, passed_over = search_roots(root, kind.title), list[str]()
    for where, read in _find(kind, roots, passed_over):
        if (found := _read(kind, split, where, read, passed_over)) is not None:
            return found
    if not download:
        names = ", ".join(SHAPES)
        raise not_found(kind.title, roots, passed_over, f"put {names} (plain or .gz) into {kind.folders[0]} there")
    folder = data_roots(root)[0] / kind.folders[0]
    with mentioning(passed_over):
        paths = {name: _fetch(kind, name, folder, mirror) for name in SHAPES}
    found = _read(kind, split, folder, partial(_read_file, paths), passed_over)
    assert found is not None  # the digest of a download was compared
    return found


def _find(kind: _Set, roots: list[Path], passed_over: list[str]) -> Iterator[tuple[Path, Read]]:
    """Each complete set of files: where it is, and how to read it. Incomplete ones are mentioned."""
    for root in roots:
        for folder in (root / below for below in kind.folders):
            paths = {name: path for name in SHAPES if (path := _present(folder / name))}
            if len(paths) == len(SHAPES):
                yield folder, partial(_read_file, paths)
            elif paths:
                passed_over.append(f"{folder} lacks {', '.join(name for name in SHAPES if name not in paths)}")
        if kind is MNIST and os.path.isfile(root / KERAS):
            yield root / KERAS, partial(_read_keras, root / KERAS)


def _present(path: Path) -> Path | None:
    """The file itself, else its archive, else None."""
    return next((file for file in (path, path.with_name(path.name + ".gz")) if os.path.isfile(file)), None)


def _read_file(paths: dict[str, Path], name: str) -> NDArray[np.uint8]:
    entries = read_idx(paths[name], SHAPES[name])
    _check_labels(entries, paths[name])
    return entries


def _read_keras(path: Path, name: str) -> NDArray[np.uint8]:
    entries = read_npz(path, KERAS_ARRAYS[name], SHAPES[name])
    _check_labels(entries, f"{path}, member {KERAS_ARRAYS[name]}.npy")
    return entries


def _check_labels(entries: NDArray[np.uint8], path: PathLike) -> None:
    if entries.ndim == 1 and entries.max() > 9:
        first = int(np.argmax(entries > 9))
        raise unusable(path, f"label {first} is {entries[first]}", "0 to 9")


def _read(kind: _Set, split: str, where: Path, read: Read, passed_over: list[str]) -> Dataset | None:
    """The split found there, if it is of this kind; otherwise None, and it is mentioned whose it is."""
    unknown, arrays = {}, []
    for name in SPLITS[split]:
        entries = read(name)
        known, digest = recognise(KNOWN, idx_header(entries.shape), entries)
        if known is None:
            unknown[name] = digest
        elif known[0] != kind.title:
            passed_over.append(f"{where} holds {known[0]}")
            return None
        arrays.append(entries)
    if unknown and _is_called_fashion(where) != (kind is FASHION):
        passed_over.append(f"{where} holds unknown content, and its name does not say {kind.title}")
        return None
    notice_unknown(where, f"{kind.title} {split}", unknown)
    images, labels = arrays
    return Dataset(images[..., None], labels.astype(np.int64), kind.class_names, f"{kind.title} {split}")


def _is_called_fashion(folder: Path) -> bool:
    """Whether the folder, or the one around a folder raw, is named after Fashion-MNIST."""
    folder = folder.absolute()
    name = (folder.parent if folder.name == "raw" else folder).name
    return name.lower().replace("-", "").replace("_", "") in ("fashionmnist", "fashion")


def _fetch(kind: _Set, name: str, folder: Path, mirror: str | None) -> Path:
    size, sha256 = kind.archives[name]
    bases = ([mirror] if mirror else []) + list(kind.mirrors)
    return fetch([f"{base.rstrip('/')}/{name}.gz" for base in bases], folder / f"{name}.gz", size=size, sha256=sha256)
