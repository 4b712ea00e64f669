"""A folder of images with a sub-folder per class:

    root/cat/1.jpg
    root/cat/more/2.png     files may lie deeper; the first level below the root decides
    root/dog/3.jpg          classes are numbered in the order of their names, images in that of their paths

First the files are listed, which is quick and finds what is missing; then they are read, each into its place in one
array, so memory is that of the result. A file that is no image at all, as a text or what starts with a dot, is passed
over; one that is an image but cannot be used is an error, because a class that quietly lacks images is worse. Links
to files and folders count as these, but each file counts once, and none may be of two classes or of training and test.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import Dataset, PathLike, random_stream
from vitnp.data.files import data_error, one_line
from vitnp.data.images import read_image, sides

READ = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
)
NOT_READ = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".eps", ".psd", ".ico", ".tga", ".dng", ".cr2", ".nef")
TEST_NAMES = ("test", "val", "valid", "validation")  # of the folder beside "train"
TEST_SHARE = 2  # which random stream of a seed
Identity = tuple[int | str, int]


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The image files below `root`: sorted `paths`, and `labels` int64 (n,) that index `class_names`."""

    root: Path
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """SHA-256 of the paths below the root: the same for the same files, wherever the root is."""
        names = (path.relative_to(self.root).as_posix() for path in self.paths)
        return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()

    def hold_out(self, share: float, seed: int) -> tuple[ImageFiles, ImageFiles]:
        """(the rest, a random `share` of each class, at least one file): disjoint, a pure function of `seed`."""
        _check_share(share)
        rng, held = random_stream(seed, TEST_SHARE), np.zeros(len(self), bool)
        for label, name in enumerate(self.class_names):
            files = np.flatnonzero(self.labels == label)
            if len(files) < 2:
                raise data_error(f"{self.root / name}: 1 image; expected at least 2, one to train with and one to test")
            count = min(max(round(share * len(files)), 1), len(files) - 1)
            held[rng.permutation(files)[:count]] = True
        return self._chosen(~held), self._chosen(held)

    def _chosen(self, mask: NDArray[np.bool_]) -> ImageFiles:
        paths = tuple(self.paths[i] for i in np.flatnonzero(mask))
        return ImageFiles(self.root, self.class_names, paths, self.labels[mask])

    def read(self, size: int | tuple[int, int], channels: int = 3) -> Dataset:
        """Every image, as `read_image` reads it, with a progress bar; the first bad file is a DataError naming it."""
        from tqdm import tqdm

        images = np.empty((len(self), *sides(size), channels), np.uint8)
        with tqdm(self.paths, desc=f"reading {self.root.name}", unit=" images", leave=False, disable=None) as bar:
            for i, path in enumerate(bar):
                images[i] = read_image(path, size, channels)
        return Dataset(images, self.labels, self.class_names, one_line(str(self.root)))


def load_folder(root: PathLike, size: int | tuple[int, int], channels: int = 3) -> Dataset:
    """All images below `root`, a sub-folder per class, uint8 (n, H, W, channels): see `find_images`, `read_image`."""
    return find_images(root).read(size, channels)


def find_images(root: PathLike) -> ImageFiles:
    """List the image files below `root`, whose sub-folders are the classes; nothing is read yet.

    Raises DataError where there are no sub-folders, for sub-folders without images, for a file that links make one of
    two classes, and for images of a kind that `read_image` does not read.
    """
    root = Path(root).expanduser()
    class_names = _subfolders(root)
    if not class_names:
        raise data_error(f"{root}: has no sub-folders; expected one for each class, with its images in it")
    real = [os.path.realpath(root / name) for name in class_names]
    files = [_image_files(root / name, set(real) - {own}) for name, own in zip(class_names, real, strict=True)]
    class_names = tuple(map(one_line, class_names))
    if empty := [name for name, paths in zip(class_names, files, strict=True) if not paths]:
        raise data_error(
            f"{root}: no images in {', '.join(empty)}; expected files such as {', '.join(READ[:2])} in each class: "
            "put some there or remove the sub-folder"
        )
    files = _each_once(files)
    labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(paths) for paths in files])
    return ImageFiles(root, class_names, tuple(path for paths in files for path in paths), labels)


