"""The pickles of CIFAR, read without running anything.

Unpickling is running a program: it may call any function by name, and even where it may not, a few bytes can
make the machine allocate or compute without end. Here two things stand in the way. Before anything runs, the program
is read through. It may only have the instructions that dictionaries, lists, numbers, texts and arrays need, and no
more of them than so many images need, as an instruction of one byte can make an object of a hundred. Its tuples are
as many as three arrays need, as tuples within tuples grow without bound; those that a call takes apart do not count.
Its integers have 32 bits, as larger ones can be made to share one place in a dictionary. Then the few names that
NumPy's arrays call (which differ between versions of NumPy) lead to stand-ins of our own, which know nothing but
arrays of bytes; any other name is refused. So no object of NumPy is made, and arrays of objects do not exist.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import PathLike
from vitnp.data.files import is_web_page, out_of_memory, unusable

INSTRUCTIONS = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 STRING BINSTRING SHORT_BINSTRING
BINBYTES SHORT_BINBYTES BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE LIST EMPTY_LIST APPEND APPENDS DICT EMPTY_DICT
SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL
STACK_GLOBAL REDUCE BUILD
"""
MOST_TUPLES = 24  # an array takes two to four, and as many for calls
MOST_PER_ITEM = 16  # instructions: a file name and two labels take 3 from Python 2, up to 16 where Python 3 wrote bytes
MOST_BESIDE = 1000  # instructions for the rest


def read_pickle(content: bytes, path: PathLike, items: int) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as str: bytes, str, int, lists, dictionaries, and arrays of uint8.

    It may describe `items` images or names. `path` is named in the DataError that is raised for anything else.
    """
    _check_start(content, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in texts, which are refused or are none
            _check_instructions(content, MOST_BESIDE + MOST_PER_ITEM * items)
            found = _Unpickler(content).load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"holds a {type(found).__name__}")
        return {_text(key): value.array() if isinstance(value, _Array) else value for key, value in found.items()}
    except MemoryError as error:
        raise out_of_memory(path) from error
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        expected = "a pickle of a dictionary with arrays of bytes, as CIFAR's are"
        raise unusable(path, f"refused pickle ({reason})", expected) from error


def _check_start(content: bytes, path: PathLike) -> None:
    if not content:
        raise unusable(path, "empty file", "a pickle")
    if is_web_page(content):
        raise unusable(path, "looks like a web page", "a pickle", "download it again, from another address")


def _check_instructions(content: bytes, most: int) -> None:
    """Refuse what could run, or grow beyond the size of the file."""
    import pickletools

    allowed, tuples, before = frozenset(INSTRUCTIONS.split()), 0, ""
    for step, (instruction, argument, position) in enumerate(pickletools.genops(content)):
        name = instruction.name
        if name not in allowed:
            raise pickle.UnpicklingError(f"instruction {name} at byte {position}")
        if step == most:
            raise pickle.UnpicklingError(f"more than {most} instructions, which are enough")
        if isinstance(argument, int) and not -(2**31) <= argument < 2**32:
            raise pickle.UnpicklingError(f"an integer of more than 32 bits at byte {position}")
        if name in ("PUT", "LONG_BINPUT") and int(argument or 0) > step:  # a table that long would be allocated
            raise pickle.UnpicklingError(f"object {argument} noted at byte {position}, before there are so many")
        tuples += ("TUPLE" in name) - (name == "REDUCE" and "TUPLE" in before)
        if "PUT" not in name and name != "MEMOIZE":  # which leave the tuple where it is
            before = name
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
            return lambda *arguments: _empty_array(*arguments)  # anew each time, as a pickle could change a function
        if wanted == "numpy.core.numeric._frombuffer":
            return lambda *arguments: _array_of(*arguments)
        if wanted == "_codecs.encode":
            return lambda *arguments: self._encode(*arguments)
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
        if not all(isinstance(flag, int) for flag in flags):
            raise pickle.UnpicklingError("a type of array with other flags than numbers")
        if _text(code) not in ("u1", "B", "uint8"):
            raise pickle.UnpicklingError(f"an array of {_text(code)!r}, and not of bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: a byte has none."""


class _Array:
    """A stand-in for numpy.ndarray, which `array` turns into one."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.data: bytes | bytearray = b""
        self.order: Any = "C"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran_order, data = state
        self.fill(data, dtype, shape, "F" if fortran_order else "C")

    def fill(self, data: object, dtype: object, shape: object, order: str) -> None:
        """Take what the array consists of, once it fits together."""
        if not (isinstance(dtype, _DType) and isinstance(data, bytes | bytearray)):
            raise pickle.UnpicklingError("an array, and not of bytes")
        if not (isinstance(shape, tuple) and all(type(size) is int for size in shape)):
            raise pickle.UnpicklingError("an array without a shape")
        if math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"{len(data)} bytes for an array {shape}")
        self.shape, self.data, self.order = shape, data, order

    def array(self) -> NDArray[np.uint8]:
        """The array, read-only, over the bytes of the pickle."""
        return np.frombuffer(memoryview(self.data).toreadonly(), np.uint8).reshape(self.shape, order=self.order)


def _empty_array(kind: object, shape: object, code: object) -> _Array:
    """What numpy's _reconstruct is called for: an array that takes its state later."""
    if kind is not _Array or shape != (0,) or code not in ("b", b"b"):
        raise pickle.UnpicklingError("an array that does not begin as NumPy's do")
    return _Array()


def _array_of(data: object, dtype: object, shape: object, order: object) -> _Array:
    """What numpy's _frombuffer is called for, since protocol 5: a whole array."""
    if order not in ("C", "F"):
        raise pickle.UnpicklingError("an array in another order than C or F")
    array = _Array()
    array.fill(data, dtype, shape, str(order))
    return array


def _text(name: object) -> str:
    """A key or a code as str: Python 2 wrote bytes."""
    if isinstance(name, bytes):
        return name.decode("latin-1")
    if not isinstance(name, str):
        raise pickle.UnpicklingError(f"a {type(name).__name__} where a name is needed")
    return name
