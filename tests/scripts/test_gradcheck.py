"""gradcheck.py, as a user runs it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "gradcheck.py"


def test_every_target_passes_and_the_last_line_says_so(run, tmp_path):
    output = run("gradcheck.py", cwd=tmp_path).stdout
    assert re.match(r"28 of 28 targets pass: 157 tensors, largest error \de-1[56]$", output.splitlines()[-1])


def test_json_holds_a_report_a_target(run, tmp_path):
    reports = json.loads(run("gradcheck.py", "--mode", "directions", "--json", cwd=tmp_path).stdout)
    assert [report["verdict"] for report in reports] == ["PASS"] * 28
    assert sum(len(report["rows"]) for report in reports) == 157


@pytest.mark.parametrize("options", [["--layers"], ["--mode", "directions"]])
@pytest.mark.parametrize("images", [["--images", "digits"], ["--image-size", "16"]])
def test_a_model_on_images_passes(run, tmp_path, options, images):
    output = run("gradcheck.py", "--model", "tiny", *images, *options, "--json", cwd=tmp_path).stdout
    assert json.loads(output)["verdict"] == "PASS"


def test_a_published_size_is_checked_layer_by_layer(run, tmp_path):
    output = run("gradcheck.py", "--model", "Ti/32", "--image-size", 64, "--batch", 1, "--layers", cwd=tmp_path).stdout
    assert output.splitlines()[0].endswith("PASS")
    assert "... 338 right" in output


@pytest.mark.parametrize("method", ["richardson", "5point", "central"])
def test_other_methods_pass_too(run, tmp_path, method):
    run("gradcheck.py", "--method", method, "--mode", "directions", cwd=tmp_path)


@pytest.mark.parametrize(
    ("options", "passes"), [([], "21 of 28 targets pass"), (["--model", "tiny", "--image-size", "16"], "FAIL")]
)
def test_a_wrong_gradient_is_status_1(tmp_path, options, passes):
    """The script's verdict, on a copy of the package whose layer norm forgets a term."""
    shutil.copytree(SCRIPT.parent.parent / "vitnp", tmp_path / "vitnp")
    source = tmp_path / "vitnp" / "kernels" / "cpu.py"
    text = source.read_text()
    assert "dx_ -= (dy_ @ mean_weights)[:, None]" in text
    source.write_text(text.replace("dx_ -= (dy_ @ mean_weights)[:, None]", "pass"))
    failed = subprocess.run(
        [sys.executable, SCRIPT, *options],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1
    assert passes in failed.stdout


def test_the_curve_comes_with_its_lesson(run, tmp_path):
    output = run("gradcheck.py", "--v-curve", "attention", cwd=tmp_path).stdout
    assert "The complex step subtracts nothing" in output
    assert output.count("\n") > 25


@pytest.mark.parametrize(
    ("layer", "lesson"),
    [
        ("linear", "has no third derivative"),
        ("dropout", "has no third derivative"),
        ("gelu", "At the bottom of that V"),
    ],
)
def test_the_lesson_is_that_of_the_curve(run, tmp_path, layer, lesson):
    assert lesson in run("gradcheck.py", "--v-curve", layer, cwd=tmp_path).stdout


@pytest.mark.parametrize(("name", "title"), [("gelu", "GELU (tanh)"), ("gelu-2", "GELU (erf)")])
def test_each_variant_of_a_layer_has_its_curve(run, tmp_path, name, title):
    assert title in run("gradcheck.py", "--v-curve", name, cwd=tmp_path).stdout.splitlines()[0]


def test_a_layer_that_there_is_not_is_refused_with_the_choices(run, tmp_path):
    failed = run("gradcheck.py", "--v-curve", "conv", cwd=tmp_path, status=1)
    assert failed.stderr.startswith("error: --v-curve is 'conv'; choose one of linear, layernorm, ")


def test_a_size_that_there_is_not_is_refused_with_the_choices(run, tmp_path):
    failed = run("gradcheck.py", "--model", "Xi/16", cwd=tmp_path, status=1)
    assert failed.stderr.startswith("error: there is no ViT 'Xi/16': sizes are Ti, S")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "tiny", "--batch", "0"], "--batch is 0; it must be at least 1"),
        (["--model", "tiny", "--batch", "-1"], "--batch is -1; it must be at least 1"),
        (["--model", "tiny", "--image-size", "0"], "--image-size is 0; it must be at least 1"),
        (["--model", "tiny", "--image-size", "3"], "--image-size is 3; the tiny model needs at least 4"),
        (["--model", "tiny", "--images", "digits", "--batch", "5000"], "--batch is 5000; there are 1000 images"),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--layers"], "--layers would change nothing: it needs --model"),
        (["--images", "digits"], "--images would change nothing: it needs --model"),
        (["--image-size", "16"], "--image-size would change nothing: it needs --model"),
        (["--batch", "3"], "--batch would change nothing: it needs --model"),
        (["--picture", "a.png"], "--picture would change nothing: it needs --v-curve"),
        (["--v-curve", "tanh", "--json"], "--json would change nothing: it needs a check, without --v-curve"),
        (["--v-curve", "tanh", "--model", "tiny"], "--model would change nothing: it needs a check"),
        (["--model", "tiny", "--layers", "--mode", "full"], "--mode would change nothing: it needs a check without"),
        (["--model", "tiny", "--images", "digits", "--image-size", "8"], "--image-size would change nothing: it needs"),
        (["--v-curve", "tanh", "--picture", "none/a.png"], "none: there is no such folder"),
        (["--v-curve", "tanh", "--picture", "a.jpg"], "a.jpg: pictures are written as PNG"),
    ],
)
def test_what_would_be_of_no_use_is_refused_by_name_before_anything_is_done(run, tmp_path, options, message):
    failed = run("gradcheck.py", *options, cwd=tmp_path, status=1)
    assert failed.stderr.startswith(f"error: {message}")
    assert failed.stderr.count("\n") == 1
    assert failed.stdout == ""
