"""The report: short, worst first, at most 100 columns, and the same facts as JSON and as a picture."""

import json

import numpy as np
import pytest
from helpers import hard_model, images_for, labels_for, make_layer, normal, randomize
from PIL import Image

from vitnp import GradcheckError, VisionTransformer, ViTConfig, gradcheck
from vitnp.gradient_check.report import Report, Row
from vitnp.layers import Linear


class Wrong(Linear):
    """Its input gradient is off by a little, which spoils everything before it."""

    def backward(self, dy, ctx):
        return 1.01 * super().backward(dy, ctx)


@pytest.fixture(scope="module")
def failed():
    model = hard_model()
    model.classifier.head.__class__ = Wrong
    return gradcheck(model, images_for(model), labels_for(model), mode="full")


@pytest.fixture(scope="module")
def passed():
    return gradcheck(*make_layer("linear"), mode="full")


def test_a_failure_takes_15_lines_at_most(failed):
    assert sum(row.verdict == "FAIL" for row in failed.rows) > 25
    assert len(str(failed).splitlines()) <= 15


@pytest.mark.parametrize("whole", [False, True])
def test_no_line_is_wider_than_100_columns(failed, whole):
    config = ViTConfig(image_size=32, patch_size=8, channels=3, dim=8, depth=12, num_heads=2, mlp_dim=8)
    model = randomize(VisionTransformer(config, rng=0, dtype="float64"))
    report = gradcheck(model, normal((3, 32, 32, 3), 1), [1, 2, 3], mode="directions")
    for text in (failed.table() if whole else str(failed), report.table() if whole else str(report)):
        assert max(map(len, text.splitlines())) <= 100


LONG = "forward loses imaginary parts, as " + "np.var, " * 12 + "and others do"


@pytest.mark.parametrize("hint", ["", "short", LONG, LONG * 3])
@pytest.mark.parametrize("notes", [0, 1, 3, 40])
@pytest.mark.parametrize("note", ["short", LONG, LONG * 3, "of\nseveral\nlines"])
def test_15_lines_of_100_columns_hold_whatever_there_is(hint, notes, note):
    rows = [Row(f"w{i}", (3,), "all 3", 0.5, (0,), 1.0, 2.0, "FAIL", hint) for i in range(30)]
    rows += [Row("right", (3,), "all 3", 1e-16, (0,), 1.0, 1.0, "PASS")]
    report = Report("a" * 150, "complex", "full", 1e-10, rows, [note] * notes, start_here="b" * 150)
    lines = str(report).splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 100
    assert lines[0].endswith("  FAIL")
    assert lines[2].startswith("w0 ")
    assert sum(line.startswith("note: ") for line in lines) >= min(notes, 1)
    assert max(map(len, report.table().splitlines())) <= 100


def test_notes_that_do_not_fit_are_counted():
    row = Row("w", (3,), "all 3", 0.5, (0,), 1.0, 2.0, "FAIL")
    report = Report("f", "complex", "full", 1e-10, [row], [f"note {i}" for i in range(40)])
    assert str(report).splitlines()[-1] == "note: 35 more in report.notes"
    assert report.table().splitlines()[-1] == "note: note 39"


def test_a_hint_of_two_lines_is_whole():
    hint = "the first word and " + "more " * 20 + "and the last word"
    report = Report("f", "complex", "full", 1e-10, [Row("w", (3,), "all 3", 0.5, (0,), 1.0, 2.0, "FAIL", hint)])
    assert " ".join(" ".join(str(report).splitlines()[3:]).split()) == hint


def test_a_report_without_rows_can_be_printed():
    assert str(Report("f", "", "", 0.0)).splitlines()[0].startswith("f, 0.00 s")


@pytest.mark.parametrize("verdict", ["LOST", "", "pass", "ANYTHING"])
def test_a_verdict_that_nobody_knows_is_not_ok(verdict):
    rows = [Row("a", (3,), "all 3", 0.0, (0,), 1.0, 1.0, "PASS"), Row("b", (3,), "", 0.0, None, 1.0, 1.0, verdict)]
    report = Report("f", "complex", "full", 1e-10, rows)
    assert (report.verdict, report.ok) == ("INCONCLUSIVE", False)
    with pytest.raises(GradcheckError):
        report.raise_if_failed()


def test_the_first_line_ends_with_the_verdict(failed, passed):
    assert str(failed).splitlines()[0].startswith("VisionTransformer: complex, full, tolerance 1e-10, ")
    assert str(failed).splitlines()[0].endswith("  FAIL")
    assert str(passed).splitlines()[0].endswith("  PASS")


def test_rows_that_pass_are_folded_into_one_line(passed):
    lines = str(passed).splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("... 2 right (largest error ")


def test_the_rest_of_the_failures_is_counted(failed):
    wrong = sum(row.verdict == "FAIL" for row in failed.rows)
    assert f"... {wrong - 5} more · {len(failed.rows) - wrong} right" in str(failed)


def test_the_whole_table_has_a_line_for_each_tensor_worst_first(failed):
    lines = failed.table().splitlines()
    names = [row.name for row in sorted(failed.rows, key=lambda row: -row.error)]
    shown = [line.split()[0] for line in lines[2:] if not line.startswith(("  ", "start", "note"))]
    assert [name for name in shown if "..." not in name] == [name for name in names if len(name) <= 28]


