"""IDX, the file format of MNIST. All numbers are big-endian:

    bytes 0-1   zero
    byte  2     type of the entries; 8 is unsigned byte, the only one here
    byte  3     number of dimensions: 3 for images, 1 for labels
    4 per dim   size of each dimension, uint32
    the rest    the entries, last dimension fastest

Nothing in the header is believed: the sizes are known beforehand, so a file is read to one byte past its
proper end and no further, whatever it claims.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import PathLike
from vitnp.data.files import is_web_page, read_content, unusable

ENTRY_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
CONTENTS = {1: "labels", 3: "images"}


def read_idx(path: PathLike, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The entries of an IDX file, plain or gzip (content decides, not name), which must have this `shape`.

    The array is read-only. Anything else in the file, before or behind, is a DataError.
    """
    size = 4 + 4 * len(shape) + math.prod(shape)
    return _parse(read_content(path, size), path, shape, size)


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the entries."""
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def _parse(content: bytes, path: PathLike, shape: tuple[int, ...], size: int) -> NDArray[np.uint8]:
    """The entries as a read-only array, once everything before and around them is right."""
    _check_magic(content, path, len(shape))
    start = size - math.prod(shape)
    if len(content) >= start:
        found = struct.unpack_from(f">{len(shape)}I", content, 4)
        if found != shape:
            raise unusable(path, f"bytes 4 to {start - 1} give the sizes {found}", f"{shape}")
    if len(content) < size:
        raise unusable(path, f"truncated, {len(content)} bytes uncompressed", f"{size}")
    if len(content) > size:
        raise unusable(path, f"goes on after byte {size}, uncompressed", f"exactly {size} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _check_magic(content: bytes, path: PathLike, dims: int) -> None:
    """The first four bytes: two zeros, the entry type, the number of dimensions."""
    begins = f"begins with {content[:4].hex(' ')}"
    expected = f"00 00 08 {dims:02x}, an IDX file of {CONTENTS.get(dims, 'bytes')}"
    if not content:
        raise unusable(path, "empty file", expected)
    if is_web_page(content):
        raise unusable(path, "looks like a web page", expected, "download it again, from another address")
    if len(content) < 4 or content[:2] != b"\0\0":
        raise unusable(path, begins, expected)
    if content[2] != 8:
        entry_type = ENTRY_TYPES.get(content[2], "unknown")
        raise unusable(path, f"{begins}: byte 2 means entries of type {entry_type}", expected)
    if content[3] != dims:
        found = CONTENTS.get(content[3], f"{content[3]} dimensions")
        raise unusable(path, f"{begins}, an IDX file of {found}", expected, "were two files exchanged?")
