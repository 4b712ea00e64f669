"""Files that are damaged anywhere, and what becomes of them when they are read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

import vitnp
from vitnp.data import DataError, DataNotice, Dataset, cifar, load_cifar10, load_mnist, mnist
from vitnp.data.idx import idx_header

COUNT = 20  # images in a file
Files = dict[str, bytes]  # by their places below the folder of the data


# -- checkpoints ------------------------------------------------------------------------------------------------------


def small_checkpoint(path: Path) -> bytes:
    """Write a checkpoint of a small model, its optimizer and some progress; return its content."""
    config = vitnp.ViTConfig(image_size=(6, 8), patch_size=(3, 2), channels=2, dim=6, depth=1, num_heads=2, mlp_dim=4)
    model = vitnp.VisionTransformer(config, rng=0)
    optimizer = vitnp.Adam(model)
    rng = np.random.default_rng(0)
    for name in model.layout.names:
        for vector in (optimizer.m, optimizer.v):
            place = model.layout.view(vector, name)
            place[...] = rng.random(place.shape)
    vitnp.save_checkpoint(path, model, optimizer, {"seconds": 1.5, "classes": ["a", "b"]})
    return path.read_bytes()


def truncations(path: Path, every: int) -> list[str]:
    """Cut a checkpoint at every `every`-th byte; return what was not refused."""
    content = small_checkpoint(path)
    return [f"{length} bytes" for length in range(0, len(content), every) if not _is_refused(path, content[:length])]


def flips(path: Path, rng: np.random.Generator, count: int) -> list[str]:
    """Flip `count` random bits, one at a time, half of them before the tensors; return what was not refused."""
    content = small_checkpoint(path)
    start, end = 8 * (8 + int.from_bytes(content[:8], "little")), 8 * len(content)
    bits = np.concatenate([rng.integers(0, start, count // 2), rng.integers(start, end, count - count // 2)])
    return [f"bit {bit}" for bit in bits.tolist() if not _is_refused(path, flip(content, bit))]


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _is_refused(path: Path, content: bytes) -> bool:
    """Whether the content is a CheckpointError that names the file, which any other exception is not."""
    path.write_bytes(content)
    try:
        vitnp.load_checkpoint(path)
    except vitnp.CheckpointError as error:
        return str(path) in str(error)
    return False


# -- data files -------------------------------------------------------------------------------------------------------


def mnist_files(pack: Callable[[bytes], bytes], suffix: str) -> Files:
    return {f"mnist/{name}{suffix}": pack(content) for name, content in _idx_files().items()}


def mnist_npz() -> Files:
    arrays, file = {}, io.BytesIO()
    for name, key in mnist.KERAS_ARRAYS.items():
        entries = np.frombuffer(_idx_files()[name], np.uint8, offset=16 if "images" in name else 8)
        arrays[key] = entries.reshape(-1, 28, 28) if "images" in name else entries
    np.savez(file, **arrays)
    return {"mnist.npz": file.getvalue()}


def cifar_folder(form: str) -> Files:
    folder = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}[form]
    return {f"{folder}/{name}": content for name, content in _batches(form).items()}


def cifar_archive(form: str) -> Files:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, content in cifar_folder(form).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {f"cifar-10-{form}.tar.gz": file.getvalue()}


KINDS: dict[str, tuple[Callable[[], Files], Callable[..., Dataset]]] = {
    "MNIST, plain": (lambda: mnist_files(bytes, ""), load_mnist),
    "MNIST, gzip": (lambda: mnist_files(gzip.compress, ".gz"), load_mnist),
    "MNIST, npz": (mnist_npz, load_mnist),
    "CIFAR-10, binary files": (lambda: cifar_folder("binary"), load_cifar10),
    "CIFAR-10, pickles": (lambda: cifar_folder("python"), load_cifar10),
    "CIFAR-10, binary archive": (lambda: cifar_archive("binary"), load_cifar10),
    "CIFAR-10, archive of pickles": (lambda: cifar_archive("python"), load_cifar10),
}


def damaged_data(folder: Path, rng: np.random.Generator, count: int) -> tuple[Counter[str], list[str]]:
    """Damage data files `count` times, and load them; return how often what became of them, and what was silent.

    "refused" is a DataError, "told" a load with a notice that the content is not the published one, "harmless" one of
    the published content. Anything else is silent, and so is another exception.
    """
    became, silent = Counter[str](), list[str]()
    with _small_sets(folder):
        kinds = {kind: (make(), load) for kind, (make, load) in KINDS.items()}
        for number in range(count):
            kind = list(kinds)[number % len(kinds)]
            files, load = kinds[kind]
            root = folder / str(number)
            what, damaged = _damage(files, rng)
            _write(root, damaged)
            answer = _load(load, root, load_all(folder, kind, files, load))
            became[answer] += answer in ("refused", "told", "harmless")
            silent += [] if answer in ("refused", "told", "harmless") else [f"{kind}, {what}: {answer}"]
    return became, silent


def load_all(folder: Path, kind: str, files: Files, load: Callable[..., Dataset]) -> list[bytes]:
    """What the undamaged files hold; they must load without a notice, or the trial would tell nothing."""
    root = folder / kind
    if not root.exists():
        _write(root, files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return _content(load, root)


def _content(load: Callable[..., Dataset], root: Path) -> list[bytes]:
    sets = [load(split, root, download=False) for split in ("train", "test")]
    return [array.tobytes() for found in sets for array in (found.images, found.labels)]


def _load(load: Callable[..., Dataset], root: Path, expected: list[bytes]) -> str:
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        try:
            found = _content(load, root)
        except DataError as error:
            return "refused" if "\n" not in str(error) else "refused, but not in one line"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    if any(issubclass(notice.category, DataNotice) for notice in notices):
        return "told"
    return "harmless" if found == expected else "loads as something else"


def _damage(files: Files, rng: np.random.Generator) -> tuple[str, Files]:
    """Return what was done to which of the files, and all of them."""
    name = list(files)[rng.integers(len(files))]
    content, kind = files[name], rng.integers(6)
    at = int(rng.integers(len(content)))
    changed, what = [
        (content[:at], f"cut at {at}"),
        (flip(content, 8 * at + int(rng.integers(8))), f"a bit of byte {at}"),
        (content[:at] + bytes(512) + content[at + 512 :], f"zeros from {at} on"),
        (content + rng.bytes(1 + at % 600), "more behind it"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (content[:at] + content[at + 1 :], f"without byte {at}"),
    ][kind]
    return f"{name}: {what}", files | {name: changed}


def _write(root: Path, files: Files) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def _idx_files() -> Files:
    rng, files = np.random.default_rng(0), {}
    for name in mnist.SHAPES:
        images = "images" in name
        entries = rng.integers(0, 256 if images else 10, (COUNT, 28, 28) if images else COUNT, np.uint8)
        files[name] = idx_header(entries.shape) + entries.tobytes()
    return files


def _batches(form: str) -> Files:
    rng, files = np.random.default_rng(1), {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        planes, labels = rng.integers(0, 256, (COUNT, 3072), np.uint8), rng.integers(0, 10, COUNT, np.uint8)
        if form == "binary":
            files[f"{name}.bin"] = np.hstack([labels[:, None], planes]).tobytes()
        else:
            files[name] = pickle.dumps({b"data": planes, b"labels": labels.tolist()}, 3)
    return files


@contextmanager
def _small_sets(folder: Path) -> Iterator[None]:
    """Meanwhile MNIST and CIFAR-10 are the small sets above, whose digests are known, and nowhere else are any."""
    shapes = {name: (COUNT, 28, 28) if "images" in name else (COUNT,) for name in mnist.SHAPES}
    known = {hashlib.sha256(content).hexdigest(): ("MNIST", name) for name, content in _idx_files().items()}
    forms = {}
    for form, algorithm in (("binary", hashlib.sha256), ("python", hashlib.md5)):
        digests = {algorithm(content).hexdigest(): name for name, content in _batches(form).items()}
        whole = getattr(cifar.CIFAR10, form)
        batches = {split: dict.fromkeys(names, COUNT) for split, names in whole.batches.items()}
        forms[form] = replace(whole, batches=batches, known=digests)
    nowhere = dict.fromkeys(("VITNP_DATA", "KERAS_HOME", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"), str(folder / "no"))
    with (
        mock.patch.dict(os.environ, nowhere),
        mock.patch.object(mnist, "SHAPES", shapes),
        mock.patch.object(mnist, "KNOWN", known),
        mock.patch.object(cifar, "CIFAR10", replace(cifar.CIFAR10, **forms)),
        mock.patch.object(cifar, "PICKLE_RECORD", 4000),
    ):
        yield
