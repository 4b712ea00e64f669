"""What is printed to a full disk ends nothing, waits until there is room, and is missed at the end."""

import errno
import io
import os
import sys

import pytest

from vitnp.console import report_errors, say, warn
from vitnp.stopping import Stopped

FULL = "/dev/full"
needs_full = pytest.mark.skipif(not os.path.exists(FULL), reason="this system has no /dev/full")


class Disk(io.RawIOBase):
    """A file on a disk with room for so many bytes."""

    def __init__(self, room):
        self.room, self.content = room, b""

    def writable(self):
        return True

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = bytes(data[: self.room])
        self.room -= len(part)
        self.content += part
        return len(part)


@pytest.mark.parametrize(("buffered", "room"), [(True, 0), (True, 1), (True, 9), (False, 0)])
def test_what_a_full_disk_does_not_take_follows_when_there_is_room(monkeypatch, buffered, room):
    disk = Disk(room)
    file = io.TextIOWrapper(io.BufferedWriter(disk)) if buffered else io.TextIOWrapper(disk, write_through=True)
    monkeypatch.setattr(sys, "stdout", file)
    for epoch in range(3):
        say(f"epoch {epoch}")
    assert len(disk.content) == room
    disk.room = 1000
    say("epoch 3")
    assert disk.content.decode().split("\n") == [*(f"epoch {epoch}" for epoch in range(4)), ""]


@needs_full
@pytest.mark.parametrize("buffered", [True, False])
def test_a_result_that_was_printed_nowhere_is_an_error(monkeypatch, capsys, buffered):
    with open(FULL, "w") if buffered else io.TextIOWrapper(open(FULL, "wb", 0), write_through=True) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert report_errors(lambda: say("test accuracy 99.40 %") or 0, debug=False) == 1
        assert (
            capsys.readouterr().err == "error: not everything could be printed (No space left on device): make room\n"
        )
        full.flush()  # as Python does at its end


@needs_full
@pytest.mark.parametrize("status", [1, 130, 143])
def test_the_status_of_what_went_wrong_before_stays(monkeypatch, status):
    with open(FULL, "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        assert report_errors(lambda: say("so far") or warn("why") or status, debug=False) == status


@needs_full
def test_an_error_that_cannot_be_printed_is_still_status_1(monkeypatch):
    def work():
        raise ValueError("of the user")

    with open(FULL, "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert report_errors(work, debug=False) == 1


def test_closed_streams_are_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert report_errors(lambda: say("nobody hears it") or warn("nor this") or 0, debug=False) == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_ends_the_run_quietly(monkeypatch, stream):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, stream, pipe)
        assert report_errors(lambda: (say if stream == "stdout" else warn)("a line") or 0, debug=False) == 141


@pytest.mark.parametrize("error", [ValueError, OverflowError, MemoryError, FloatingPointError, OSError])
def test_an_error_that_the_user_can_mend_is_one_line(capsys, error):
    def work():
        raise error("what, and what to do")

    assert report_errors(work, debug=False) == 1
    assert capsys.readouterr().err == "error: what, and what to do\n"


def test_a_stop_is_no_error():
    def work():
        raise Stopped

    with pytest.raises(Stopped):
        report_errors(work, debug=False)
