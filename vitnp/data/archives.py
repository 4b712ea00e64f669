"""Members of tar.gz and npz archives, read without extracting anything and without believing what they claim.

A member is asked for by its exact name, and must be an ordinary file, of a size known beforehand, present once.
So links, devices and names like ../../x need no special care: nobody asks for them. A damaged archive is found
although the members before the damage were fine, as the gzip stream is read to its end, where its checksum is;
but an archive that would unpack to more than it may is given up there.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import DataError, PathLike
from vitnp.data.files import is_web_page, unreadable, unusable


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
            stream = _Limited(gzip.GzipFile(fileobj=file), limit)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                seen: set[str] = set()
                for member in archive:
                    if member.name in sizes:
                        _check_member(path, member, seen, sizes[member.name])
                        content = archive.extractfile(member)
                        assert content is not None  # of an ordinary file it never is
                        yield member.name, content.read()
            while stream.read(1 << 20):
                pass
    except _TooLong:
        raise unusable(path, "goes on and on", f"at most {limit} bytes unpacked") from None
    except DataError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise unusable(path, f"damaged tar.gz archive ({error})", expected) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _check_is_gzip(path: PathLike, start: bytes, expected: str) -> None:
    if not start:
        raise unusable(path, "empty file", expected)
    if is_web_page(start):
        raise unusable(path, "looks like a web page", expected, "download it again, from another address")
    if not start.startswith(b"\x1f\x8b"):
        raise unusable(path, f"begins with {start[:4].hex(' ')}", f"1f 8b, {expected}")


def _check_member(path: PathLike, member: object, seen: set[str], size: int) -> None:
    """It must be what `tar_members` says, before a byte of it is read."""
    import tarfile

    assert isinstance(member, tarfile.TarInfo)
    inside = f"{os.fspath(path)}, member {member.name}"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise unusable(inside, "a link, a device or another special file", "an ordinary file")
    if member.name in seen:
        raise unusable(inside, "is there twice", "one")
    if not 0 <= member.size <= size:
        raise unusable(inside, f"{member.size} bytes", f"at most {size}")
    seen.add(member.name)


class _TooLong(Exception):
    """More bytes than there may be."""


class _Limited(io.RawIOBase):
    """A stream that raises _TooLong once it has given `limit` bytes and there are more."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise _TooLong
        return data


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
            most = math.prod(shape) + 1024  # the header of an npy file is shorter than that
            if infos[0].file_size > most:
                raise unusable(path, f"member {member} of {infos[0].file_size} bytes", f"at most {most}")
            content = archive.read(infos[0])
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise unusable(path, f"damaged npz archive ({error})", "a zip archive of arrays") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return _parse_npy(content, f"{os.fspath(path)}, member {member}", shape)


def _parse_npy(content: bytes, path: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array in an npy file. Its header says dtype, order and shape, all of which are known here."""
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("the format is not version 1.0")
        found, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise unusable(path, f"not an npy file ({error})", f"an array {shape} of uint8") from error
    start = file.tell()
    if (found, fortran_order, dtype) != (shape, False, np.dtype("uint8")) or len(content) != start + math.prod(shape):
        raise unusable(path, f"{len(content) - start} bytes for an array {found} of {dtype}", f"{shape} of uint8")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
