"""The file of a run's metrics, a JSON object a line: without gap or double through a full disk, a kill and a resume."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitnp.durable import Lock


class Metrics:
    """Lines that a run adds to one file.

    What the disk does not take waits in memory and is written with the next line, in order. A checkpoint notes what the
    file holds, its `state`; whoever goes on from it drops the lines that came later, and believes no others. Lines wait
    as well while the folder's `lock` is not held, for another process may write there: `flush` is for who holds it.
    """

    def __init__(self, path: Path, lock: Lock | None = None) -> None:
        self.path, self.lock, self.lines, self._digest = path, lock, 0, hashlib.sha256()
        self._waiting, self._taken, self._begun = b"", 0, False  # whole lines; how many of their bytes are written

    def add(self, **values: float) -> None:
        """Add a line, now or as soon as there is room for it."""
        self._append(json.dumps(values).encode() + b"\n")
        with suppress(OSError):  # whoever saves a checkpoint will hear of it, for it calls flush
            if self.lock is None or self.lock.held:
                self._write()

    def flush(self) -> None:
        """Return when all lines are on the disk; OSError where they do not get there."""
        self._write(sync=True)

    @property
    def state(self) -> dict[str, Any]:
        """How many lines there are, and the SHA-256 of them all."""
        return {"lines": self.lines, "sha256": self._digest.hexdigest()}

    def go_on(self, state: dict[str, Any]) -> int:
        """Keep the lines of this state and drop what follows; return how many are gone, if the file is.

        Raises ValueError, and changes nothing, where the file is there and does not begin with these lines.
        """
        if not self.path.exists():
            return int(state["lines"])
        lines = self.path.read_bytes().splitlines(keepends=True)[: state["lines"]]
        kept = b"".join(lines)
        digest = hashlib.sha256(kept)
        if digest.hexdigest() != state["sha256"]:
            raise ValueError(
                f"{self.path}: its first {len(lines)} lines have SHA-256 {digest.hexdigest()}, expected "
                f"{state['lines']} lines with {state['sha256']}: to go on without them, move the file away"
            )
        os.truncate(self.path, len(kept))
        self.lines, self._digest, self._begun = len(lines), digest, bool(lines)
        return 0

    def _append(self, lines: bytes) -> None:
        self._waiting += lines
        self._digest.update(lines)
        self.lines += lines.count(b"\n")

    def _write(self, sync: bool = False) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if self._begun and os.fstat(file).st_size == 0:
                self._begin_anew()
            while self._taken < len(self._waiting):
                # A disk that fills up takes the beginning of what it is given: the rest of the line follows later.
                self._taken += os.write(file, self._waiting[self._taken :])
                self._begun = True
            self._waiting, self._taken = b"", 0
            if sync:
                os.fsync(file)
        finally:
            os.close(file)

    def _begin_anew(self) -> None:
        """Somebody has removed the file, and its lines with it: what waits is the first that the new one holds."""
        waiting = self._waiting
        self.lines, self._digest, self._waiting, self._taken = 0, hashlib.sha256(), b"", 0
        self._append(waiting)
