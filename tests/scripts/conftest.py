"""Small trained models for the scripts that use them, and a way to run scripts as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitnp.data import load_digits

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
SMALL = ["--epochs", "2", "--dim", "16", "--depth", "1", "--mlp-dim", "16", "--shards", "1"]
NAMES = ("nought", "one", "two")


def run_script(script, *options, cwd, status=0):
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": str(SCRIPTS.parent)}
    result = subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, options)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


@pytest.fixture(scope="session")
def run():
    return run_script


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """What a small run of train_digits.py printed, and its checkpoint."""
    cwd = tmp_path_factory.mktemp("digits")
    output = run_script("train_digits.py", *SMALL, "--images", 400, "--held-out", 100, cwd=cwd).stdout
    return output, cwd / "runs" / "digits" / "checkpoint.safetensors"


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder of small colour pictures of three digits, 20 of each or so."""
    root = tmp_path_factory.mktemp("photographs") / "digits"
    digits = load_digits(200, seed=7)
    for i in np.flatnonzero(digits.labels < len(NAMES)):
        path = root / NAMES[digits.labels[i]] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = digits.images[i, ..., 0]
        Image.fromarray(np.stack([grey, 255 - grey, grey // 2], -1)).save(path)
    return root


@pytest.fixture(scope="session")
def folder_options():
    return [*SMALL, "--image-size", 28, "--patch-size", 7, "--held-out", 10, "--warmup-epochs", 0.5]


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory, photographs, folder_options):
    """What a small run of train_folder.py printed, and its checkpoint."""
    cwd = tmp_path_factory.mktemp("folder")
    output = run_script("train_folder.py", "--data", photographs, *folder_options, cwd=cwd).stdout
    return output, cwd / "runs" / "folder" / "checkpoint.safetensors"
