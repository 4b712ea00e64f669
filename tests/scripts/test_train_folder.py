"""train_folder.py, from a folder of pictures to a checkpoint."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import vitnp
from vitnp.data import find_splits


def last_line(output):
    return output.splitlines()[-1]


def test_a_tenth_of_each_class_is_for_the_test(folder_run, photographs):
    test = find_splits(photographs)[1]
    assert np.bincount(test.labels).tolist() == [
        round(len(list((photographs / name).iterdir())) / 10) for name in test.class_names
    ]
    assert re.match(rf"test accuracy \d+\.\d\d %  \({len(test)} images; ", last_line(folder_run[0]))


def test_the_checkpoint_knows_the_classes(folder_run):
    found = vitnp.load_classifier(folder_run[1])
    assert found.class_names == ("nought", "one", "two")
    assert found.model.config.num_classes == 3
    assert found.model.config.channels == 3


@pytest.fixture(scope="module")
def small_folder(run, tmp_path_factory):
    """A folder of 42 images, what a run without --held-out on it printed, and where."""
    cwd = tmp_path_factory.mktemp("small")
    for i in range(42):
        path = cwd / "pets" / ("cat", "dog", "eel")[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(path)
    options = ["--epochs", "1", "--dim", "16", "--depth", "1", "--mlp-dim", "16", "--shards", "1", "--image-size", "8"]
    return cwd, run("train_folder.py", "--data", "pets", *options, cwd=cwd).stdout


def test_of_a_small_folder_a_tenth_is_for_validation(small_folder):
    assert small_folder[1].startswith("pets: 36 training, 3 validation and 3 test images\n")


def test_a_run_resumes_with_the_validation_images_it_began_with(run, small_folder):
    cwd, before = small_folder
    checkpoint = cwd / "runs" / "folder" / "checkpoint.safetensors"
    assert vitnp.load_checkpoint(checkpoint).progress["settings"]["held_out"] == 3
    output = run("train_folder.py", "--data", "pets", "--resume", checkpoint, cwd=cwd).stdout
    assert output.splitlines()[0] == before.splitlines()[0]


def test_too_many_validation_images_are_refused_before_any_is_read(run, small_folder, tmp_path):
    shutil.copytree(small_folder[0] / "pets", tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "0.png").write_bytes(b"bad")
    failed = run("train_folder.py", "--data", "pets", "--held-out", 50, cwd=tmp_path, status=1)
    assert failed.stderr == "error: --held-out is 50; expected an integer from 1 to 38\n"


def test_folders_train_and_test_are_used_as_they_are(run, photographs, folder_options, tmp_path):
    shutil.copytree(photographs, tmp_path / "both" / "train")
    shutil.copytree(photographs, tmp_path / "both" / "test")
    count = len(list(photographs.rglob("*.png")))
    output = run("train_folder.py", "--data", tmp_path / "both", *folder_options, cwd=tmp_path).stdout
    assert f"({count} images; " in last_line(output)


def test_a_test_folder_can_be_given(run, photographs, folder_options, tmp_path):
    count = len(list(photographs.rglob("*.png")))
    other = shutil.copytree(photographs, tmp_path / "other")
    options = ["--data", photographs, "--test-data", other, "--channels", 1, *folder_options]
    output = run("train_folder.py", *options, cwd=tmp_path).stdout
    assert f"({count} images; " in last_line(output)
    checkpoint = tmp_path / "runs" / "folder" / "checkpoint.safetensors"
    assert vitnp.load_classifier(checkpoint).model.config.channels == 1
    again = ["--resume", checkpoint, "--data", photographs, "--test-data", other.rename(tmp_path / "moved")]
    assert f"({count} images; " in last_line(run("train_folder.py", *again, cwd=tmp_path).stdout)


def test_a_resumed_run_must_find_the_same_files(run, folder_run, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "more")
    Image.new("RGB", (28, 28)).save(tmp_path / "more" / "one" / "new.png")
    options = ["--resume", folder_run[1], "--data", tmp_path / "more"]
    failed = run("train_folder.py", *options, cwd=tmp_path, status=1)
    assert failed.stderr.count("\n") == 1
    assert "not the files that the run began with" in failed.stderr


def test_a_finished_run_resumes_with_a_copy_of_the_folder(run, folder_run, photographs, tmp_path):
    shutil.copytree(folder_run[1].parent, tmp_path / "run")
    shutil.copytree(photographs, tmp_path / "moved")
    options = ["--resume", tmp_path / "run" / "checkpoint.safetensors", "--data", tmp_path / "moved"]
    output = run("train_folder.py", *options, cwd=tmp_path).stdout
    assert last_line(output).split("(")[0] == last_line(folder_run[0]).split("(")[0]
    a, b = load_file(folder_run[1]), load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "one" / "bad.jpg").write_bytes(b""), "one/bad.jpg: empty file; expected an image"),
        (lambda root: (root / "three").mkdir(), "no images in three; expected files such as"),
    ],
)
def test_a_bad_folder_is_one_line_and_leaves_nothing(run, photographs, folder_options, tmp_path, break_it, message):
    shutil.copytree(photographs, tmp_path / "data")
    break_it(tmp_path / "data")
    failed = run("train_folder.py", "--data", "data", *folder_options, cwd=tmp_path, status=1)
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr
    assert not (tmp_path / "runs").exists()
