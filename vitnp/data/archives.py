"""Members of tar.gz and npz archives, read without extracting anything and without believing what they claim.

A member is asked for by its exact name, and must be an ordinary file, of a size known beforehand, present once.
So links, devices and names like ../../x need no special care: nobody asks for them. A damaged archive is found
although the members before the damage were fine, as the gzip stream is read to its end, where its checksum is;
but an archive that would unpack to more than it may is given up there.

A tar archive is a row of members, each a header of 512 bytes and its content, filled up with zeros to whole blocks of
512 bytes; a header of zeros ends it. Extensions (long names, further attributes) are members of types of their own
before those that they belong to. The archives here need none, so they are passed over like any other member.
"""

from __future__ import annotations

import copy
import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import DataError, PathLike
from vitnp.data.files import is_web_page, out_of_memory, unreadable, unusable

if TYPE_CHECKING:
    from tarfile import TarInfo
    from zipfile import ZipFile, ZipInfo


BLOCK = 512  # bytes
PIECE = 1 << 16  # bytes that are passed over at once
MOST_MEMBERS = 1000  # the archives here have nine at most, and so many extensions
HEADER_BYTES = 1024  # more than the header of an npy file has
HEADER = re.compile(rb"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,99})\), \} *\n")


def tar_members(path: PathLike, sizes: Mapping[str, int], limit: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of those members of a tar.gz that `sizes` names, as they come.

    A content is read up to its size in `sizes` (whether it must be that long is the caller's to say). The whole
    archive may unpack to `limit` bytes. Members that are not there are not missed. DataError as above.
    """
    import tarfile

    expected = "a tar.gz archive that is whole"
    try:
        with open(path, "rb") as file:
            _check_is_gzip(path, file.read(256), expected)
            file.seek(0)
            stream, seen = _Limited(gzip.GzipFile(fileobj=file), limit), set[str]()
            for member in _headers(path, stream):
                if member.name in sizes:
                    _check_member(path, member, seen, sizes[member.name])
                    yield member.name, stream.read_all(member.size)
                    stream.skip(-member.size % BLOCK)
                else:
                    stream.skip(_stored(path, member))
            while stream.read(PIECE):  # to the checksum
                pass
    except _TooLong:
        raise unusable(path, "goes on and on", f"at most {limit} bytes unpacked") from None
    except DataError:
        raise
    except MemoryError as error:
        raise out_of_memory(path) from error
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise unusable(path, f"damaged tar.gz archive ({error})", expected) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _headers(path: PathLike, stream: _Limited) -> Iterator[TarInfo]:
    """What each header says, where whoever asks for the next one has read the content in between."""
    from tarfile import TarInfo

    for _ in range(MOST_MEMBERS):
        header = stream.read(BLOCK)
        if not header.strip(b"\0"):
            return
        yield TarInfo.frombuf(header, "utf-8", "surrogateescape")
    raise unusable(path, f"more than {MOST_MEMBERS} members", "those of the published archive")


def _check_is_gzip(path: PathLike, start: bytes, expected: str) -> None:
    if not start:
        raise unusable(path, "empty file", expected)
    if is_web_page(start):
        raise unusable(path, "looks like a web page", expected, "download it again, from another address")
    if not start.startswith(b"\x1f\x8b"):
        raise unusable(path, f"begins with {start[:4].hex(' ')}", f"1f 8b, {expected}")


def _check_member(path: PathLike, member: TarInfo, seen: set[str], size: int) -> None:
    """It must be what `tar_members` says, before a byte of it is read."""
    from tarfile import AREGTYPE, REGTYPE

    inside = f"{os.fspath(path)}, member {member.name}"
    if member.type not in (REGTYPE, AREGTYPE):
        raise unusable(inside, "a link, a device or another special file", "an ordinary file")
    if member.name in seen:
        raise unusable(inside, "is there twice", "one")
    if not 0 <= member.size <= size:
        raise unusable(inside, f"{member.size} bytes", f"at most {size}")
    seen.add(member.name)


def _stored(path: PathLike, member: TarInfo) -> int:
    """How many bytes follow its header: links, folders and devices have none, whatever size they give."""
    if member.size < 0:
        raise unusable(f"{os.fspath(path)}, member {member.name}", f"{member.size} bytes", "at least 0")
    if member.islnk() or member.issym() or member.isdir() or member.isdev():
        return 0
    return member.size + -member.size % BLOCK


class _TooLong(Exception):
    """More bytes than there may be."""


class _Limited:
    """A stream that raises _TooLong once it has given `limit` bytes and there are more."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise _TooLong
        return data

    def read_all(self, size: int) -> bytes:
        """The next `size` bytes; EOFError if there are fewer."""
        data = self.read(size)
        if len(data) < size:
            raise EOFError(f"it ends {size - len(data)} bytes early")
        return data

    def skip(self, size: int) -> None:
        """Pass over the next `size` bytes; EOFError if there are fewer."""
        for start in range(0, size, PIECE):
            self.read_all(min(PIECE, size - start))


def read_npz(path: PathLike, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array `name` of an npz file, uint8 and of this `shape`, read-only; DataError otherwise.

    np.load would do, but for the size that it believes and the objects it could be told to unpickle.
    """
    import zipfile

    member = name + ".npy"
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename == member]
            if len(infos) != 1:
                raise unusable(path, f"{len(infos)} members {member}", "one: an npz file as Keras makes it")
            most = math.prod(shape) + HEADER_BYTES
            if infos[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                found = f"member {member} is compressed by method {infos[0].compress_type}"
                raise unusable(path, found, "0 or 8: stored or deflated, as NumPy does")
            if infos[0].file_size > most:
                raise unusable(path, f"member {member} of {infos[0].file_size} bytes", f"at most {most}")
            content = read_member(archive, infos[0])
    except DataError:
        raise
    except MemoryError as error:
        raise out_of_memory(path) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise unusable(path, f"damaged npz archive ({error})", "a zip archive of arrays") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return _parse_npy(content, f"{os.fspath(path)}, member {member}", shape)


def read_member(archive: ZipFile, member: ZipInfo) -> bytes:
    """The content of a member, which must be as long as it claims to be; BadZipFile otherwise.

    `archive.read` would unpack all that there is, and then return as much as was claimed.
    """
    import zipfile

    claimed, member = member.file_size, copy.copy(member)
    member.file_size += 1  # or what goes on would be cut there, and its checksum be that of what was claimed
    with archive.open(member) as file:
        content = file.read(claimed + 1)
    if len(content) != claimed:
        more = "more" if len(content) > claimed else "fewer"
        raise zipfile.BadZipFile(f"member {member.filename} has {more} than the {claimed} bytes that it claims")
    return content


def _parse_npy(content: bytes, path: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array in an npy file, which must be of this shape and of bytes."""
    header = npy_header(content)
    if header is None:
        raise unusable(path, f"begins with {content[:64]!r}", f"an npy file of version 1.0, an array {shape} of uint8")
    dtype, fortran_order, found, start = header
    if (dtype, fortran_order, found) != ("|u1", False, shape) or len(content) != start + math.prod(shape):
        order = "Fortran's" if fortran_order else "C's"
        array = f"an array {found} of {dtype} in {order} order"
        raise unusable(path, f"{len(content) - start} bytes for {array}", f"{shape} of |u1 in C's order")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def npy_header(content: bytes) -> tuple[str, bool, tuple[int, ...], int] | None:
    """(dtype, whether in Fortran's order, shape, where the numbers begin) of an npy file of version 1.0, else None.

    It is magic, version, the length of the header, and the header, which is padded: a dictionary as Python prints it,
    with dtype, order and shape. It is compared, never evaluated. HEADER_BYTES of the content are enough.
    """
    start = 10 + int.from_bytes(content[8:10], "little")
    header = HEADER.fullmatch(content[10:start])
    if not content.startswith(b"\x93NUMPY\x01\0") or header is None:
        return None
    dtype, fortran_order, sizes = (part.decode("latin-1") for part in header.groups())
    return dtype, fortran_order == "True", tuple(int(size) for size in re.findall(r"\d+", sizes)), start
