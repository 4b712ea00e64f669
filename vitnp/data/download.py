"""Downloads that end as the right file or as none.

The digest is published and part of the program, so it does not matter who sends the bytes: mirrors are tried one
after the other until one of them sends the right ones. They are written to NAME.part, never more than there should be,
and only a complete file with the right digest is moved to NAME, in one step. What a cut connection or Ctrl-C leaves
in NAME.part is where the next attempt goes on. Nothing that a server says is used to name or to size anything, and
none that is slow on purpose can keep us: an answer must begin in time, and then keep moving.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from vitnp.data.dataset import PathLike
from vitnp.data.files import data_error, unusable
from vitnp.durable import is_same, sync_folder, try_lock

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from socket import socket
    from urllib.request import OpenerDirector

CHUNK = 1 << 16  # bytes
ATTEMPTS = 3  # in a row that bring next to nothing, or stalls, before the next mirror is asked
SLOWEST = 1000  # bytes a second that must come, on average over the seconds that a server may be silent


class _Broken(Exception):
    """The transfer ended early: worth another attempt at the same server."""


class _Stalled(_Broken):
    """Next to nothing came for too long."""


class _Refused(Exception):
    """This server does not have the file."""


def download(urls: Sequence[str], target: PathLike, *, size: int, sha256: str, timeout: float = 30.0) -> Path:
    """Fetch the file of this `size` and `sha256` from the first of `urls` that has it, and return its path.

    A target that is already there is not fetched again, and never overwritten: it must be the right file. Two
    processes that want the same file take turns, and the second finds it there. `timeout` is how many seconds a
    server may be silent, or send next to nothing. Only http and https addresses are followed, and https never to
    http. DataError if no server has the file (with what each of them said), or if it cannot be written.
    """
    target = Path(os.path.expanduser(target))
    for url in urls:
        if not url.lower().startswith(("http://", "https://")):
            raise data_error(f"{url}: not a web address; expected one that begins with https:// or http://")
    with _writing(target), _lock(target):
        if not os.path.lexists(target):
            _fetch(urls, target, size, sha256, timeout)
        elif not _is_right(target, size, sha256):
            raise data_error(f"{target}: is there, but is not the file with SHA-256 {sha256}; move it away")
    return target


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Make the folder; whatever the system refuses there becomes a DataError that says how to choose another."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "name another folder, in the environment variable VITNP_DATA or where you call"
        raise unusable(target.parent, reason, f"a folder to write {target.name} to", advice) from error


def _open_own(path: Path) -> io.BufferedRandom:
    """Open a file beside the target to read and append. A link in its place would lead into a file of somebody else."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise unusable(path, "a link, a folder or another special file", "an ordinary file or none", "move it away")
    own = getattr(os, "O_NOFOLLOW", 0)  # for a link that appeared since; Windows has no such flag
    return open(path, "a+b", opener=lambda name, flags: os.open(name, flags | own, 0o666))


def _is_right(path: Path, size: int, sha256: str) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _fetch(urls: Sequence[str], target: Path, size: int, sha256: str, timeout: float) -> None:
    """Ask one server after the other."""
    part, reasons = target.with_name(target.name + ".part"), []
    for url in urls:
        try:
            _fetch_from(url, part, size, sha256, timeout)
        except _Refused as reason:
            reasons.append(f"{url}: {reason}")
        else:
            os.replace(part, target)
            sync_folder(target.parent)
            return
    if part.exists() and not part.stat().st_size:
        os.remove(part)
    raise data_error(
        f"{target}: could not be downloaded ({'; '.join(reasons)}); expected {size} bytes with SHA-256 {sha256}: "
        "check the network, or get the file elsewhere and put it there; train_digits.py needs no network"
    )


def _fetch_from(url: str, part: Path, size: int, sha256: str, timeout: float) -> None:
    """Bring `part` to its full length from there, in as many attempts as bring it forward without a stall."""
    attempts = stalls = 0
    while True:
        try:
            with _open_own(part) as file:
                kept = file.tell()
                digest = _receive(url, file, size, timeout)
            if digest == sha256:
                return
            os.remove(part)
            reason = f"sent other bytes, with SHA-256 {digest}"
            if not kept:
                raise _Refused(reason)
        except _Broken as broken:
            reason = str(broken)
            stalls += isinstance(broken, _Stalled)
        gained = (part.stat().st_size if part.exists() else 0) - kept
        attempts = 0 if gained > size // 100 else attempts + 1
        if ATTEMPTS in (attempts, stalls):
            raise _Refused(reason)


def _receive(url: str, file: io.BufferedRandom, size: int, timeout: float) -> str:
    """Append to `file`, or begin it anew where the server does; return the SHA-256 of its `size` bytes."""
    start = file.tell()
    if start < size:
        with _open(url, start, timeout) as response:
            start = _check_answer(response, start, size)
            file.truncate(start)
            _save(response, url, file, start, size)
        file.flush()
        os.fsync(file.fileno())
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


