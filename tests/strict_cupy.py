"""A double of CuPy that runs on NumPy and accepts only what the real CuPy accepts.

Code written once for NumPy and CuPy breaks on a GPU for reasons that no GPU is needed to find: a NumPy array
that strays into a device expression, a keyword that CuPy lacks, `float()` in a hot loop. With this module in
the place of CuPy each of them is an error, or is counted, on any machine:

    with strict_cupy.installed() as cupy:           # `import cupy` now finds the double
        x = cupy.asarray(images)                    # a wrapper, not a NumPy array
        with strict_cupy.count_syncs() as syncs:
            model.forward(x, ctx)
        assert syncs == []                          # else: [Sync(kind='float', where='loss.py:31')]

What is accepted is read from `cupy_surface.json`, frozen from the real package by `freeze_cupy_surface.py`: a
function must exist there, its arguments must bind to its signature there, a ufunc must have a loop for the
dtypes. Values, dtypes and views are NumPy's own, so that results equal NumPy's bit for bit.

Stricter than CuPy, where CuPy does silently what no program can mean:

    integer indices out of range     wrap around in CuPy; IndexError here
    stores through repeated indices  keep an unspecified value; ValueError here, unless a scalar is stored
    overlapping block copies         are undefined (`a[1:] = a[:-1]`); ValueError here
    shifts by the width or more      are undefined on a device; ValueError here
    lists and NumPy arrays           as indices or values are a hidden upload; TypeError here
    `empty`                          holds whatever was there; NaN, or an improbable integer, here

Not modelled: speed, memory limits, streams, the order of floating-point sums and atomics, random streams
(NumPy's are used), memory layout (a ufunc keeps its operands' layout as NumPy does, CuPy's result is
C-ordered), what may stand in a fused function, and that `linspace`, `percentile`, `gradient` and random draws
wait where their parameters are arrays. A kernel written in CUDA runs the NumPy function that `emulate` gave it.
"""

import contextlib
import dataclasses
import functools
import importlib.machinery
import inspect
import json
import operator
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SURFACE = json.loads(Path(__file__).with_name("cupy_surface.json").read_text())
DTYPES = "?bBhHiIlLqQefdFD"
ATOMICS = {"add": "ilqILQefd", "subtract": "iI", "maximum": "ilqILQfd", "minimum": "ilqILQfd"}  # for .at
SHIFTS = {"left_shift", "right_shift", "bitwise_left_shift", "bitwise_right_shift"}

# what a parameter of this name takes: arrays only, sequences of arrays, an array or a number
ARRAY_NAMES = {"a", "b", "x", "ary", "arr", "array", "condition", "dst", "a1", "a2", "prototype"}
SEQUENCE_NAMES = {"tup", "arys", "arrays"}
MIXED_NAMES = {"indices", "values", "y", "v"}
TAKES_NUMBERS = {"where": {"x"}, "isclose": {"a", "b"}, "allclose": {"a", "b"}}
TAKES_ANYTHING = {"isscalar", "iscomplexobj", "isrealobj", "min_scalar_type", "ndim", "shape", "size"}
ZERO_DIMENSIONAL = {"allclose", "array_equal", "array_equiv", "count_nonzero"}  # Python numbers in NumPy
UPLOADS = {"array", "asanyarray", "asarray", "ascontiguousarray", "asfortranarray"}

# functions and methods that make the host wait: those that say so themselves, those that look at values
SYNCING = set(SURFACE["syncs"]) | {"argwhere", "average", "choose", "intersect1d", "setdiff1d", "union1d"}
SYNCING |= {"array2string", "array_repr", "array_str", "save", "savez", "dump", "dumps"}
SYNCING |= {"item", "tobytes", "tofile", "tolist"}