def find_splits(
    root: PathLike, test_root: PathLike | None = None, test_share: float = 0.1, seed: int = 0
) -> tuple[ImageFiles, ImageFiles]:
    """(training files, test files) of the same classes, which is checked.

    With `test_root`, all of `root` and all of `test_root`. Else, where `root` holds just a folder train and a folder
    test (or val, valid, validation), these two. Else a random `test_share` of each class of `root` is for testing.
    """
    _check_share(test_share)  # where it is not used, too: a mistake stays one
    root = Path(root).expanduser()
    if test_root is None:
        root, test_root = _split_folders(root)
    train = find_images(root)
    if test_root is None:
        return train.hold_out(test_share, seed)
    test = find_images(test_root)
    if train.class_names != test.class_names:
        only = [sorted(set(a.class_names) - set(b.class_names)) for a, b in ((train, test), (test, train))]
        found = (
            f"only in {train.root}: {', '.join(only[0]) or 'none'}; only in {test.root}: {', '.join(only[1]) or 'none'}"
        )
        raise data_error(f"the classes of training and test differ ({found}); expected the same sub-folders in both")
    _check_apart(train, test)
    return train, test


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise data_error(f"the test share is {share}; expected a number between 0 and 1")


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of a root that is divided already, else the root itself and None."""
    by_name = {name.lower(): root / name for name in _subfolders(root)}
    if "train" not in by_name or not by_name.keys() <= {"train", *TEST_NAMES}:
        return root, None
    tests = [by_name[name] for name in TEST_NAMES if name in by_name]
    if len(tests) != 1:
        found = ", ".join(sorted(path.name for path in by_name.values()))
        raise data_error(
            f"{root}: holds {found}; expected train and one of {', '.join(TEST_NAMES)}: "
            "name the folders to train on and to test on one by one"
        )
    return by_name["train"], tests[0]


def _subfolders(root: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry.name)))
    except OSError as error:
        _refuse_folder(error)


def _refuse_folder(error: OSError) -> NoReturn:
    found = f"cannot be read ({error.strerror})"
    raise data_error(f"{error.filename}: {found}; expected a folder: check its name and permissions") from error


def _image_files(folder: Path, others: set[str]) -> list[Path]:
    """The sorted paths of the images in a class's folder and below it; `others` are the real paths of other classes."""
    found, seen = [], {os.path.realpath(folder)}  # links may lead in circles: no folder is entered twice
    for place, below, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        shown = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(below) if not _hidden(name)}
        new = {real: name for name, real in reversed(shown.items()) if real not in seen}
        below[:] = sorted(new.values())  # where walk goes next
        for real, name in new.items():
            _check_class(Path(place, name), Path(real), others)
        seen |= new.keys()
        found += [Path(place, name) for name in names if not _hidden(name) and _is_read(Path(place, name))]
    return sorted(found)


def _check_class(link: Path, real: Path, others: set[str]) -> None:
    """Refuse a link that leads to another class, or to a folder that holds one: its images would have two labels."""
    if not link.is_symlink():
        return
    for other in map(Path, sorted(others)):
        if real.is_relative_to(other) or other.is_relative_to(real):
            raise data_error(
                f"{link}: a link to {real}, so that images of the class {other.name} would be of this one, too; "
                "expected the images of one class: remove the link"
            )


def _each_once(files: list[list[Path]]) -> list[list[Path]]:
    """Return the files of each class, each once, whatever links lead to it; refuse one that is of two classes."""
    owners: dict[Identity, tuple[int, Path]] = {}
    found: list[list[Path]] = []
    for label, paths in enumerate(files):
        found.append([])
        for path in paths:
            owner, first = owners.setdefault(_identity(path), (label, path))
            if owner != label:
                raise data_error(
                    f"{path}: the same file as {first}, so that an image would be of two classes; expected it in "
                    "one: remove one of them"
                )
            if first == path:
                found[-1].append(path)
    return found


def _check_apart(train: ImageFiles, test: ImageFiles) -> None:
    """Refuse a file that is for training and for the test, by whatever links."""
    first = {_identity(path): path for path in train.paths}
    for path in test.paths:
        if (other := first.get(_identity(path))) is not None:
            raise data_error(
                f"{path}: the same file as {other}, which is to train on, so that it tests nothing; expected others in "
                "the test: remove one of them"
            )


def _identity(path: Path) -> Identity:
    """Return what is the same for one file by all of its names; of a link to nowhere, which is told later, its name."""
    try:
        found = path.stat()
    except OSError:
        return str(path), 0
    return found.st_dev, found.st_ino


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _is_read(path: Path) -> bool:
    """Whether a file is an image by its name; an image of a kind that is not read is an error."""
    if path.suffix.lower() in NOT_READ:
        raise data_error(
            f"{path}: an image of a kind that is not read; expected {', '.join(READ)}: convert it or remove it"
        )
    return path.suffix.lower() in READ