def test_grave_rows_come_before_larger_errors():
    rows = [
        Row("a", (3,), "all 3", 0.5, (0,), 1.0, 2.0, "FAIL"),
        Row("b", (3,), "", np.inf, None, np.nan, np.nan, "MISSING", "there is no gradient for it; there are a"),
    ]
    report = Report("f", "complex", "full", 1e-10, rows)
    assert (report.verdict, report.worst.name) == ("MISSING", "b")
    assert str(report).splitlines()[2:4] == ["b      MISSING", "  there is no gradient for it; there are a"]


def test_a_long_name_keeps_both_ends():
    row = Row("a" * 20 + "." + "b" * 20, (3,), "all 3", 0.5, (0,), 1.0, 2.0, "FAIL")
    line = str(Report("f", "complex", "full", 1e-10, [row])).splitlines()[2]
    assert line.startswith("aaaaaaaaaaaaa...bbbbbbbbbbbb ")


def test_a_row_of_long_numbers_a_long_name_and_a_long_verdict_fits():
    rows = [Row("n" * 40, (3,), "10 directions", 1e-100, (1000, 1000, 1000), -1.5e-300, -2.5e-300, "INCONCLUSIVE")]
    report = Report("f", "complex", "full", 1e-10, rows)
    assert max(map(len, report.table().splitlines())) <= 100


def test_a_long_title_leaves_room_for_the_method():
    row = Row("w", (3,), "all 3", 0.5, (0,), 1.0, 2.0, "FAIL")
    head = str(Report("t" * 150, "complex", "full", 1e-10, [row])).splitlines()[0]
    assert ": complex, full, tolerance 1e-10, 0.00 s  FAIL" in head
    assert len(head) <= 100


def test_a_vacuous_check_of_a_function_hears_nothing_of_models():
    note = str(gradcheck(lambda a: 0 * a.sum(), np.ones(3), grads=np.zeros_like))
    assert "1 of 1 gradients are zero" in note
    assert "model" not in note


def test_json_holds_the_verdict_and_every_row(failed):
    found = json.loads(failed.to_json())
    assert (found["verdict"], found["ok"], found["method"], found["mode"]) == ("FAIL", False, "complex", "full")
    assert [row["name"] for row in found["rows"]] == [row.name for row in failed.rows]
    assert found["rows"][0]["error"] == failed.rows[0].error
    assert found["start_here"] == failed.start_here


def test_json_has_null_for_what_is_not_finite():
    row = Row("b", (3,), "", np.inf, None, np.nan, np.nan, "MISSING")
    found = json.loads(Report("f", "complex", "full", 1e-10, [row]).to_json())
    assert (found["rows"][0]["error"], found["rows"][0]["analytic"]) == (None, None)


def test_json_takes_a_tolerance_of_any_kind_of_number():
    report = gradcheck(*make_layer("linear"), tolerance=np.float32(1e-3))
    assert json.loads(report.to_json())["tolerance"] == pytest.approx(1e-3)


def test_rows_are_in_forward_order_those_of_faults_too():
    arrays = {"a": np.ones(3), "b": np.ones(2), "c": np.ones(4)}
    report = gradcheck(
        lambda a, b, c: (a * a).sum() + (b * b).sum() + (c * c).sum(),
        arrays,
        grads=lambda a, b, c: {"a": 2 * a, "b": np.full(2, np.nan)},
    )
    assert [(row.name, row.verdict) for row in report.rows] == [("a", "PASS"), ("b", "FAIL"), ("c", "MISSING")]


# the picture


def test_the_heat_map_is_dark_where_the_error_is(tmp_path):
    def grads(dy, a):
        gradient = 2 * a * dy
        gradient[3, 1] *= 3
        return gradient

    report = gradcheck(lambda a: a * a, normal((5, 4), 1), grads=grads, mode="full")
    report.heatmap("a", tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        pixels = np.asarray(picture.convert("L"), int)
    squares = [[pixels[32 + 24 * row + 12, 16 + 24 * column + 12] for column in range(4)] for row in range(5)]
    assert np.argwhere(np.array(squares) < 120).tolist() == [[3, 1]]


def test_a_tensor_of_zeros_has_a_heat_map_too(tmp_path):
    arrays = {"a": np.ones((2, 3)), "unused": np.ones((2, 3))}
    report = gradcheck(
        lambda a, unused: (a * a).sum(), arrays, grads={"a": 2 * arrays["a"], "unused": np.zeros((2, 3))}
    )
    assert {row.name: row.verdict for row in report.rows} == {"a": "PASS", "unused": "ZERO"}
    report.heatmap("unused", tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()


def test_a_tensor_checked_along_a_direction_has_no_heat_map(tmp_path):
    report = gradcheck(*make_layer("linear"), mode="directions")
    with pytest.raises(ValueError, match=r"weight was not checked in every coordinate.*use mode='full'"):
        report.heatmap("weight", tmp_path / "map.png")
    assert list(tmp_path.iterdir()) == []


def test_a_heat_map_is_not_written_over_a_file(tmp_path, passed):
    (tmp_path / "map.png").write_text("mine")
    with pytest.raises(FileExistsError):
        passed.heatmap("weight", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_text() == "mine"