class _Paced(io.RawIOBase):
    """What a server sends, as long as it comes fast enough: a timeout alone begins anew with every single byte.

    All that comes before the file has `timeout` seconds. Then each span of so many must bring SLOWEST bytes a second.
    """

    def __init__(self, raw: io.RawIOBase, timeout: float) -> None:
        self._raw, self._timeout, self._least = raw, timeout, math.inf
        self._got, self._deadline = 0, time.monotonic() + timeout

    def expect_file(self) -> None:
        """From now on it is the speed that counts."""
        self._least = SLOWEST * self._timeout
        self._got, self._deadline = 0, time.monotonic() + self._timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError as error:
            raise _Stalled(f"was silent for {self._timeout:g} seconds") from error
        self._got += count or 0
        if time.monotonic() >= self._deadline:
            if self._least == math.inf:
                raise _Stalled(f"did not begin to send the file in {self._timeout:g} seconds")
            if self._got < self._least:
                raise _Stalled(f"sent only {self._got} bytes in {self._timeout:g} seconds")
            self.expect_file()
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _opener() -> OpenerDirector:
    """What opens web addresses: it follows redirects as far as they are allowed, and reads no more than it must."""
    from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
    from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

    class Response(HTTPResponse):
        def __init__(self, sock: socket, *options: Any, **more: Any) -> None:
            super().__init__(sock, *options, **more)
            self.paced = _Paced(self.fp.detach(), sock.gettimeout() or math.inf)
            self.fp = io.BufferedReader(self.paced)

    class Plain(HTTPConnection):
        response_class = Response

    class Secure(HTTPSConnection):
        response_class = Response

    class PlainHandler(HTTPHandler):
        def http_open(self, req: Request) -> HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(HTTPSHandler):
        def https_open(self, req: Request) -> HTTPResponse:
            return self.do_open(Secure, req)

    class Redirects(HTTPRedirectHandler):
        def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            _check_redirect(req.full_url, newurl)
            fp.close()  # before the page that comes with it is read, which may be endless
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return build_opener(PlainHandler, SecureHandler, Redirects)


def _open(url: str, start: int, timeout: float) -> HTTPResponse:
    """The server's answer to a request for the bytes from `start` on."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request

    headers = {"User-Agent": "vitnp"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        answer = _opener().open(Request(url, headers=headers), timeout=timeout)
        answer.paced.expect_file()
        return cast("HTTPResponse", answer)
    except HTTPError as error:
        error.close()
        raise _Refused(f"answers {error.code} {error.reason}") from error
    except URLError as error:
        raise _Refused(str(error.reason)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _Broken(str(error) or type(error).__name__) from error


def _check_redirect(url: str, goal: str) -> None:
    """A redirect may not leave the web, nor give up encryption."""
    allowed = ("https://",) if url.lower().startswith("https://") else ("https://", "http://")
    if not goal.lower().startswith(allowed):
        raise _Refused(f"redirects to {goal}, which is not {' or '.join(allowed)}")


def _check_answer(response: HTTPResponse, start: int, size: int) -> int:
    """Where in the file its body begins: at `start`, or at 0 if the server ignores that we have a part."""
    if response.status != 206:
        start = 0
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise _Refused(f"was asked for the bytes from {start} on, and sends others")
    if response.headers.get_content_type() == "text/html":
        raise _Refused("sends a web page")
    length = response.headers.get("Content-Length")
    if length is not None and length != str(size - start):
        raise _Refused(f"offers {length} bytes instead of {size - start}")
    return start


def _save(response: HTTPResponse, url: str, file: IO[bytes], start: int, size: int) -> None:
    """Write the body to the file, of `size` bytes in the end and not one more, and show how far it is."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        print(f"downloading {url} ({(size - start) / 1e6:.1f} MB)", file=sys.stderr)
    name = url.rpartition("/")[2]
    with tqdm(desc=name, total=size, initial=start, unit="B", unit_scale=True, disable=None) as progress:
        got = start
        while got < size:
            data = _next_bytes(response, min(CHUNK, size - got))
            if not data:
                raise _Broken(f"ended after {got} of {size} bytes")
            file.write(data)
            got += len(data)
            progress.update(len(data))


def _next_bytes(response: HTTPResponse, most: int) -> bytes:
    from http.client import HTTPException

    try:
        return response.read1(most)
    except (OSError, HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Let one process at a time work on `target`. The system frees the lock of a process that dies.

    The lock is on an empty file beside the target, which is removed at the end. So whoever gets the lock must look
    whether the file is still the one of that name, or one that its last holder removed a moment ago.
    """
    path, waiting = target.with_name(f".{target.name}.vitnp-lock"), False
    while True:
        file = _open_own(path)
        if file.tell():
            file.close()
            raise unusable(path, "is not empty", "a lock of a download, which is, or none", "move it away")
        if try_lock(file) and is_same(file, path):
            break
        file.close()
        if not waiting:
            waiting = True
            print(f"waiting for another process that downloads {target}", file=sys.stderr)
        time.sleep(0.1)
    try:
        yield
    finally:
        if sys.platform == "win32":  # where an open file cannot be removed, nor one that another process has open
            file.close()
            with suppress(OSError):
                os.remove(path)
        else:
            with suppress(FileNotFoundError):
                os.remove(path)
            file.close()
