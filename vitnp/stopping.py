"""How a run stops: a first SIGINT or SIGTERM lets it finish what must be finished, a second one ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """A signal came, and what had to be finished is. No Exception, which a library might take for its own."""


class Stop:
    """While it is entered, the first SIGINT or SIGTERM is noted in `signal` and raises Stopped, a second one ends all.

    It is raised wherever the program is, as while it loads data, but where `later` holds it back.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def later(self) -> AbstractContextManager[None]:
        """Meanwhile a signal is only noted: for what must be finished, by whoever looks at `signal` then."""
        return self._while(waits=True)

    def at_once(self) -> AbstractContextManager[None]:
        """Within `later`, for work that changes nothing: a signal raises Stopped, and so does one that was noted."""
        return self._while(waits=False)

    @contextmanager
    def _while(self, waits: bool) -> Iterator[None]:
        before, self._waits = self._waits, waits
        try:
            if self.signal and not waits:
                raise Stopped
            yield
        finally:
            self._waits = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)  # no clean-up: every file is whole at any moment
        self.signal = number
        if not self._waits:
            raise Stopped
        with suppress(OSError):  # not print, which may be what was interrupted
            os.write(2, b"\nstopping after this step; once more to stop at once\n")
