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


def test_what_came_after_the_checkpoint_is_dropped(metrics):
    for step in range(5):
        metrics.add(step=step)
    again = Metrics(metrics.path)
    assert again.go_on(3) == 0
    again.add(step=99)
    assert steps(again) == [0, 1, 2, 99]
    assert again.lines == 4


def test_a_line_that_was_cut_off_is_dropped(metrics):
    metrics.add(step=0)
    with open(metrics.path, "a") as file:
        file.write('{"step": 1')
    again = Metrics(metrics.path)
    assert again.go_on(2) == 1
    again.add(step=1)
    assert steps(again) == [0, 1]


def test_a_file_that_is_gone_is_told_by_the_lines_that_it_lacks(metrics):
    assert metrics.go_on(7) == 7
    assert not metrics.path.exists()
    metrics.add(step=8)
    assert (steps(metrics), metrics.lines) == ([8], 1)
