"""What a script says to whoever runs it: lines that no full disk makes an error, and errors that are one line each."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any
from weakref import WeakKeyDictionary

from vitnp.backend import DeviceError
from vitnp.data import DataNotice


def say(text: str) -> None:
    """Print to standard output, at once."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Print to standard error."""
    _print(text, sys.stderr)


_WAITING: WeakKeyDictionary[IO[str], str] = WeakKeyDictionary()  # what unbuffered output, which keeps nothing, lacks


def _print(text: str, file: IO[str] | None) -> None:
    """Print; what a full disk does not take waits for the next time. BrokenPipeError where nobody reads any more."""
    if file is None:  # closed
        return
    text = f"{_WAITING.pop(file, '')}{text}\n"
    try:
        file.write(text)
        file.flush()
    except BrokenPipeError:
        raise
    except OSError:
        if getattr(file, "write_through", False):  # as PYTHONUNBUFFERED and python -u have it
            _WAITING[file] = text


def report_errors(work: Callable[[], int], debug: bool) -> int:
    """Return what `work` returns; an error that the user can mend is one line and status 1, no traceback."""
    try:
        status = _report_errors(work, debug)
        for file in (sys.stdout, sys.stderr):
            if file is not None and not _is_flushed(file):
                status = status or 1
        return status
    except BrokenPipeError:
        # Whoever read the output has gone (as `| head` does): nothing is left to tell, not even when Python flushes.
        for file in (sys.stdout, sys.stderr):
            if file is not None:
                _is_flushed(file)
        return 141  # 128 + SIGPIPE, as shells have it


def _report_errors(work: Callable[[], int], debug: bool) -> int:
    try:
        with _notices():
            return work()
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, DeviceError, FloatingPointError, OverflowError, MemoryError) as error:
        if debug:
            raise
        warn(f"error: {error if str(error) else type(error).__name__}")
        return 1
    except KeyboardInterrupt:
        warn("interrupted")
        return 128 + signal.SIGINT


def _is_flushed(file: IO[str]) -> bool:
    """Return whether all that was printed got there; if not, the rest goes nowhere, or Python would fail at its end."""
    try:
        file.write(_WAITING.pop(file, ""))
        file.flush()
        return True
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        if file is sys.stdout and not isinstance(error, BrokenPipeError):
            warn(f"error: not everything could be printed ({error.strerror}): make room")
        return False


@contextmanager
def _notices() -> Iterator[None]:
    """Meanwhile, what a DataNotice says is one line, without the place in the source that warnings have."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DataNotice):
            warn(f"notice: {message}")
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
