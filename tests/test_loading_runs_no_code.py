"""Files that run code when they are read without care, laid wherever something is read: none of it runs.

What each would do is make a folder. That each does so where it is read without care is a test, too.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from safetensors.numpy import save_file

import vitnp
from vitnp.data import DataError, load_cifar10, load_cifar100, load_folder, load_mnist, read_image
from vitnp.data.mnist import KERAS_ARRAYS, SHAPES
from vitnp.pretrained import read_scale
from vitnp.pretrained.layouts import LAYOUTS
from vitnp.resuming import load_run

IMAGES = ("a.png", "b.jpg", "c.tiff")


class Evil:
    """An object whose pickle makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def objects(folder):
    """An array of objects, as NumPy pickles it."""
    array = np.empty(1, object)
    array[0] = Evil(folder)
    return array


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(folder, names):
    file = io.BytesIO()
    np.savez(file, **{name: objects(folder) for name in names})
    return file.getvalue()


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def safetensors(header, metadata=None):
    """A file with this header, or with this metadata and a tensor of the layout of timm."""
    if metadata is None:
        return len(header).to_bytes(8, "little") + header
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"__metadata__": metadata, "patch_embed.proj.weight": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def source(folder):
    """The text of an expression that makes the folder, for what evaluates text."""
    return f"__import__('os').mkdir({str(folder)!r})"


def arrays_of_google():
    return [row.name for row in LAYOUTS["google"].rows(1, None, False)]


def evaluate_metadata(content):
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for text in header["__metadata__"].values():
        eval(text)


def unpickle_all(content):
    for array in np.load(io.BytesIO(content), allow_pickle=True).values():
        array.item()


def draw(content):
    Image.open(io.BytesIO(content)).load()


