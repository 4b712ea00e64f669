"""The script on two exhibits and a few steps, as a user runs it."""

import argparse
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitnp

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "wrong_gradients.py"
SMALL = ["--steps", 3, "--images", 400, "--shards", 1, "--only"]
NAMES = ["layer-norm-constant-statistics", "attention-unscaled"]


@pytest.fixture(scope="module")
def shown(run, tmp_path_factory):
    """What it printed of NAMES, and where it ran."""
    cwd = tmp_path_factory.mktemp("museum")
    return run("wrong_gradients.py", *SMALL, *NAMES, cwd=cwd).stdout, cwd


def table(output):
    lines = output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("exhibit "))
    return lines[head : head + 2 + len(NAMES)]


def test_the_table_has_a_line_for_the_right_network_and_one_for_each_exhibit(shown):
    assert [line.split()[0] for line in table(shown[0])] == ["exhibit", "right", *NAMES]


def test_the_table_is_at_most_110_columns_wide(shown):
    assert max(map(len, table(shown[0]))) <= 110


def test_gradcheck_fails_the_wrong_gradient_and_passes_the_wrong_function(shown):
    assert [re.search(r"(PASS|FAIL)", line)[1] for line in table(shown[0])[1:]] == ["PASS", "FAIL", "PASS"]


def test_every_line_ends_with_an_accuracy(shown):
    assert all(re.search(r" \d+\.\d %$", line) for line in table(shown[0])[1:])


def test_what_is_wrong_stands_above_what_is_right(shown):
    assert re.search(r"wrong  dx = rstd · ĝ\n.+\n    right  dx = rstd · \(ĝ − ", shown[0])


def test_the_first_wrong_tensor_is_named(shown):
    assert "gradcheck FAIL, first at blocks.1.mlp.fc2.bias on the way back" in shown[0]


def test_the_picture_is_a_png(shown):
    with Image.open(shown[1] / "runs" / "museum" / "wrong_gradients.png") as image:
        assert image.format == "PNG"


def test_help_tells_every_option_with_its_default(run, tmp_path):
    text = " ".join(run("wrong_gradients.py", "--help", cwd=tmp_path).stdout.split())
    assert text.count("(default: ") == 7
    assert "None" not in text


def test_the_curve_of_a_network_that_diverges_ends_there():
    class Diverging(vitnp.Adam):
        def step(self, ctx, in_parts=None):
            super().step(ctx, in_parts)
            if self.steps == 2:
                self.model.flat[...] = np.nan

    bench = runpy.run_path(str(SCRIPT))["Bench"](argparse.Namespace(images=300, seed=0, shards=1, steps=3))
    curve = bench.train(bench.model(), Diverging, "diverging", "update")
    assert len(curve.accuracies) == 1
    assert math.isnan(curve.tested)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "softmax-diag"], "error: there is no exhibit 'softmax-diag'; expected a name"),
        (["--only", "all", "softmax-diagonal"], "error: --only is all softmax-diagonal; expected all, or names"),
        (["--steps", "0"], "error: --steps is 0; it must be at least 1"),
        (["--images", "5"], "error: --images is 5; it must be at least 128"),
        (["--seed", "-1"], "error: --seed is -1; it must be at least 0"),
        (["--shards", "0"], "error: --shards is 0; it must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(run, tmp_path, options, message):
    failed = run("wrong_gradients.py", *options, cwd=tmp_path, status=1)
    assert failed.stderr.startswith(message)
    assert failed.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_refused_as_a_folder(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    failed = run("wrong_gradients.py", "--out", "out", cwd=tmp_path, status=1)
    assert failed.stderr == "error: --out is out, a file; expected a folder, or a name for a new one\n"


def test_a_name_given_twice_is_shown_once():
    choose = runpy.run_path(str(SCRIPT))["choose"]
    assert [exhibit.name for exhibit in choose([NAMES[1], NAMES[0], NAMES[1]])] == [NAMES[1], NAMES[0]]


def test_all_are_shown_if_all_are_asked_for(tmp_path, monkeypatch):
    script = runpy.run_path(str(SCRIPT))
    args = script["make_parser"]().parse_args(["--only", "all", "--out", str(tmp_path)])
    shown = []
    monkeypatch.setitem(script["run"].__globals__, "Bench", lambda args: shown.append(args) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # it came as far as the first training, so the name was no mistake
        script["run"](args)
    assert shown == [args]


def test_a_picture_is_not_written_over(run, shown):
    failed = run("wrong_gradients.py", *SMALL, *NAMES, cwd=shown[1], status=1)
    assert failed.stderr.startswith("error: runs/museum/wrong_gradients.png: exists already")