# Python's operators: the ufunc whose operands each takes
OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "pow": "power"}
OPERATORS |= {"floordiv": "floor_divide", "mod": "remainder", "divmod": "divmod"}
OPERATORS |= {"lshift": "left_shift", "rshift": "right_shift"}
OPERATORS |= {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "invert": "invert"}
OPERATORS |= {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater"}
OPERATORS |= {"ge": "greater_equal", "neg": "negative", "pos": "positive", "abs": "absolute"}


class NotEmulated(NotImplementedError):
    """The real CuPy has it, this double does not: a gap here, not a fault in the code under test."""


# --- host synchronisation -----------------------------------------------------------------------------------


class Sync(NamedTuple):
    """One wait of the host for the device: what asked for it, and where, as `file.py:line`."""

    kind: str
    where: str


syncs: list[Sync] = []
_counters: list[list[Sync]] = []


@contextlib.contextmanager
def count_syncs() -> Iterator[list[Sync]]:
    """A list of the synchronisations inside the block, filled as they happen."""
    counter: list[Sync] = []
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters[:] = [other for other in _counters if other is not counter]


def _sync(kind: str) -> None:
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    sync = Sync(kind, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
    for record in (syncs, *_counters):
        record.append(sync)


# --- between host values and device arrays ------------------------------------------------------------------


def _is_scalar(x) -> bool:
    """What CuPy takes beside its own arrays: exactly the Python numbers, and NumPy's scalars."""
    return type(x) in (bool, int, float, complex) or (isinstance(x, np.generic) and x.dtype.char in DTYPES)


def _host(x, where: str, seen: dict, upload: bool = False):
    """`x` with the NumPy array behind each device array; `seen` remembers which wrapper holds which array."""
    if isinstance(x, ndarray):
        seen[id(x._array)] = x
        return x._array
    if isinstance(x, np.ndarray) and not upload:
        raise TypeError(f"{where}: Unsupported type {np.ndarray} (upload it with cupy.asarray)")
    if isinstance(x, np.ndarray):
        return np.array(x, order="K")
    if isinstance(x, list | tuple):
        return type(x)(_host(item, where, seen, upload) for item in x)
    if inspect.isroutine(x):
        raise NotEmulated(f"{where}: the double passes no functions on")
    return x


def _device(x, seen: dict):
    """`x` with each NumPy array wrapped; an array that came in goes out as the wrapper it came in."""
    if isinstance(x, np.ndarray):
        return seen[id(x)] if id(x) in seen else ndarray._of(x)
    if isinstance(x, np.generic):
        return ndarray._of(np.asarray(x))
    if isinstance(x, list | tuple):
        items = [_device(item, seen) for item in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    return x


def _call(function: Callable, args, kwargs: dict, where: str, upload: bool = False):
    """Call a NumPy function with device arrays. As in CuPy, overflow and division by zero give no warning."""
    seen: dict[int, ndarray] = {}
    args = [_host(x, where, seen, upload) for x in args]
    kwargs = {name: _host(x, where, seen, upload) for name, x in kwargs.items()}
    with np.errstate(all="ignore"):
        return _device(function(*args, **kwargs), seen)


@functools.cache
def _signature(text: str) -> inspect.Signature:
    return inspect.signature(eval(f"lambda {text}: None"))


def _bind(text: str, args, kwargs: dict, where: str) -> dict:
    """The arguments by parameter name, or the TypeError that CuPy's own signature raises."""
    try:
        return _signature(text).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{where}({text}): {error}") from None


def _poisoned(array: np.ndarray) -> np.ndarray:
    """Fill memory that nobody has written yet so that reading it shows."""
    if array.dtype.kind != "b":
        array[...] = np.nan if array.dtype.kind in "fc" else np.iinfo(array.dtype).max - 0x5A
    return array


def _refuse_overlap(target: np.ndarray, source: np.ndarray) -> None:
    """CuPy copies blocks of one layout with a plain memory copy, whatever their overlap."""
    same_layout = source.shape == target.shape and source.strides == target.strides
    block = same_layout and source.dtype == target.dtype and target.flags.c_contiguous
    if block and _address(source) != _address(target) and np.may_share_memory(source, target):
        raise ValueError("a block copy within overlapping memory is undefined in CuPy: copy the source first")


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


# --- ufuncs -------------------------------------------------------------------------------------------------


def _kind(x):
    """What an operand says to type resolution: a dtype, or a Python number type that yields to dtypes."""
    return x.dtype if isinstance(x, ndarray | np.generic) else type(x)


def _score(kind) -> int:
    scalar_type = kind if isinstance(kind, type) else kind.type
    return 0 if scalar_type is np.bool_ else 1 if issubclass(scalar_type, np.integer | int) else 2


@functools.cache
def _loop(loops: str, kinds: tuple) -> str | None:
    """The output dtypes of the first loop that takes these operands, found as CuPy finds it."""
    weak = [_score(kind) for kind in kinds if isinstance(kind, type)]
    strong = [_score(kind) for kind in kinds if not isinstance(kind, type)]
    if not weak or not strong or max(weak) > max(strong):  # numbers yield to dtypes of their kind or above
        kinds = tuple(np.dtype(kind) for kind in kinds)
    for loop in loops.split():
        inputs, outputs = loop.split("->")
        if all(_fits(kind, char) for kind, char in zip(kinds, inputs, strict=True)):
            return outputs
    return None


def _fits(kind, char: str) -> bool:
    if isinstance(kind, type):  # a Python number fits where it does not change the dtype
        return np.result_type(np.dtype(char), kind(0)) == char
    return np.can_cast(kind, char)


class ufunc:
    """An element-wise function: only device arrays and scalars, only `out`, `dtype` and `casting`."""

    __module__ = "cupy"

    def __init__(self, name: str, loops: str):
        self.__name__, self._loops, self._numpy = name, loops, getattr(np, name)
        self.nin, self.nout = map(len, loops.split()[0].split("->"))

    def __call__(self, *args, out=None, dtype=None, casting="same_kind", **unknown):
        where = f"cupy.{self.__name__}"
        if unknown:
            raise TypeError(f"{where}: Wrong arguments {unknown}")
        if not self.nin <= len(args) <= self.nin + self.nout:
            raise TypeError(f"{where}: Wrong number of arguments, {len(args)}")
        inputs, outputs = args[: self.nin], self._outputs(args[self.nin :], out)
        self.admit(inputs, dtype)
        if isinstance(self._numpy, np.ufunc):
            options = {"out": outputs or None, "dtype": dtype, "casting": casting}
            return _call(self._numpy, inputs, options, where)
        result = _call(self._numpy, inputs, {}, where)  # a plain function in NumPy: sinc, i0, fix
        if not outputs:
            return result
        outputs[0][...] = result
        return outputs[0]

    def _outputs(self, positional: tuple, out) -> tuple:
        if out is not None and positional:
            raise ValueError("Cannot specify 'out' as both a positional and keyword argument")
        outputs = positional if out is None else out if isinstance(out, tuple) else (out,)
        if outputs and len(outputs) != self.nout:
            raise ValueError(f"'out' must be a tuple of {self.nout} arrays")
        return outputs

    def admit(self, inputs, dtype=None) -> None:
        """Raise unless CuPy has a loop for these operands (for this output dtype, if one is given)."""
        where = f"cupy.{self.__name__}"
        for x in inputs:
            if not isinstance(x, ndarray) and not _is_scalar(x):
                raise TypeError(f"{where}: Unsupported type {type(x)}")
        kinds = tuple(_kind(x) for x in inputs)
        found = _loop(self._loops, kinds) if dtype is None else self._ending_in(np.dtype(dtype))
        if found is None:
            raise TypeError(f"{where}: Wrong type ({dtype or kinds}) of arguments")
        if self.__name__ in SHIFTS:
            amount = np.asarray(inputs[1]._array if isinstance(inputs[1], ndarray) else inputs[1])
            if ((amount < 0) | (amount >= 8 * np.dtype(found).itemsize)).any():
                raise ValueError(f"{where}: a shift by the width of the type is undefined on a device")

    def _ending_in(self, dtype: np.dtype) -> str | None:
        outputs = (loop.split("->")[1] for loop in self._loops.split())
        return next((chars for chars in outputs if all(np.dtype(char) == dtype for char in chars)), None)

    def at(self, a, indices, b=None):
        """Unbuffered in-place operation, by atomics: for few functions and dtypes, in no particular order."""
        if self.__name__ not in SURFACE["at"]:
            raise NotImplementedError(f"`{self.__name__}.at` is not supported yet")
        if a.dtype.char not in ATOMICS.get(self.__name__, "ilqILQ"):
            raise TypeError(f"cupy.{self.__name__}.at has no atomics for {a.dtype}")
        if not isinstance(b, ndarray) and not _is_scalar(b):
            raise TypeError(f"cupy.{self.__name__}.at: Unsupported type {type(b)}")
        host, _ = _index(indices)
        self._numpy.at(a._array, host, b._array if isinstance(b, ndarray) else b)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        """Only sums and products."""
        return self._via({"add": "sum", "multiply": "prod"}, "reduce", array)(axis, dtype, out, keepdims)

    def accumulate(self, array, axis=0, dtype=None, out=None):
        """Only sums and products."""
        return self._via({"add": "cumsum", "multiply": "cumprod"}, "accumulate", array)(axis, dtype, out)

    def reduceat(self, array, indices, axis=0, dtype=None, out=None):
        """Only sums."""
        self._via({"add": "sum"}, "reduceat", array)
        return _call(np.add.reduceat, (array, indices, axis, dtype, out), {}, "cupy.add.reduceat")

    def _via(self, methods: dict[str, str], kind: str, array):
        if self.__name__ not in methods:
            raise NotImplementedError(f"`{self.__name__}.{kind}` is not supported yet")
        return getattr(array, methods[self.__name__])

    def outer(self, a, b, **kwargs):
        """The function of every pair of elements."""
        return self(a.reshape(a.shape + (1,) * b.ndim), b.reshape((1,) * a.ndim + b.shape), **kwargs)


# --- arrays -------------------------------------------------------------------------------------------------


def _index(key):
    """An index with host arrays, and what is advanced in it: "integer", "mask" or nothing."""
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        basic = part is None or part is Ellipsis or isinstance(part, slice | int | np.integer)
        if not (basic or isinstance(part, ndarray | np.bool_)):
            raise TypeError(f"an index of {type(part)} is no CuPy index, or is uploaded at each use")
    arrays = [part for part in parts if isinstance(part, ndarray | bool | np.bool_)]
    masks = [part for part in arrays if not isinstance(part, ndarray) or part.dtype == bool]
    if masks and len(arrays) > 1:
        raise ValueError("currently, CuPy only supports slices that consist of one boolean array.")
    if masks:
        _sync("boolean mask")
    host = tuple(part._array if isinstance(part, ndarray) else part for part in parts)
    return host, "mask" if masks else "integer" if arrays else ""


@dataclasses.dataclass(slots=True)
class _Flags:
    """Layout only: a device array has no flag to make it read-only."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool

    @property
    def forc(self) -> bool:
        """Contiguous in Fortran or C order."""
        return self.f_contiguous or self.c_contiguous

    @property
    def fnc(self) -> bool:
        """Contiguous in Fortran and not C order."""
        return self.f_contiguous and not self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        if name not in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"):
            raise KeyError(f"Unknown flag {name!r}")
        return getattr(self, name.lower())


_OWNERS: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # arrays that own memory, by the id of that


class ndarray:
    """A device array: NumPy memory that nothing but this module reaches."""

    __module__ = "cupy"
    __slots__ = ("__weakref__", "_array")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is not None or strides is not None:
            raise NotEmulated("cupy.ndarray over given memory")
        self._array = _poisoned(np.empty(shape, dtype, order))
        _OWNERS[id(self._array)] = self

    @classmethod
    def _of(cls, array: np.ndarray) -> "ndarray":
        if array.dtype.char not in DTYPES or not array.dtype.isnative:
            raise ValueError(f"Unsupported dtype {array.dtype}")
        self = cls.__new__(cls)
        self._array = array
        if array.base is None:
            _OWNERS[id(array)] = self
        return self

    @property
    def base(self) -> "ndarray | None":
        """The array whose memory this is a view of, however many views are between; None for one that owns it."""
        return None if self._array.base is None else _OWNERS.get(id(self._array.base))

    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    itemsize = property(lambda self: self._array.itemsize)
    nbytes = property(lambda self: self._array.nbytes)
    strides = property(lambda self: self._array.strides)
    T = property(lambda self: ndarray._of(self._array.T))
    mT = property(lambda self: ndarray._of(self._array.mT))
    device = property(lambda self: Device(0))
    data = property(lambda self: types.SimpleNamespace(ptr=_address(self._array), device_id=0))

    @property
    def flags(self) -> _Flags:
        """Memory layout."""
        flags = self._array.flags
        return _Flags(flags.c_contiguous, flags.f_contiguous, flags.owndata)

    @property
    def real(self) -> "ndarray":
        """The array itself, or a view of its real parts."""
        return self if self.dtype.kind != "c" else ndarray._of(self._array.real)

    @real.setter
    def real(self, value):
        self.real[...] = value

    @property
    def imag(self) -> "ndarray":
        """A view of the imaginary parts, or new zeros."""
        return ndarray._of(self._array.imag if self.dtype.kind == "c" else np.zeros_like(self._array))

    @imag.setter
    def imag(self, value):
        if self.dtype.kind != "c":
            raise TypeError("cupy.ndarray does not have imaginary part to set")
        self.imag[...] = value

    def __getattr__(self, name: str):
        if name in SURFACE["attributes"]:
            raise NotEmulated(f"cupy.ndarray.{name}")
        raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")

    # to and from the host

    def _download(self, kind: str, order: str = "C", out: np.ndarray | None = None) -> np.ndarray:
        _sync(kind)
        if out is None:
            return np.array(self._array, order=order)
        if not isinstance(out, np.ndarray) or out.dtype != self.dtype or out.shape != self.shape:
            raise TypeError(f"out must be a numpy.ndarray of dtype {self.dtype} and shape {self.shape}")
        out[...] = self._array
        return out

    def get(self, stream=None, order="C", out=None, blocking=True) -> np.ndarray:
        """A copy as a NumPy array: the one open door, and a synchronisation."""
        return self._download("get", order, out)

    def set(self, arr, stream=None) -> None:
        """Write a NumPy array of the same dtype and shape into this one."""
        if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"only a numpy.ndarray of dtype {self.dtype} and shape {self.shape} can be set")
        self._array[...] = arr

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __reduce__(self):
        return _upload, (self.get(),)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    # NumPy's functions given device arrays

    def __array_ufunc__(self, numpy_ufunc, method, *inputs, out=None, **kwargs):
        function = getattr(strict, numpy_ufunc.__name__, None)
        if function is None or method != "__call__":
            return NotImplemented
        if out is not None and len(out) != 1:
            raise ValueError("The 'out' parameter must have exactly one array value")
        for x in inputs:
            if not isinstance(x, ndarray | np.ndarray) and not _is_scalar(x):
                return NotImplemented
        return function(*inputs, **kwargs, **({} if out is None else {"out": out[0]}))

    def __array_function__(self, numpy_function, types, args, kwargs):
        try:
            path = [*numpy_function.__module__.split(".")[1:], numpy_function.__name__]
            function = functools.reduce(getattr, path, strict)
        except AttributeError:
            return NotImplemented
        if function is numpy_function or not all(issubclass(t, ndarray | np.ndarray) for t in types):
            return NotImplemented
        return function(*args, **kwargs)

    # elements

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        host, advanced = _index(key)
        if advanced:
            return ndarray._of(np.asarray(self._array[host]))
        if not any(part is Ellipsis for part in host):
            host = (*host, Ellipsis)  # an element too is a view, a 0-d one
        return ndarray._of(self._array[host])

    def __setitem__(self, key, value):
        host, advanced = _index(key)
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        if not isinstance(value, ndarray | np.ndarray) and not _is_scalar(value):
            raise TypeError(f"cupy.ndarray.__setitem__: Unsupported type {type(value)}")
        if isinstance(value, ndarray):
            value = value._array
            if advanced == "integer" and value.size > 1:
                self._refuse_repeats(host)
            elif not advanced:
                _refuse_overlap(self._array[host], value)
        with np.errstate(all="ignore"):
            self._array[host] = value

    def _refuse_repeats(self, host) -> None:
        places = np.arange(self.size).reshape(self.shape)[host]
        if np.unique(places).size < places.size:
            raise ValueError("an index repeats: which of its values is stored is undefined in CuPy")

    def fill(self, value) -> None:
        """Write one value everywhere."""
        self[...] = value

    # products; there is no __imatmul__, so that `a @= b` makes a new array

    def __matmul__(self, other):
        return _matmul(self, other)

    def __rmatmul__(self, other):
        return _matmul(other, self)


def _upload(host: np.ndarray) -> ndarray:
    return strict.asarray(host)


def _conversion(kind: str, function: Callable) -> Callable:
    """A special method that looks at the values, which the host must wait for."""

    def method(self, *args):
        _sync(kind)
        return function(self._array, *args)

    return method


def _operator(ufunc_name: str, function: Callable, reflected: bool = False) -> Callable:
    """An operator: CuPy's rules for the operands, then Python's operator on the NumPy arrays."""

    def method(self, *others):
        operands = (*others, self) if reflected else (self, *others)
        getattr(strict, ufunc_name).admit(operands)
        return _call(function, operands, {}, f"cupy.{ufunc_name}")

    return method


def _method(name: str, text: str) -> Callable:
    """A method that binds as CuPy's does and then does what NumPy's does."""
    where = f"cupy.ndarray.{name}"

    def method(self, *args, **kwargs):
        _check_arrays(name, _bind(text, args, kwargs, where), where)
        if not hasattr(np.ndarray, name):
            raise NotEmulated(where)
        if name in SYNCING:
            _sync(name)
        return _call(getattr(np.ndarray, name), (self, *args), kwargs, where)

    method.__name__ = name
    return method


def _complete_ndarray() -> None:
    """Give `ndarray` the methods of the frozen surface, the conversions and the operators."""
    for name, text in SURFACE["ndarray"].items():
        if name not in vars(ndarray):
            setattr(ndarray, name, _method(name, text))
    for function in (float, int, complex, bool, bytes):
        setattr(ndarray, f"__{function.__name__}__", _conversion(function.__name__, function))
    for function in (repr, str, format):
        setattr(ndarray, f"__{function.__name__}__", _conversion("print", function))
    for name, ufunc_name in OPERATORS.items():
        function = divmod if name == "divmod" else getattr(operator, f"__{name}__")
        setattr(ndarray, f"__{name}__", _operator(ufunc_name, function))
        if f"__r{name}__" in SURFACE["operators"]:
            setattr(ndarray, f"__r{name}__", _operator(ufunc_name, function, reflected=True))
        if f"__i{name}__" in SURFACE["operators"]:
            setattr(ndarray, f"__i{name}__", _operator(ufunc_name, getattr(operator, f"__i{name}__")))


# --- functions ----------------------------------------------------------------------------------------------


def _check_arrays(name: str, bound: dict, where: str) -> None:
    """Lists and numbers are no arrays; the names of CuPy's parameters say where it wants one."""
    if name in TAKES_ANYTHING or name in UPLOADS:
        return
    for parameter, x in bound.items():
        if x is None:
            continue
        if parameter in SEQUENCE_NAMES:
            for item in x:
                _require_array(item, where, parameter)
        elif parameter in MIXED_NAMES or parameter in TAKES_NUMBERS.get(name, ()):
            _require_array(x, where, parameter, or_number=True)
        elif parameter in ARRAY_NAMES:
            _require_array(x, where, parameter)


def _require_array(x, where: str, parameter: str, or_number: bool = False) -> None:
    if not isinstance(x, ndarray) and not (or_number and _is_scalar(x)):
        raise TypeError(f"{where}: {parameter} is {type(x)}, not a cupy.ndarray")


def _function(path: str, name: str, text: str, numpy_function: Callable) -> Callable:
    """A function that binds as CuPy's does and then does what NumPy's does."""
    where = f"{path}.{name}"

    def function(*args, **kwargs):
        bound = _bind(text, args, kwargs, where)
        _check_arrays(name, bound, where)
        if name in SYNCING or (name == "where" and "x" not in bound):
            _sync(name)
        return _call(numpy_function, args, kwargs, where, upload=name in UPLOADS)

    function.__name__ = name
    return function


def _matmul(*args, **kwargs):
    """Arrays only; `out` by name only."""
    _bind(SURFACE["functions"]["matmul"], args, kwargs, "cupy.matmul")
    if len(args) != 2 or not all(isinstance(x, ndarray) for x in args):
        raise TypeError(f"cupy.matmul: two cupy.ndarray are needed, not {[type(x) for x in args]}")
    return _call(np.matmul, args, kwargs, "cupy.matmul")


def _einsum(*operands, **kwargs):
    unknown = kwargs.keys() - {"dtype", "optimize"}
    if unknown:
        raise TypeError(f"Did not understand the following kwargs: {sorted(unknown)}")
    return np.einsum(*operands, **kwargs)


def _copyto(dst, src, *args, **kwargs):
    if isinstance(src, np.ndarray):
        _refuse_overlap(dst, src)
    np.copyto(dst, src, *args, **kwargs)


def _uploader(numpy_function: Callable) -> Callable:
    return lambda *args, blocking=False, **kwargs: numpy_function(*args, **kwargs)


def _as_array(numpy_function: Callable) -> Callable:
    return lambda *args, **kwargs: np.asarray(numpy_function(*args, **kwargs))


# on the NumPy side of a call, in the place of the NumPy function of the same name
IMPLEMENTATIONS = {
    "copyto": _copyto,
    "einsum": _einsum,
    "empty": lambda *args, **kwargs: _poisoned(np.empty(*args, **kwargs)),
    "empty_like": lambda *args, **kwargs: _poisoned(np.empty_like(*args, **kwargs)),
    **{name: _as_array(getattr(np, name)) for name in ZERO_DIMENSIONAL},
    **{name: _uploader(getattr(np, name)) for name in UPLOADS},
}


def _asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a._download("asnumpy", order, out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def _get_array_module(*args):
    return strict if any(isinstance(x, ndarray) for x in args) else np


def _fuse(*args, **kwargs):
    """The function itself: fusion changes speed alone."""
    return args[0] if args and callable(args[0]) else lambda function: function


# --- kernels written in CUDA --------------------------------------------------------------------------------

_emulations: dict[str, Callable] = {}


def emulate(kernel_name: str) -> Callable:
    """Decorate the NumPy function that stands in for the CUDA kernel of this name.

    For an ElementwiseKernel or ReductionKernel it takes the inputs as NumPy arrays and returns the output, or
    a tuple of them; for a RawKernel it takes (grid, block, *arguments) and writes into the arrays.
    """

    def register(function: Callable) -> Callable:
        _emulations[kernel_name] = function
        return function

    return register


class _Kernel:
    def __init__(self, name: str):
        self.name = name

    def _run(self, args, kwargs: dict):
        if self.name not in _emulations:
            raise NotEmulated(f"the CUDA kernel {self.name!r}: give it a function with strict_cupy.emulate")
        return _call(_emulations[self.name], args, kwargs, f"the kernel {self.name!r}")


class ElementwiseKernel(_Kernel):
    """An element-wise kernel: inputs, then any outputs, by position."""

    def __init__(self, in_params, out_params, operation, name="kernel", **options):
        super().__init__(name)
        self.nin, self.nout = (text.count(",") + 1 for text in (in_params, out_params))

    def __call__(self, *args, size=None, block_size=128, **kwargs):
        inputs, outputs = args[: self.nin], args[self.nin :]
        if len(inputs) < self.nin or len(outputs) not in (0, self.nout):
            raise TypeError(f"Wrong number of arguments for {self.name!r}: {len(args)}")
        results = self._run(inputs, kwargs)
        if not outputs:
            return results
        for out, result in zip(outputs, results if self.nout > 1 else (results,), strict=True):
            out[...] = result
        return outputs if self.nout > 1 else outputs[0]


class ReductionKernel(ElementwiseKernel):
    """A reduction kernel: the same, with `axis` and `keepdims`."""

    def __init__(self, in_params, out_params, map_expr, *expressions, name="reduce_kernel", **options):
        super().__init__(in_params, out_params, map_expr, name)


class RawKernel(_Kernel):
    """A kernel in plain CUDA, started with a grid, a block and the tuple of its arguments."""

    def __init__(self, code, name, options=(), **more_options):
        super().__init__(name)

    def __call__(self, grid, block, args, *, shared_mem=0):
        self._run((grid, block, *args), {})


# --- random numbers and the device --------------------------------------------------------------------------


class Generator:
    """The methods of CuPy's Generator, with NumPy's streams."""

    __module__ = "cupy.random"

    def __init__(self, bit_generator):
        self._numpy = np.random.default_rng(bit_generator)


def _draw(name: str, text: str) -> Callable:
    where = f"cupy.random.Generator.{name}"

    def method(self, *args, **kwargs):
        bound = _bind(text, args, kwargs, where)
        dtype = bound.get("dtype")
        if name in ("uniform", "beta"):  # NumPy's draw float64 only
            args = tuple(bound[parameter] for parameter in bound if parameter != "dtype")
            kwargs = {}
        result = _call(getattr(self._numpy, name), args, kwargs, where)
        if not isinstance(result, ndarray):  # a draw without size is a Python number in NumPy
            return ndarray._of(np.asarray(result, dtype))
        return result if dtype is None else result.astype(dtype, copy=False)

    method.__name__ = name
    return method


class Device:
    """The one device."""

    compute_capability = "90"

    def __init__(self, device=0):
        self.id = device

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def use(self) -> None:
        """Make it the current device."""

    def synchronize(self) -> None:
        """Wait for all work."""
        _sync("Device.synchronize")


class Stream:
    """A stream whose work is done when it is asked for."""

    null: "Stream"

    def __init__(self, null=False, non_blocking=False, ptds=False):
        self.ptr = 0

    __enter__, __exit__, use = Device.__enter__, Device.__exit__, Device.use

    def synchronize(self) -> None:
        """Wait for the work of this stream."""
        _sync("Stream.synchronize")

    def record(self, event=None) -> "Event":
        """An event at this point of the stream."""
        return event or Event()

    def wait_event(self, event) -> None:
        """Let the device wait, not the host."""


class Event:
    """A mark in a stream."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.done = True

    def record(self, stream=None) -> None:
        """Put the mark here."""

    def synchronize(self) -> None:
        """Wait until the mark is reached."""
        _sync("Event.synchronize")


Stream.null = Stream(null=True)


class _MemoryPool:
    """A pool that holds nothing."""

    def used_bytes(self) -> int:
        """Bytes in use: not modelled."""
        return 0

    def total_bytes(self) -> int:
        """Bytes held: not modelled."""
        return 0

    def free_all_blocks(self, stream=None) -> None:
        """Nothing to free."""


# --- the module ---------------------------------------------------------------------------------------------


class _Namespace(types.ModuleType):
    """A module with the names of the real one, no others; what is not emulated says so when it is used."""

    def __init__(self, name: str, known, functions=types.MappingProxyType({}), numpy_module=np):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self._known, self._functions, self._numpy = frozenset(known), functions, numpy_module

    def __dir__(self):
        return sorted(self._known)

    def __getattr__(self, name: str):
        if name.startswith("__") or name not in self._known:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name not in self._functions or not hasattr(self._numpy, name):
            raise NotEmulated(f"{self.__name__}.{name}")
        numpy_function = IMPLEMENTATIONS.get(name) or getattr(self._numpy, name)
        setattr(self, name, _function(self.__name__, name, self._functions[name], numpy_function))
        return vars(self)[name]


def _cupy() -> _Namespace:
    known = {name for part in ("functions", "ufuncs", "same", "others") for name in SURFACE[part]}
    module = _Namespace("cupy", known, SURFACE["functions"])
    vars(module).update({name: getattr(np, name) for name in SURFACE["same"] if hasattr(np, name)})
    vars(module).update({n: ufunc(n, loops) for n, loops in SURFACE["ufuncs"].items() if hasattr(np, n)})
    module.__version__ = SURFACE["versions"]["cupy"]
    module.ndarray, module.ufunc, module.matmul = ndarray, ufunc, _matmul
    module.asnumpy, module.get_array_module, module.fuse = _asnumpy, _get_array_module, _fuse
    kernels = (ElementwiseKernel, ReductionKernel, RawKernel)
    vars(module).update({kernel.__name__: kernel for kernel in kernels})
    module.get_default_memory_pool = module.get_default_pinned_memory_pool = _MemoryPool
    module.is_available = lambda: True
    module.linalg = _Namespace("cupy.linalg", SURFACE["linalg"], SURFACE["linalg"], np.linalg)
    module.random = _Namespace("cupy.random", SURFACE["random"])
    module.random.Generator, module.random.default_rng = Generator, lambda seed=None: Generator(seed)
    module.cuda = _Namespace("cupy.cuda", SURFACE["cuda"])
    module.cuda.is_available = module.is_available
    module.cuda.Device, module.cuda.Stream, module.cuda.Event = Device, Stream, Event
    module.cuda.get_current_stream = lambda device_id=-1: Stream.null
    module.cuda.get_elapsed_time = lambda start_event, end_event: 0.0
    module.cuda.runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda device: {"name": b"strict double"},
        memGetInfo=lambda: (1 << 30, 1 << 30),  # free, and in all: bytes
        deviceSynchronize=functools.partial(_sync, "deviceSynchronize"),
    )
    return module


@contextlib.contextmanager
def installed() -> Iterator[_Namespace]:
    """Inside the block `import cupy` finds the double; `import cupyx` fails, for nothing may need it."""
    modules = {"cupy": strict, "cupyx": None}
    modules |= {f"cupy.{name}": getattr(strict, name) for name in ("cuda", "linalg", "random")}
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield strict
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


_complete_ndarray()
for _name, _text in SURFACE["Generator"].items():
    setattr(Generator, _name, _draw(_name, _text))
strict = _cupy()
strict.syncs, strict.count_syncs = syncs, count_syncs