# what makes a file of the folder that it is to make, and what runs it
BAIT = {
    "pickle, protocol 0": (lambda folder: pickle.dumps(Evil(folder), 0), pickle.loads),
    "pickle, protocol 2": (lambda folder: pickle.dumps(Evil(folder), 2), pickle.loads),
    "pickle, protocol 4": (lambda folder: pickle.dumps(Evil(folder), 4), pickle.loads),
    "a batch of CIFAR": (
        lambda folder: pickle.dumps({name: Evil(folder) for name in ("data", "labels", "fine_labels")}, 2),
        pickle.loads,
    ),
    "pickle, compressed": (
        lambda folder: gzip.compress(pickle.dumps(Evil(folder), 2)),
        lambda content: pickle.loads(gzip.decompress(content)),
    ),
    "PyTorch's": (
        lambda folder: zipped("archive/data.pkl", pickle.dumps(Evil(folder), 2)),
        lambda content: pickle.loads(zipfile.ZipFile(io.BytesIO(content)).read("archive/data.pkl")),
    ),
    "npy": (
        lambda folder: npy(objects(folder)),
        lambda content: np.load(io.BytesIO(content), allow_pickle=True),
    ),
    "npz of MNIST": (lambda folder: npz(folder, KERAS_ARRAYS.values()), unpickle_all),
    "npz of a network": (lambda folder: npz(folder, arrays_of_google()), unpickle_all),
    "an expression": (lambda folder: source(folder).encode(), eval),
    "an expression in a header": (
        lambda folder: safetensors(source(folder).encode()),
        lambda content: eval(content[8:]),
    ),
    "an expression in metadata": (
        lambda folder: safetensors(b"", dict.fromkeys(("vitnp", "vitnp.config"), source(folder))),
        evaluate_metadata,
    ),
    "PostScript": (lambda folder: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", draw),
}


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The folder that is there if something ran; Ghostscript, for what starts that, makes it too."""
    folder, programs = tmp_path / "ran", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\nmkdir -p {folder}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # where Pillow keeps what it found
    monkeypatch.setenv("VITNP_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    return folder


@pytest.mark.parametrize("bait", BAIT)
def test_the_files_run_code_where_they_are_read_without_care(ran, bait):
    make, run = BAIT[bait]
    content = make(ran)
    assert not ran.exists()
    with contextlib.suppress(Exception):  # what it makes is seldom what was wanted
        run(content)
    assert ran.exists()


def lay(content, root, *names):
    """Write the content into files of these names below a folder, and return that."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def described(content, root):
    """A folder of transformers or of timm's hub with this as its network and all that describes it."""
    return lay(content, root, "model.safetensors", "config.json", "preprocessor_config.json")


def beside_a_network(content, root):
    """A folder with a network that is one, and this as what describes it."""
    described(content, root)
    save_file({"vit.embeddings.patch_embeddings.projection.weight": np.zeros(3)}, root / "model.safetensors")
    return root


def tarred(content, root, folder, *names):
    with tarfile.open(root / f"{folder}.tar.gz", "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root


def checkpoint(content, path):
    """A checkpoint of one tensor, whose description is this and has its digest."""
    text = content.decode("latin-1")
    save_file({"w": np.zeros(3)}, path, {"vitnp": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    return path


BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "batches.meta", "train", "meta"]
CIFAR = ("cifar-10-batches-py", "cifar-100-python")
# each lays the content somewhere below a folder, and reads it
READERS = {
    "checkpoint": lambda content, root: vitnp.load_checkpoint(lay(content, root, "m.safetensors") / "m.safetensors"),
    "description": lambda content, root: vitnp.load_checkpoint(checkpoint(content, root / "m.safetensors")),
    "run": lambda content, root: load_run(lay(content, root, "checkpoint.safetensors"), "cpu"),
    "npz": lambda content, root: vitnp.load_pretrained(lay(content, root, "vit.npz") / "vit.npz"),
    "array of npz": lambda content, root: vitnp.load_pretrained(lay(zipped("cls.npy", content), root, "a") / "a"),
    "safetensors": lambda content, root: vitnp.load_pretrained(lay(content, root, "a") / "a"),
    "pth": lambda content, root: vitnp.load_pretrained(lay(content, root, "vit.pth") / "vit.pth"),
    "folder of transformers": lambda content, root: vitnp.load_pretrained(described(content, root)),
    "config": lambda content, root: vitnp.load_pretrained(beside_a_network(content, root)),
    "scale": lambda content, root: read_scale(described(content, root)),
    "older folder": lambda content, root: vitnp.load_pretrained(lay(content, root, "pytorch_model.bin")),
    "index": lambda content, root: vitnp.load_pretrained(lay(content, root, "model.safetensors.index.json")),
    "idx": lambda content, root: load_mnist("train", lay(content, root, *SHAPES), download=False),
    "idx.gz": lambda content, root: load_mnist(
        "train", lay(gzip.compress(content), root, *(f"{name}.gz" for name in SHAPES)), download=False
    ),
    "mnist.npz": lambda content, root: load_mnist("train", lay(content, root, "mnist.npz"), download=False),
    "cifar 10": lambda content, root: load_cifar10("train", lay(content, root / CIFAR[0], *BATCHES).parent, False),
    "cifar 100": lambda content, root: load_cifar100("train", lay(content, root / CIFAR[1], *BATCHES).parent, False),
    "cifar in an archive": lambda content, root: load_cifar10(
        "train", tarred(content, root, "cifar-10-batches-py", *BATCHES), False
    ),
    "cifar's archive": lambda content, root: load_cifar10("train", lay(content, root, "cifar-10-python.tar.gz"), False),
    "image": lambda content, root: read_image(lay(content, root, "a.png") / "a.png", 8),
    "folder": lambda content, root: load_folder(lay(content, root, *(f"{c}/{i}" for c in "xy" for i in IMAGES)), 8),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_laid_wherever_something_is_read_is_refused_and_does_not_run(ran, tmp_path, reader):
    for number, (make, _) in enumerate(BAIT.values()):
        root = tmp_path / str(number)
        root.mkdir()
        with pytest.raises((vitnp.CheckpointError, DataError)):
            READERS[reader](make(ran), root)
        assert not ran.exists()
