"""pretrain_masked.py, as a user runs it: from a folder of images to a backbone that others read."""

import re

import numpy as np
import pytest

import vitnp

OPTIONS = ["--set", "folder", "--image-size", 28, "--patch-size", 7, "--held-out", 10, "--dim", 16, "--depth", 1]
OPTIONS += ["--heads", 2, "--mlp-dim", 16, "--epochs", 2, "--warmup-epochs", 0.5, "--batch-size", 16, "--shards", 1]


@pytest.fixture(scope="module")
def pretrained(run, photographs, tmp_path_factory):
    """What a small run printed, and its folder."""
    cwd = tmp_path_factory.mktemp("pretrained")
    return run("pretrain_masked.py", "--data", photographs, *OPTIONS, cwd=cwd).stdout, cwd / "runs" / "masked"


def test_it_says_what_is_predicted_and_how_often_it_was_right(pretrained):
    lines = pretrained[0].splitlines()
    assert lines[0] == "masked patch prediction: 512 colours of 8 patches, of 16 in an image"
    assert re.match(r"test accuracy \d+\.\d\d %  \(\d+ images; \d+\.\d s in all\)$", lines[-1])
    assert re.search(r"results in .*: backbone\.safetensors, best\.safetensors, checkpoint", pretrained[0])


def test_what_it_leaves_can_be_probed_and_trained_on(pretrained, run, photographs, tmp_path):
    backbone = vitnp.load_classifier(pretrained[1] / "backbone.safetensors")
    assert type(backbone.model) is vitnp.VisionTransformer
    assert backbone.class_names == ("nought", "one", "two")
    assert not backbone.model.classifier.head.weight.any()
    images = np.zeros((3, 28, 28, 3), "float32")
    vitnp.ShardedStep(backbone.model, vitnp.Adam(backbone.model), shards=1).step(images, np.arange(3))
    options = ["--folder", photographs, "--shots", 3, "--held-out", 10]
    output = run("probe.py", pretrained[1] / "backbone.safetensors", *options, cwd=tmp_path).stdout
    assert "16 features" in output


def test_a_resumed_run_that_was_over_says_the_same(pretrained, run, photographs, tmp_path):
    resume = ["--resume", pretrained[1] / "checkpoint.safetensors", "--data", photographs]
    again = run("pretrain_masked.py", *resume, cwd=tmp_path).stdout
    accuracy = [re.search(r"test accuracy (\S+)", output).group(1) for output in (again, pretrained[0])]
    assert accuracy[0] == accuracy[1]


def test_a_run_that_resumes_without_its_folder_asks_for_it(pretrained, run, tmp_path):
    resume = ["--resume", pretrained[1] / "checkpoint.safetensors"]
    told = run("pretrain_masked.py", *resume, cwd=tmp_path, status=1).stderr
    assert told == "error: --set folder has no images: name their folder by --data\n"


def test_of_a_small_folder_a_tenth_is_held_out(pretrained, run, photographs, tmp_path):
    options = [option for option in OPTIONS if option not in ("--held-out", 10)]
    output = run("pretrain_masked.py", "--data", photographs, *options, "--epochs", 1, cwd=tmp_path).stdout
    train, validation = map(int, re.match(r"\S+: (\d+) training, (\d+) validation", output.splitlines()[1]).groups())
    assert validation == (train + validation) // 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "folder"], "--set folder has no images: name their folder by --data"),
        (["--set", "mnist", "--shift", "28"], "--shift is 28; expected an integer from 0 to 27"),
        (["--set", "mnist", "--held-out", "60000"], "--held-out is 60000; expected an integer from 1 to 59999"),
        (
            ["--set", "mnist", "--representation-size", "9"],
            "--representation-size is 9, for a head that is not here: leave it out",
        ),
        (["--set", "mnist", "--mixup", "0.2"], "--mixup is 0.2, which mixes labels, of which there are none"),
        (["--set", "mnist", "--patch-size", "28"], "patch_size (28, 28) makes 1 patch of an image; expected 2 or more"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(run, tmp_path, options, message):
    assert run("pretrain_masked.py", *options, cwd=tmp_path, status=1).stderr == f"error: {message}\n"
