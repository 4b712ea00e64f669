"""The file of a run's metrics, a JSON object a line: without gap or double through a full disk, a kill and a resume."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path


class Metrics:
    """Lines that a run adds to one file.

    What the disk does not take waits in memory and is written with the next line, in order. A checkpoint notes how many
    `lines` there are, and whoever goes on from it drops those that came later.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self._waiting = path, 0, b""

    def add(self, **values: float) -> None:
        """Add a line, now or as soon as there is room for it."""
        self._waiting += json.dumps(values).encode() + b"\n"
        self.lines += 1
        with suppress(OSError):  # whoever saves a checkpoint will hear of it, for it calls flush
            self._write()

    def flush(self) -> None:
        """Return when all lines are on the disk; OSError where they do not get there."""
        self._write(sync=True)

    def go_on(self, lines: int) -> int:
        """Keep the first `lines` of the file and drop what follows; return how many of them are not there."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.splitlines(keepends=True)[:lines]
        kept = [line for line in whole if line.endswith(b"\n")]
        if self.path.exists():
            os.truncate(self.path, sum(map(len, kept)))
        self.lines = len(kept)
        return lines - len(kept)

    def _write(self, sync: bool = False) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while self._waiting:
                # A disk that fills up takes the beginning of what it is given: the rest of the line follows later.
                self._waiting = self._waiting[os.write(file, self._waiting) :]
            if sync:
                os.fsync(file)
        finally:
            os.close(file)
