"""The pickles of CIFAR, read without running anything.

Unpickling is running a program: it may call any function by name, and even where it may not, a few bytes can
make the machine allocate without end. Here two things stand in the way. Before anything runs, the program is read
through: it may only have the instructions that dictionaries, lists, numbers, texts and arrays need, and only as
many tuples as three arrays need, as tuples within tuples are what grows without bound. Then the few names that
NumPy's arrays call (which differ between versions of NumPy) lead to stand-ins of our own, which know nothing but
arrays of bytes; any other name is refused. So no object of NumPy is made, and arrays of objects do not exist.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import PathLike
from vitnp.data.files import is_web_page, unusable

INSTRUCTIONS = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 STRING BINSTRING SHORT_BINSTRING
BINBYTES SHORT_BINBYTES BINUNICODE SHORT_BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
REDUCE BUILD
"""
MOST_TUPLES = 24  # an array takes six to eight


def read_pickle(content: bytes, path: PathLike) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as str: bytes, str, int, lists, dictionaries, and arrays of uint8.

    `path` is named in the DataError that is raised for anything else.
    """
    _check_start(content, path)
    try:
        _check_instructions(content)
        found = _Unpickler(content).load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"holds a {type(found).__name__}")
        return {_text(key): value.array() if isinstance(value, _Array) else value for key, value in found.items()}
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        expected = "a pickle of a dictionary with arrays of bytes, as CIFAR's are"
        raise unusable(path, f"refused pickle ({reason})", expected) from error


def _check_start(content: bytes, path: PathLike) -> None:
    if not content:
        raise unusable(path, "empty file", "a pickle")
    if is_web_page(content):
        raise unusable(path, "looks like a web page", "a pickle", "download it again, from another address")


def _check_instructions(content: bytes) -> None:
    """Refuse what could run, or grow beyond the size of the file."""
    import pickletools

    allowed, tuples = frozenset(INSTRUCTIONS.split()), 0
    for step, (instruction, argument, position) in enumerate(pickletools.genops(content)):
        if instruction.name not in allowed:
            raise pickle.UnpicklingError(f"instruction {instruction.name} at byte {position}")
        if "TUPLE" in instruction.name:
            tuples += 1
        elif instruction.name == "LONG_BINPUT" and int(argument or 0) > step:  # a table that long would be allocated
            raise pickle.UnpicklingError(f"object {argument} noted at byte {position}, before there are so many")
    if tuples > MOST_TUPLES:
        raise pickle.UnpicklingError(f"{tuples} tuples where at most {MOST_TUPLES} are needed")


class _Unpickler(pickle.Unpickler):
    """An unpickler for which only the names below exist."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._left = len(content)

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if wanted == "numpy.core.multiarray._reconstruct":
            return lambda kind, shape, code: _Array()
        if wanted == "_codecs.encode":
            return self._encode
        if wanted in ("numpy.ndarray", "numpy.dtype"):
            return _Array if name == "ndarray" else _DType
        raise pickle.UnpicklingError(f"it would call {module}.{name}")

    def _encode(self, text: str, encoding: str) -> bytes:
        """What bytes call that Python 3 wrote in an old protocol: all of them together fit into the file."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("a text in another encoding than latin1")
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it would grow beyond its size")
        return text.encode("latin-1")


class _DType:
    """A stand-in for numpy.dtype; unsigned bytes are the only one that there is."""

    def __init__(self, code: str | bytes, *flags: object) -> None:
        if _text(code) not in ("u1", "B", "uint8"):
            raise pickle.UnpicklingError(f"an array of {_text(code)!r}, and not of bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: a byte has none."""


class _Array:
    """A stand-in for numpy.ndarray, which `array` turns into one."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.data = b""
        self.order: Any = "C"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran_order, data = state
        if isinstance(data, str):  # Python 2 wrote it in text
            data = data.encode("latin-1")
        if not (isinstance(dtype, _DType) and isinstance(data, bytes)):
            raise pickle.UnpicklingError("an array, and not of bytes")
        if not (isinstance(shape, tuple) and len(shape) <= 4 and all(type(size) is int for size in shape)):
            raise pickle.UnpicklingError("an array without a shape")
        if math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"{len(data)} bytes for an array {shape}")
        self.shape, self.data, self.order = shape, data, "F" if fortran_order else "C"

    def array(self) -> NDArray[np.uint8]:
        """The array, read-only, over the bytes of the pickle."""
        return np.frombuffer(self.data, np.uint8).reshape(self.shape, order=self.order)


def _text(name: object) -> str:
    """A key or a code as str: Python 2 wrote bytes."""
    if isinstance(name, bytes):
        return name.decode("latin-1")
    if not isinstance(name, str):
        raise pickle.UnpicklingError(f"a {type(name).__name__} where a name is needed")
    return name
