"""Metrics lose no line and have none twice: not where the disk is full for a while, nor after a kill and a resume."""

import errno
import json
import os

import pytest

from vitnp.metrics import Metrics


@pytest.fixture
def metrics(tmp_path):
    return Metrics(tmp_path / "metrics.jsonl")


def steps(metrics):
    return [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()]


def test_lines_are_in_the_file_at_once_and_counted(metrics):
    for step in range(3):
        metrics.add(step=step, loss=0.5)
        assert steps(metrics) == list(range(step + 1))
    assert metrics.lines == 3


@pytest.mark.parametrize("room", [0, 1, 7, 30])
def test_what_a_full_disk_does_not_take_follows_when_there_is_room(metrics, monkeypatch, room):
    write, left = os.write, [room]

    def full(file, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: left[0]]
        left[0] -= len(part)
        return write(file, part)

    monkeypatch.setattr(os, "write", full)
    for step in range(4):
        metrics.add(step=step)
    with pytest.raises(OSError, match="No space left"):
        metrics.flush()
    left[0] = 10_000
    metrics.add(step=4)
    assert steps(metrics) == [0, 1, 2, 3, 4]


def test_a_folder_that_is_gone_for_a_while_loses_no_later_line(metrics, tmp_path):
    folder = tmp_path / "run"
    gone = Metrics(folder / "metrics.jsonl")
    gone.add(step=0)
    folder.mkdir()
    gone.add(step=1)
    assert steps(gone) == [0, 1]


def test_flush_is_to_the_disk(metrics, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    metrics.add(step=0)
    assert not synced
    metrics.flush()
    assert len(synced) == 1


def written(metrics, count):
    """The state after each number of lines, from none to all."""
    states = [metrics.state]
    for step in range(count):
        metrics.add(step=step)
        states.append(metrics.state)
    return states


def test_what_came_after_the_checkpoint_is_dropped(metrics):
    states = written(metrics, 5)
    again = Metrics(metrics.path)
    assert again.go_on(states[3]) == 0
    again.add(step=99)
    assert steps(again) == [0, 1, 2, 99]
    assert again.lines == 4


def test_the_state_of_a_file_that_went_on_is_that_of_its_content(metrics):
    states = written(metrics, 5)
    again = Metrics(metrics.path)
    again.go_on(states[3])
    for step in (3, 4):
        again.add(step=step)
    assert again.state == states[5]


def test_a_line_that_was_cut_off_is_dropped(metrics):
    state = written(metrics, 1)[1]
    with open(metrics.path, "a") as file:
        file.write('{"step": 1')
    again = Metrics(metrics.path)
    assert again.go_on(state) == 0
    again.add(step=1)
    assert steps(again) == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:1], *lines[2:]],
        lambda lines: [*lines[:2], *lines[1:]],
        lambda lines: lines[:2],
        lambda lines: [lines[0].replace(b"0", b"7"), *lines[1:]],
        lambda lines: [*lines[:2], lines[2][:-1]],
        lambda lines: [],
    ],
    ids=["exchanged", "missing in the middle", "twice", "missing at the end", "another number", "cut", "empty"],
)
def test_lines_that_the_run_did_not_write_are_refused_and_left_as_they_are(metrics, change):
    state = written(metrics, 5)[3]
    content = b"".join(change(metrics.path.read_bytes().splitlines(keepends=True)))
    metrics.path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics.jsonl: its first \d lines have SHA-256 .*, expected 3 lines with"):
        Metrics(metrics.path).go_on(state)
    assert metrics.path.read_bytes() == content


def test_a_file_that_is_gone_is_told_by_the_lines_that_it_lacks(metrics):
    state = written(metrics, 7)[7]
    metrics.path.unlink()
    again = Metrics(metrics.path)
    assert again.go_on(state) == 7
    assert not again.path.exists()
    again.add(step=8)
    assert (steps(again), again.lines) == ([8], 1)
    assert Metrics(metrics.path).go_on(again.state) == 0


@pytest.mark.parametrize("room", [0, 5, 1000], ids=["nothing", "a part of a line", "everything"])
def test_a_file_that_was_removed_during_the_run_begins_anew_with_whole_lines(metrics, monkeypatch, room):
    written(metrics, 2)
    write, left = os.write, [room]

    def full(file, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: left[0]]
        left[0] -= len(part)
        return write(file, part)

    monkeypatch.setattr(os, "write", full)
    metrics.add(step=2)
    metrics.path.unlink()
    left[0] = 10_000
    metrics.add(step=3)
    assert steps(metrics) == ([2, 3] if room < 1000 else [3])
    assert Metrics(metrics.path).go_on(metrics.state) == 0
