"""evaluate.py, as a user runs it."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import vitnp
from vitnp.data import find_splits, load_digits, load_mnist


def accuracy(output):
    return re.match(r"test accuracy (\d+\.\d\d) %  \((\d+) images; ", output.splitlines()[-1]).groups()


@pytest.fixture(scope="module")
def evaluated(run, digits_run, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("evaluated")
    return run("evaluate.py", digits_run[1], "--picture", "mistakes.png", cwd=cwd).stdout, cwd / "mistakes.png"


@pytest.fixture(scope="module")
def as_json(run, digits_run, tmp_path_factory):
    return json.loads(run("evaluate.py", digits_run[1], "--json", cwd=tmp_path_factory.mktemp("json")).stdout)


def test_accuracy_is_that_of_the_training_run(evaluated, digits_run):
    assert accuracy(evaluated[0]) == accuracy(digits_run[0])


def test_accuracy_on_a_folder_is_that_of_its_training_run(run, folder_run, photographs, tmp_path):
    output = run("evaluate.py", folder_run[1], "--data", photographs, cwd=tmp_path).stdout
    assert accuracy(output) == accuracy(folder_run[0])


@pytest.mark.skipif(not os.environ.get("VITNP_DATA"), reason="VITNP_DATA is unset; expected a folder with MNIST")
def test_accuracy_of_an_mnist_model_is_that_of_the_ten_thousand(run, tmp_path):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(depth=1, dim=8, num_heads=2, mlp_dim=8))
    progress = {"script": "train_mnist.py", "settings": {"seed": 0}, "classes": list("0123456789")}
    progress["data"] = {"test": load_mnist("test").digest()}
    vitnp.save_checkpoint(tmp_path / "m", model, progress={**progress, "mean": [0.13], "std": [0.31]})
    # its head is zero, so every answer is a 0, of which there are 980
    assert accuracy(run("evaluate.py", "m", cwd=tmp_path).stdout) == ("9.80", "10000")


def test_each_class_has_its_images_and_accuracy(evaluated, as_json):
    labels = load_digits(2000, seed=1_000_000).labels
    for name in range(10):
        images, share = re.search(rf"^{name}   +(\d+) +(\d+\.\d\d) %$", evaluated[0], re.MULTILINE).groups()
        assert int(images) == (labels == name).sum()
        assert float(share) == pytest.approx(100 * as_json["per_class"][name], abs=0.005)


def test_the_table_holds_the_confusions(evaluated, as_json):
    lines = evaluated[0].split("confusion matrix")[1].splitlines()[2:12]
    table = [[0 if cell == "." else int(cell) for cell in line.split()[1:]] for line in lines]
    assert table == as_json["confusion"]
    assert len({len(line) for line in lines}) == 1


def test_json_adds_up(as_json):
    confusion = np.array(as_json["confusion"])
    assert confusion.sum() == as_json["images"] == 2000
    assert np.trace(confusion) / 2000 == pytest.approx(as_json["accuracy"], abs=1e-12)


def test_mistakes_are_pictured(evaluated):
    with Image.open(evaluated[1]) as picture:
        assert picture.width > 1000


def test_a_picture_is_not_written_over_a_file(run, digits_run, evaluated):
    before = evaluated[1].read_bytes()
    failed = run("evaluate.py", digits_run[1], "--picture", evaluated[1], cwd=evaluated[1].parent, status=1)
    assert "exists already" in failed.stderr
    assert evaluated[1].read_bytes() == before


def test_other_images_of_some_of_the_classes_are_evaluated_by_name(run, folder_run, photographs, tmp_path):
    shutil.copytree(photographs / "two", tmp_path / "mine" / "two")
    result = json.loads(run("evaluate.py", folder_run[1], "--folder", "mine", "--json", cwd=tmp_path).stdout)
    assert np.sum(result["confusion"], axis=1).tolist() == [0, 0, len(list((tmp_path / "mine" / "two").iterdir()))]
    assert result["per_class"][:2] == [None, None]


def test_classes_that_the_model_does_not_know_are_named(run, folder_run, photographs, tmp_path):
    shutil.copytree(photographs / "two", tmp_path / "mine" / "yak")
    failed = run("evaluate.py", folder_run[1], "--folder", "mine", cwd=tmp_path, status=1)
    message = "mine: has images of yak, which the model does not know; expected nought, one, two"
    assert failed.stderr == f"error: {message}\n"


def test_a_folder_that_has_changed_is_not_its_test_set(run, folder_run, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "data")
    for path in find_splits(photographs)[1].paths[::2]:
        (tmp_path / "data" / path.relative_to(photographs)).unlink()
    failed = run("evaluate.py", folder_run[1], "--data", "data", cwd=tmp_path, status=1)
    assert "data: not the test images of the training run" in failed.stderr


def test_images_with_the_same_names_that_have_changed_are_not_its_test_set(run, folder_run, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "data")
    changed = tmp_path / "data" / find_splits(photographs)[1].paths[0].relative_to(photographs)
    Image.new("RGB", (28, 28)).save(changed)
    failed = run("evaluate.py", folder_run[1], "--data", "data", cwd=tmp_path, status=1)
    assert re.fullmatch(
        r"error: data: not the test images of the training run: they have SHA-256 \w{64}, expected \w{64}: "
        r"for others use --folder\n",
        failed.stderr,
    )


def test_a_folders_model_asks_for_its_folder(run, folder_run, tmp_path):
    failed = run("evaluate.py", folder_run[1], cwd=tmp_path, status=1)
    assert failed.stderr.count("\n") == 1
    assert "give --data as in training" in failed.stderr


def test_a_model_of_an_unknown_script_asks_for_images(run, tmp_path):
    progress = {"script": "mine.py", "classes": list("0123456789"), "mean": [0.1], "std": [0.2]}
    vitnp.save_checkpoint(tmp_path / "m", vitnp.VisionTransformer(vitnp.ViTConfig(depth=1)), progress=progress)
    failed = run("evaluate.py", "m", cwd=tmp_path, status=1)
    assert re.match(
        r"error: the model is of mine.py; expected one of .*: give labelled images with --folder\n$", failed.stderr
    )


@pytest.mark.parametrize(
    ("progress", "lacking"),
    [
        ({"script": "train_mnist.py"}, "settings"),
        ({"script": "train_cifar.py", "settings": {}}, "classes"),
        ({"script": "train_digits.py", "settings": {}}, "seed"),
        ({"script": "train_digits.py", "settings": {"seed": 0}}, "data"),
    ],
)
def test_a_checkpoint_without_the_settings_of_its_run_is_one_line(run, tmp_path, progress, lacking):
    progress |= {"classes": list("0123456789"), "mean": [0.1], "std": [0.2]}
    vitnp.save_checkpoint(tmp_path / "m", vitnp.VisionTransformer(vitnp.ViTConfig(depth=1)), progress=progress)
    failed = run("evaluate.py", "m", cwd=tmp_path, status=1)
    assert failed.stderr == (
        f"error: m: says nothing of '{lacking}' in the run of {progress['script']}; expected a checkpoint that this "
        "script saved: give labelled images with --folder\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is where even root cannot write")
def test_a_place_where_no_picture_can_be_is_told_before_the_work(run, digits_run, tmp_path):
    failed = run("evaluate.py", digits_run[1], "--picture", "/proc/p.png", cwd=tmp_path, status=1)
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: /proc/p.png: cannot be written (No such file or directory); expected a")


def test_of_many_classes_the_most_frequent_confusions_are_listed(run, tmp_path):
    names = [f"class {i:02}" for i in range(25)]
    for name, count in (("class 00", 2), ("class 07", 3), ("class 24", 1)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (28, 28), 9 * i).save(tmp_path / "mine" / name / f"{i}.png")
    model = vitnp.VisionTransformer(vitnp.ViTConfig(depth=1, dim=8, num_heads=2, mlp_dim=8, num_classes=25))
    model.classifier.head.bias[7] = 1  # so that every answer is class 07
    vitnp.save_checkpoint(tmp_path / "m", model, progress={"classes": names, "mean": [0.1], "std": [0.2]})
    output = run("evaluate.py", "m", "--folder", "mine", cwd=tmp_path).stdout
    confusions = [" ".join(line.split()) for line in output.split("most frequent confusions")[1].splitlines()[1:-2]]
    assert confusions == ["2 class 00 taken for class 07", "1 class 24 taken for class 07"]
    assert "confusion matrix" not in output
    assert re.search(r"^class 03 +0 +-$", output, re.MULTILINE)
    assert accuracy(output) == ("50.00", "6")
