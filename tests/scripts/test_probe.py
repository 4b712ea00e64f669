"""probe.py, as a user runs it."""

import re

import numpy as np
import pytest

import vitnp
from vitnp.data import load_folder
from vitnp.pretrained import save_pretrained


def rows(output):
    """Shots, images, validation and test accuracy, spread and strengths of each row."""
    pattern = r"^ *(\d+|all) +([\d,]+) +(\d+\.\d\d) % +(\d+\.\d\d) % +(\d+\.\d\d)   (2\^.*)$"
    return re.findall(pattern, output, re.MULTILINE)


def test_a_checkpoint_is_probed_on_the_images_of_its_run(run, digits_run, tmp_path):
    options = ["--shots", "2,20,all", "--held-out", 300, "--choices", 2]
    found = rows(run("probe.py", digits_run[1], *options, cwd=tmp_path).stdout)
    assert [row[:2] for row in found] == [("2", "20"), ("20", "200"), ("all", "4,700")]
    assert [len(row[5].split(", ")) for row in found] == [2, 2, 1]
    two, twenty, every = (float(row[3]) for row in found)
    assert 12 < two < twenty < every


def test_a_published_model_is_probed_on_a_folder(run, photographs, tmp_path):
    model = vitnp.VisionTransformer(vitnp.ViTConfig(channels=3, dim=16, depth=1, num_heads=2, mlp_dim=16), rng=3)
    save_pretrained(model, tmp_path / "vit", layout="huggingface")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_std": [50.0, 50.0, 50.0]}')
    options = ["--pretrained", tmp_path / "vit", "--folder", photographs, "--mean", "0.4,0.4,0.4", "--num-heads", 2]
    output = run("probe.py", *options, "--held-out", 10, "--shots", "3", "--choices", 1, cwd=tmp_path).stdout
    whole = load_folder(photographs, 28, 3)
    training, test = vitnp.data.find_splits(photographs, None, 0.1, 0)
    fit, held_out = training.read(28, 3).split(10, 0)
    assert len(whole) == len(fit) + 10 + len(test)
    pairs = []
    for part in (fit.subset(vitnp.few_shot_indices(fit.labels, 3)), held_out, test.read(28, 3)):
        pairs.append((vitnp.features(model, part.images, mean=[0.4] * 3, std=[50.0, 50.0, 50.0]), part.labels))
    probe = vitnp.linear_probe(*pairs[0], num_classes=3, validation=pairs[1])
    expected = f"{100 * probe.accuracies[probe.strength]:.2f}", f"{100 * probe.accuracy(*pairs[2]):.2f}"
    assert rows(output) == [("3", "9", *expected, "0.00", f"2^{np.log2(probe.strength):.0f}")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
