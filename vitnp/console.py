"""What a script says to whom runs it: errors and notices, each of them one line."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vitnp.backend import DeviceError
from vitnp.data import DataNotice


def report_errors(work: Callable[[], int], debug: bool) -> int:
    """Return what `work` returns; an error that the user can mend is one line and status 1, no traceback."""
    try:
        with _notices():
            return work()
    except BrokenPipeError:
        # Whoever read the output has gone (as `| head` does): nothing is left to tell, not even when Python flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as shells have it
    except (ValueError, TypeError, OSError, DeviceError, FloatingPointError, MemoryError) as error:
        if debug:
            raise
        print(f"error: {error if str(error) else type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


@contextmanager
def _notices() -> Iterator[None]:
    """Meanwhile, what a DataNotice says is one line, without the place in the source that warnings have."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DataNotice):
            print(f"notice: {message}", file=sys.stderr)
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
