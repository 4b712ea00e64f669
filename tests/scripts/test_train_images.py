"""train_mnist.py and train_cifar.py, on made files of the real formats and sizes, and evaluate.py after them."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
SMALL = ["--epochs", "1", "--dim", "8", "--depth", "1", "--heads", "2", "--mlp-dim", "8", "--patch-size"]


def run(script, *options, cwd, status=0):
    # Made files are not the published ones, so there are notices, which would be errors under PYTHONWARNINGS=error.
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    environment.pop("PYTHONWARNINGS", None)
    command = [sys.executable, SCRIPTS / script, *map(str, options)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result


def noise(rng, *shape):
    return rng.integers(0, 256, shape, np.uint8)


def write_fashion(folder):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        images, labels = noise(rng, count, 28, 28), rng.integers(0, 10, count, np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes())


def write_cifar100(folder):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 50_000), ("test", 10_000)):
        coarse, fine = rng.integers(0, 20, (count, 1), np.uint8), rng.integers(0, 100, (count, 1), np.uint8)
        (folder / f"{name}.bin").write_bytes(np.hstack([coarse, fine, noise(rng, count, 3072)]).tobytes())


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """A run of train_mnist.py --fashion: its output, the folder where it ran, and its data."""
    cwd = tmp_path_factory.mktemp("fashion")
    write_fashion(cwd / "data" / "fashion-mnist")
    return run("train_mnist.py", "--fashion", "--data", "data", *SMALL, 14, cwd=cwd), cwd


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """A run of train_cifar.py --classes 100, with batches of mixed images."""
    cwd = tmp_path_factory.mktemp("cifar")
    write_cifar100(cwd / "data" / "cifar-100-binary")
    return run("train_cifar.py", "--classes", 100, "--data", "data", "--mixup", 0.2, *SMALL, 16, cwd=cwd), cwd


def accuracy(output):
    return re.match(r"test accuracy (\d+\.\d\d) %  \((\d+) images; ", output.splitlines()[-1]).groups()


def test_fashion_trains_into_a_folder_of_its_own(fashion):
    output, cwd = fashion
    assert output.stdout.startswith("Fashion-MNIST train: 58,000 training, 2,000 validation and 10,000 test images\n")
    assert (cwd / "runs" / "fashion" / "checkpoint.safetensors").exists()


def test_unknown_content_is_told_in_one_line_a_split(fashion):
    lines = fashion[0].stderr.splitlines()
    assert [re.match(r"notice: .* published Fashion-MNIST (\w+), ", line)[1] for line in lines] == ["train", "test"]


def test_cifar_100_trains_with_a_hundred_classes_and_soft_labels(cifar100):
    output, cwd = cifar100
    assert output.stdout.startswith("CIFAR-100 train: 49,000 training, 1,000 validation and 10,000 test images\n")
    assert (cwd / "runs" / "cifar100" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(("trained", "run_folder"), [("fashion", "fashion"), ("cifar100", "cifar100")])
def test_evaluation_repeats_the_accuracy_of_the_run(request, trained, run_folder):
    output, cwd = request.getfixturevalue(trained)
    again = run("evaluate.py", f"runs/{run_folder}/checkpoint.safetensors", "--data", "data", cwd=cwd)
    assert accuracy(again.stdout) == accuracy(output.stdout)
    assert accuracy(again.stdout)[1] == "10000"


def test_clothes_are_mirrored_in_training(fashion):
    from vitnp import load_checkpoint

    settings = load_checkpoint(fashion[1] / "runs" / "fashion" / "checkpoint.safetensors").progress["settings"]
    assert settings["fashion"] is settings["flip"] is True


@pytest.mark.parametrize(("script", "advice"), [("train_mnist.py", "MNIST/raw"), ("train_cifar.py", "cifar-10-python")])
def test_without_data_and_download_it_is_said_what_to_put_where(tmp_path, script, advice):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "HOME": str(tmp_path), "KERAS_HOME": str(tmp_path)}
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("VITNP_DATA", None)
    command = [sys.executable, SCRIPTS / script, "--no-download"]
    failed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert advice in failed.stderr
