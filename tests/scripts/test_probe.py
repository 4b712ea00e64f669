"""probe.py, as a user runs it."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vitnp
from vitnp.data import load_folder
from vitnp.pretrained import save_pretrained


def rows(output):
    """Shots, images, validation and test accuracy, spread and strengths of each row."""
    pattern = r"^ *(\d+|all) +([\d,]+) +(\d+\.\d\d) % +(\d+\.\d\d) % +(\d+\.\d\d)   (2\^.*)$"
    return re.findall(pattern, output, re.MULTILINE)


def test_a_checkpoint_is_probed_on_the_images_of_its_run(run, digits_run, tmp_path):
    options = ["--shots", "2,20,all", "--choices", 2]
    found = rows(run("probe.py", digits_run[1], *options, cwd=tmp_path).stdout)
    assert [row[:2] for row in found] == [("2", "20"), ("20", "200"), ("all", "400")]
    assert [len(row[5].split(", ")) for row in found] == [2, 2, 1]
    two, twenty, every = (float(row[3]) for row in found)
    assert 12 < two < twenty < every


def test_a_published_model_is_probed_on_a_folder(run, photographs, tmp_path):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(channels=3, dim=16, depth=1, num_heads=2, mlp_dim=16), rng=3)
    save_pretrained(model, tmp_path / "vit", layout="huggingface")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_std": [50.0, 50.0, 50.0]}')
    options = ["--pretrained", tmp_path / "vit", "--folder", photographs, "--mean", "0.4,0.4,0.4", "--num-heads", 2]
    output = run("probe.py", *options, "--shots", "3", "--choices", 1, cwd=tmp_path).stdout
    whole = load_folder(photographs, 28, 3)
    training, test = vitnp.data.find_splits(photographs, None, 0.1, 0)
    fit, held_out = training.read(28, 3).split(len(training) // 10, 0)
    assert len(whole) == len(fit) + len(held_out) + len(test)
    pairs = []
    for part in (fit.subset(vitnp.few_shot_indices(fit.labels, 3)), held_out, test.read(28, 3)):
        pairs.append((vitnp.features(model, part.images, mean=[0.4] * 3, std=[50.0, 50.0, 50.0]), part.labels))
    probe = vitnp.linear_probe(*pairs[0], num_classes=3, validation=pairs[1])
    expected = f"{100 * probe.accuracies[probe.strength]:.2f}", f"{100 * probe.accuracy(*pairs[2]):.2f}"
    assert rows(output) == [("3", "9", *expected, "0.00", f"2^{np.log2(probe.strength):.0f}")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "--seed is 1, but the run held out its images by seed 0: leave it out"),
        (["--held-out", "101"], "--held-out is 101, but the run held out 100, and trained on the others"),
        (["--shots", "600"], "class 0 has .* images; expected at least 600, one for each shot"),
        (["--choices", "0"], "--choices is 0; it must be at least 1"),
        (["--set", "cifar10", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_probed_is_one_line(run, digits_run, tmp_path, options, message):
    result = run("probe.py", digits_run[1], *options, cwd=tmp_path, status=1)
    assert re.match(rf"error: .*{message}.*\n$", result.stderr)
    assert result.stdout == ""


def test_images_that_no_run_tells_are_to_be_named(run, tmp_path):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(dim=16, depth=1, num_heads=2, mlp_dim=16))
    save_pretrained(model, tmp_path / "vit.npz", layout="google")
    error = run("probe.py", "--pretrained", "vit.npz", "--num-heads", 2, cwd=tmp_path, status=1).stderr
    assert error == "error: the network is of vit.npz: name its images by --set\n"


def test_a_folder_run_is_told_of_folder(run, folder_run, photographs, tmp_path):
    error = run("probe.py", folder_run[1], cwd=tmp_path, status=1).stderr
    assert error == "error: the network learned from a folder of images: name it by --folder, or others by --set\n"
    output = run("probe.py", folder_run[1], "--folder", photographs, "--shots", 3, "--choices", 1, cwd=tmp_path).stdout
    assert "10 that choose the strength" in output


def test_a_folder_run_is_tested_where_it_was(run, photographs, folder_options, tmp_path):
    other = shutil.copytree(photographs, tmp_path / "other")
    for name in ("nought", "one"):
        next((other / name).iterdir()).unlink()
    options = [*folder_options, "--test-data", other, "--epochs", 1]
    run("train_folder.py", "--data", photographs, *options, cwd=tmp_path)
    options = "runs/folder/checkpoint.safetensors", "--shots", 3, "--choices", 1, "--folder"
    output = run("probe.py", *options, photographs, cwd=tmp_path).stdout
    assert f"{len(list(other.rglob('*.png')))} of the test" in output
    third = shutil.copytree(other, tmp_path / "third")
    error = run("probe.py", *options, third, cwd=tmp_path, status=1).stderr
    assert re.match(rf"error: .*third: not the files that the run began with, whose test was in {other}: name", error)
    assert (
        f"{len(list(photographs.rglob('*.png')))} of the test"
        in run("probe.py", *options, third, "--test-data", photographs, cwd=tmp_path).stdout
    )


@pytest.mark.parametrize(("option", "value"), [("--mean", 0.3), ("--grid", 4), ("--layer-norm-eps", 0.1)])
def test_what_a_checkpoint_tells_itself_is_refused(option, value, run, digits_run, tmp_path):
    error = run("probe.py", digits_run[1], option, value, cwd=tmp_path, status=2).stderr
    assert f"{option} goes with --pretrained: a checkpoint tells it itself" in error


# -- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch):
    path = Path(__file__).parent.parent.parent / "scripts" / "probe.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("probe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_strength_is_chosen_on_what_the_run_held_out(script):
    """Run with another seed than 0, whose training images are others than those of seed 0."""
    settings = {"seed": 3, "images": 30, "held_out": 12}
    progress = {"script": "train_digits.py", "settings": settings}
    args = script.make_parser().parse_args(["checkpoint"])
    whole, test = script.load_sets(args, vitnp.VisionTransformer(vitnp.ViTConfig(), rng=None), progress)
    trained, held_out = vitnp.data.load_digits(42, seed=3).split(12, 3)
    found = whole.split(args.held_out, args.seed)
    assert [part.digest() for part in found] == [trained.digest(), held_out.digest()]
    assert test.digest() == vitnp.data.load_digits(2000, seed=1_000_003).digest()


def test_a_finetuned_network_is_of_the_data_set_in_its_settings(script):
    progress = {"script": "finetune.py", "settings": {"dataset": "cifar10", "seed": 5, "held_out": 70}}
    assert script.name_of_set(progress) == "cifar10"
    args = script.make_parser().parse_args(["checkpoint", "--set", "mnist"])
    assert script.take_settings(args, progress) == {}
    assert (args.seed, args.held_out) == (0, 1000)
    args = script.make_parser().parse_args(["checkpoint"])
    script.take_settings(args, {**progress, "settings": {**progress["settings"], "held_out": 5000}})
    assert (args.seed, args.held_out) == (5, 1000)
    args = script.make_parser().parse_args(["checkpoint", "--set", "cifar10", "--held-out", "60"])
    assert script.take_settings(args, progress) == progress["settings"]
    assert (args.seed, args.held_out) == (5, 60)


def test_a_published_model_without_classifier_is_probed_as_with_one(tmp_path, monkeypatch, script, capsys):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(channels=3, dim=16, depth=1, num_heads=2, mlp_dim=16), rng=3)
    save_pretrained(model, tmp_path / "whole", layout="huggingface")
    shutil.copytree(tmp_path / "whole", tmp_path / "bare")
    arrays = load_file(tmp_path / "whole" / "model.safetensors")
    bare = {name: array for name, array in arrays.items() if not name.startswith("classifier.")}
    assert len(arrays) - len(bare) == 2
    save_file(bare, tmp_path / "bare" / "model.safetensors")
    digits = vitnp.data.load_digits(60)
    stand_in = vitnp.data.NAMED_SETS["mnist"]._replace(loader=lambda part, root: digits)
    monkeypatch.setitem(vitnp.data.NAMED_SETS, "mnist", stand_in)
    found = []
    for name in ("whole", "bare"):
        options = ["--pretrained", tmp_path / name, "--set", "mnist", "--held-out", 20, "--shots", "1"]
        assert script.probe(script.make_parser().parse_args([str(option) for option in options])) == 0
        found.append(rows(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0][0][:2] == ("1", "10")


def test_images_of_another_size_are_scaled_to_the_model_s(tmp_path, monkeypatch, script, capsys):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(image_size=14, channels=3, dim=16, depth=1, mlp_dim=16))
    save_pretrained(model, tmp_path / "vit.npz", layout="google")
    digits = vitnp.data.load_digits(60)
    stand_in = vitnp.data.NAMED_SETS["mnist"]._replace(loader=lambda part, root: digits)
    monkeypatch.setitem(vitnp.data.NAMED_SETS, "mnist", stand_in)
    options = [
        "--pretrained",
        tmp_path / "vit.npz",
        "--num-heads",
        4,
        "--set",
        "mnist",
        "--held-out",
        20,
        "--shots",
        "1",
    ]
    args = script.make_parser().parse_args([str(option) for option in options])
    assert script.probe(args) == 0
    assert rows(capsys.readouterr().out)[0][:2] == ("1", "10")
