"""How a run stops: the first SIGINT or SIGTERM lets it finish what it is at, a second one ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


class Stopped(Exception):
    """A signal came, and what had to be finished is."""


class Stop:
    """While it is entered, the first SIGINT or SIGTERM is noted in `signal`; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Meanwhile a signal raises Stopped wherever the program is: for work that changes nothing."""
        self._at_once = True
        try:
            if self.signal:
                raise Stopped
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)  # no clean-up: every file is whole at any moment
        self.signal = number
        with suppress(OSError):  # not print, which may be what was interrupted
            os.write(2, b"\nstopping after this step; once more to stop at once\n")
        if self._at_once:
            raise Stopped
