"""What training scripts share: defaults that follow from an option, and options that reach what they name."""

import dataclasses
import warnings

import numpy as np
import pytest

from vitnp import train
from vitnp.data import Augmentation, DataNotice
from vitnp.options import make_augmentation, training_parser


def parser():
    made = training_parser("A toy.", dim=64, lr=1e-3, epochs=3)
    made.add_argument("--preset", choices=("small", "large"))
    made.add_argument("--fashion", action="store_true")
    made.when("preset", "small", dim=8, lr=2e-3)
    made.when("fashion", True, flip=True, lr=5e-3)
    return made


def test_without_a_preset_the_script_s_own_defaults_hold():
    args = parser().parse_args([])
    assert (args.dim, args.lr, args.flip) == (64, 1e-3, False)


def test_a_preset_changes_its_defaults_and_no_others():
    args = parser().parse_args(["--preset", "small"])
    assert (args.dim, args.lr, args.epochs, args.flip) == (8, 2e-3, 3, False)


def test_what_the_user_says_goes_before_the_preset():
    args = parser().parse_args(["--dim", "32", "--preset", "small"])
    assert (args.dim, args.lr) == (32, 2e-3)


def test_the_default_of_the_script_can_be_asked_for_against_the_preset():
    assert parser().parse_args(["--preset", "small", "--dim", "64"]).dim == 64


def test_of_two_variants_the_later_one_goes_first():
    args = parser().parse_args(["--preset", "small", "--fashion"])
    assert (args.dim, args.lr, args.flip) == (8, 5e-3, True)


def test_only_what_the_command_line_says_counts_as_given():
    made = parser()
    made.parse_args(["--preset", "small", "--dim", "64", "--no-flip"])
    assert made.given == {"preset": "small", "dim": 64, "flip": False}


def test_a_preset_that_does_not_exist_ends_with_the_choices(capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--preset", "huge"])
    assert stop.value.code == 2
    assert "invalid choice: 'huge' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("name", train.RESULTS)
def test_a_folder_with_a_file_that_a_run_would_write_over_is_left_alone(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("precious")
    assert train._claim_folder(tmp_path / "run") == tmp_path / "run-2"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]
    assert (tmp_path / "run" / name).read_text() == "precious"


def test_a_folder_with_other_files_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert train._claim_folder(tmp_path) == tmp_path


def test_two_runs_at_once_get_two_folders(tmp_path):
    assert len({train._claim_folder(tmp_path / "run") for _ in range(5)}) == 5


def test_an_error_without_a_text_is_named(capsys):
    def work():
        raise MemoryError

    assert train.report_errors(work, debug=False) == 1
    assert capsys.readouterr().err == "error: MemoryError\n"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Augmentation)])
def test_every_augmentation_has_an_option_that_is_off_unless_said(field):
    option = "--" + field.replace("_", "-")
    off, on = parser().parse_args([]), parser().parse_args([option] if field == "flip" else [option, "1"])
    assert make_augmentation(off) == Augmentation()
    assert getattr(make_augmentation(on), field) == 1
    assert np.isscalar(getattr(off, field))


def test_a_data_notice_is_one_plain_line(capsys):
    def work():
        warnings.warn("content differs", DataNotice, stacklevel=1)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert train.report_errors(work, debug=False) == 0
    assert capsys.readouterr().err == "notice: content differs\n"


def test_other_warnings_go_where_they_always_go(monkeypatch):
    def work():
        warnings.warn("something else", UserWarning, stacklevel=1)
        return 0

    seen = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *place: seen.append(str(message)))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        train.report_errors(work, debug=False)
    assert seen == ["something else"]


def test_there_are_no_curves_of_a_run_that_was_resumed_at_its_end_without_its_metrics(tmp_path):
    (tmp_path / train.METRICS).write_text('{"step": 12, "test_loss": 0.5, "test_accuracy": 0.9}\n')
    train._draw_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()
