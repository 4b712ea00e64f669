"""The first signal stops a run when it can be stopped, a second one at once."""

import os
import signal
from contextlib import suppress

import pytest

from vitnp.stopping import Stop, Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_unless_it_is_held_back(number):
    with pytest.raises(Stopped), Stop() as stop:
        send(number)
    assert stop.signal == number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_held_back_is_noted_and_told(number, capfd):
    with Stop() as stop, stop.later():
        send(number)
        assert stop.signal == number
    assert capfd.readouterr().err == "\nstopping after this step; once more to stop at once\n"


def test_work_that_changes_nothing_stops_at_once_in_what_is_held_back():
    with Stop() as stop, stop.later(), pytest.raises(Stopped), stop.at_once():
        send(signal.SIGINT)


def test_work_that_changes_nothing_does_not_begin_after_a_signal():
    reached = []
    with Stop() as stop, stop.later():
        send(signal.SIGINT)
        with pytest.raises(Stopped), stop.at_once():
            reached.append(1)
    assert not reached


def test_after_such_work_signals_are_held_back_again():
    with Stop() as stop, stop.later():
        with stop.at_once():
            pass
        send(signal.SIGINT)
        assert stop.signal == signal.SIGINT


def test_no_library_takes_it_for_an_error_of_its_own():
    with pytest.raises(Stopped), Stop(), suppress(Exception):
        send(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(monkeypatch, number):
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with Stop() as stop, stop.later():
        send(signal.SIGINT)
        assert statuses == []
        send(number)
    assert statuses == [128 + number]


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
