"""A few of the trials of `python -m tests.faults`, and that the promises and the ways to break them are real."""

import ast
import signal
import time

import numpy as np
import pytest
from faults import broken, damage, runs
from mutants.trial import ROOT, patched

RNG = 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed, and the seconds that it took."""
    cwd = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    runs.finish(runs.start(cwd))
    return cwd / runs.RUN, time.monotonic() - started


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(whole, tmp_path):
    folder, seconds = whole
    runs.kill_and_resume(tmp_path, np.random.default_rng(RNG), seconds, kills=3)
    assert runs.differences(tmp_path / runs.RUN, folder) == []


def test_a_run_killed_while_it_saves_leaves_checkpoints_that_load(tmp_path):
    rng = np.random.default_rng(RNG)
    for _ in range(3):
        assert runs.kill_while_saving(tmp_path, rng)[0] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_a_random_moment_saves_and_says_how_to_resume(tmp_path, number):
    assert runs.stop(tmp_path, np.random.default_rng(RNG), number)[0] == []


def test_a_second_signal_leaves_a_checkpoint_that_loads(tmp_path):
    assert runs.stop(tmp_path, np.random.default_rng(RNG), signal.SIGINT, again=True)[0] == []


def test_no_truncated_checkpoint_loads(tmp_path):
    assert damage.truncations(tmp_path / "m", every=29) == []


def test_no_flipped_bit_of_a_checkpoint_loads(tmp_path):
    assert damage.flips(tmp_path / "m", np.random.default_rng(RNG), 400) == []


def test_no_damaged_data_file_loads_as_something_else_without_a_word(tmp_path):
    became, silent = damage.damaged_data(tmp_path, np.random.default_rng(RNG), 70)
    assert silent == []
    assert became["refused"] > 40
    assert became["told"] > 0


# -- the table of promises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", broken.CHECKS, ids=lambda check: check.test)
def test_every_way_to_break_a_promise_fits_the_sources_and_is_python(check):
    for source in patched(check.edits).values():
        ast.parse(source)


@pytest.mark.parametrize("check", broken.CHECKS, ids=lambda check: check.test)
def test_every_promise_points_at_a_test_that_there_is(check):
    file, _, name = check.test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("promise", broken.PROMISES, ids=lambda promise: promise.text)
def test_every_promise_is_a_row_of_the_table_with_its_tests(promise):
    rows = [line.split("|") for line in (ROOT / "tests" / "README.md").read_text("utf-8").splitlines()]
    (row,) = [row for row in rows if row[1:2] == [f" {promise.text} "]]
    assert [test.strip(" `") for test in row[2].split("<br>")] == list(dict.fromkeys(c.test for c in promise.checks))
    assert row[3].strip()
