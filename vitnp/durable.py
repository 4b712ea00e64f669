"""Files that are whole or not there, whatever happens while they are written, and locks that die with their holder.

A file is written beside its target, flushed to the disk and renamed, and then its folder is flushed: at any moment the
target is the old file or the new one. A process that is killed meanwhile leaves an orphan. A writer holds a lock on
what it writes, and the system frees the locks of the dead: what is not locked is an orphan, which the next write
removes.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Self


class LockedError(ValueError):
    """Another process works on what was to be worked on."""


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Make `content` the file at `path`; what was there before goes to `previous`, if that is given.

    A new file has the permissions that the umask gives, a replaced one keeps its own; a link stays a link. Folders are
    made. Raises OSError where that fails, and then the old file is as it was.
    """
    path = _behind_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_orphans(path)
    file, temporary = _temporary_beside(path)
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def _behind_links(path: Path) -> Path:
    """Return where the links of `path` lead; OSError where they lead to themselves."""
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise OSError(errno.ELOOP, "a link that leads to itself: remove it", str(path))
    return real


def _temporary_beside(path: Path) -> tuple[IO[bytes], str]:
    """Make, open and lock a temporary file, and return it with its name."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        file = open(handle, "wb")  # noqa: SIM115
        try:
            ours = try_lock(file)
        except OSError:
            ours = True  # a file system that knows no locks
        if ours and is_same(file, Path(name)):
            return file, name
        file.close()  # before it was locked, another writer has taken it for an orphan: once more


def _keep(path: Path, previous: Path) -> None:
    """Give the file at `path` a second name, under which it outlives the next one; a copy where there are no links."""
    previous = _behind_links(previous)  # a link stays a link
    spare = previous.with_name(f".{previous.name}.link.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:
        shutil.copy2(path, spare)
    os.replace(spare, previous)
    spare.unlink(missing_ok=True)  # renaming one name of a file to another of its names does nothing


def remove_orphans(path: Path) -> None:
    """Remove what processes that died while they wrote to `path` have left beside it."""
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), open(orphan, "r+b") as file:
            if try_lock(file):
                # While it is locked, so that whoever has just made it and locks it next sees that it is gone.
                _remove_locked(file, orphan)


def _remove_locked(file: IO[bytes], path: Path) -> None:
    if sys.platform == "win32":  # where an open file cannot be removed
        file.close()
    os.remove(path)


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure; Windows and some file systems have no such call."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """Return the process's file-creation mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Lock:
    """The lock that is the file `path`, which one process alone holds: while it is entered, and then it is removed.

    Entering raises LockedError where another process holds it, and `doing` says what that does, as "trains in
    runs/mnist"; OSError where something else has its name, or the disk is full.
    """

    def __init__(self, path: Path, doing: str) -> None:
        self.path, self.doing = path, doing
        self._file: IO[bytes] | None = None
        self._folder: os.stat_result | None = None  # where it was last made

    def __enter__(self) -> Self:
        self.renew()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with suppress(OSError):
                if self.held:  # else the one that is there is another's
                    _remove_locked(self._file, self.path)
            self._file.close()
            self._file = None

    @property
    def held(self) -> bool:
        """Whether the file is still there, and ours: it goes with its folder."""
        return self._file is not None and is_same(self._file, self.path)

    @property
    def in_place(self) -> bool:
        """Whether the folder is still the one where it was made."""
        try:
            return self._folder is not None and os.path.samestat(self._folder, os.stat(self.path.parent))
        except FileNotFoundError:
            return False

    def renew(self) -> None:
        """Hold it again where it has gone; raise as entering does."""
        if self.held:
            return
        self.__exit__()
        self._file, self._folder = _open_locked(self.path, self.doing), os.stat(self.path.parent)
        try:
            self._file.truncate(0)
            # at once: what waited would fail again when it closes
            os.write(self._file.fileno(), str(os.getpid()).encode())
        except OSError as error:
            self.__exit__()
            raise OSError(f"{self.path}: no lock can be written there ({error.strerror}): make room") from error


def _open_locked(path: Path, doing: str) -> IO[bytes]:
    while True:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OSError(f"{path}: is no plain file; expected a lock, or nothing: remove it, or rename it")
        try:
            file = open(path, "a+b", opener=_no_link)  # noqa: SIM115
        except OSError as error:
            reason = f"{path}: no lock can be held there ({error.strerror}): make its folder writable, or use a copy"
            raise OSError(reason) from error
        try:
            free = try_lock(file)
        except OSError:
            free = True  # a file system that knows no locks: better no lock than no work
        if free and is_same(file, path):
            return file
        file.seek(0)
        holder = file.read(20).decode("ascii", "replace")
        file.close()
        if not free:
            raise LockedError(f"another process ({holder}) {doing}: wait until it ends, or stop it")
        # else its last holder removed it a moment ago: once more


def _no_link(path: str, flags: int) -> int:
    """Open no link: what it leads to would be written over."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def is_same(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def try_lock(file: IO[bytes]) -> bool:
    """Lock the file until it is closed, unless another process has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the first from Unix, the second from Windows
        return False
    return True
