"""The double of CuPy: what it accepts, what it refuses, and that its results are NumPy's bit for bit."""

import ast
import copy
import itertools
import math
import operator
import pickle
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import strict_cupy
from strict_cupy import SURFACE, count_syncs, strict

PACKAGE = Path(__file__).parents[1] / "vitnp"


@pytest.fixture
def cupy():
    """The double, also found by `import cupy`."""
    with strict_cupy.installed() as module:
        yield module


def sample(xp):
    """Two float arrays (2, 3, 4), an index array (2,) and a mask (2, 3, 4), the same for any module."""
    rng = np.random.default_rng(0)
    host = [rng.standard_normal((2, 3, 4)).astype("f4") for _ in range(2)]
    return *(xp.asarray(x) for x in host), xp.asarray(np.array([1, 0])), xp.asarray(host[0] > 0)


def bits(x):
    """What must agree: dtype, shape and every byte."""
    host = x._array if isinstance(x, strict.ndarray) else np.asarray(x)
    return host.dtype, host.shape, host.tobytes()


# --- calls that CuPy takes ----------------------------------------------------------------------------------

ACCEPTED = {
    "softmax": lambda xp, x, y, i, m: xp.exp(x - x.max(-1, keepdims=True)) / xp.exp(x).sum(-1, keepdims=True),
    "matmul of a swapped view": lambda xp, x, y, i, m: x @ y.swapaxes(-1, -2),
    "matmul out=": lambda xp, x, y, i, m: xp.matmul(x, y.mT, out=xp.zeros((2, 3, 3), "f4")),
    "np.matmul out=": lambda xp, x, y, i, m: np.matmul(x, y.mT, out=xp.zeros((2, 3, 3), "f4")),
    "np.exp": lambda xp, x, y, i, m: np.exp(x),
    "np.sum": lambda xp, x, y, i, m: np.sum(x, axis=(0, 2)),
    "np.linalg.norm": lambda xp, x, y, i, m: np.linalg.norm(x, axis=-1),
    "ufunc out= by position": lambda xp, x, y, i, m: xp.multiply(x, y, xp.zeros_like(x)),
    "ufunc out= as a tuple": lambda xp, x, y, i, m: xp.multiply(x, y, out=(xp.zeros_like(x),)),
    "ufunc dtype=": lambda xp, x, y, i, m: xp.add(x, y, dtype="f8"),
    "sum out=": lambda xp, x, y, i, m: x.sum(axis=(0, 1), out=xp.zeros(4, "f4")),
    "mean dtype=": lambda xp, x, y, i, m: x.mean(dtype="f8", keepdims=True),
    "var ddof=": lambda xp, x, y, i, m: x.var(-1, ddof=1),
    "where with a number": lambda xp, x, y, i, m: xp.where(x > 0, x, 0.0),
    "clip by position": lambda xp, x, y, i, m: xp.clip(x, -1, 1),
    "clip method": lambda xp, x, y, i, m: x.clip(-1, 1),
    "einsum": lambda xp, x, y, i, m: xp.einsum("bij,bkj->bik", x, y, optimize=True),
    "tensordot": lambda xp, x, y, i, m: xp.tensordot(x, y, axes=((0, 2), (0, 2))),
    "concatenate": lambda xp, x, y, i, m: xp.concatenate([x, y], axis=1),
    "stack": lambda xp, x, y, i, m: xp.stack((x, y), axis=1),
    "split": lambda xp, x, y, i, m: xp.split(x, 2, axis=-1)[1],
    "broadcast_to": lambda xp, x, y, i, m: xp.broadcast_to(x[:1], (5, 3, 4)),
    "pad": lambda xp, x, y, i, m: xp.pad(x, ((0, 0), (1, 1), (0, 2))),
    "moveaxis": lambda xp, x, y, i, m: xp.moveaxis(x, 0, -1),
    "take": lambda xp, x, y, i, m: xp.take(x, i, axis=1),
    "take_along_axis": lambda xp, x, y, i, m: xp.take_along_axis(x, x.argsort(-1), axis=-1),
    "fancy index": lambda xp, x, y, i, m: x[xp.arange(2), i],
    "index and slice": lambda xp, x, y, i, m: x[i, None, 1:, ::-2],
    "ellipsis": lambda xp, x, y, i, m: x[..., 0],
    "NumPy integer index": lambda xp, x, y, i, m: x[np.int64(1)],
    "numbers of every kind": lambda xp, x, y, i, m: 2 * x / 3.0 - True + 1.5**x,
    "NumPy scalar operand": lambda xp, x, y, i, m: np.float32(2) * x + np.float64(1),
    "complex": lambda xp, x, y, i, m: xp.exp(x.astype("c16") + 1e-20j).imag,
    "float32 with a complex number": lambda xp, x, y, i, m: x * 1j,
    "square and cube": lambda xp, x, y, i, m: x**2 + x**3,
    "comparison": lambda xp, x, y, i, m: (x < y) & ~(x == y),
    "hash in uint32": lambda xp, x, y, i, m: ((xp.arange(9, dtype="u4") * 0x9E3779B9) ^ 7) >> 16,
    "add.at": lambda xp, x, y, i, m: (xp.add.at(x, i, y), x)[1],
    "accumulate": lambda xp, x, y, i, m: xp.add.accumulate(x, axis=1),
    "outer": lambda xp, x, y, i, m: xp.multiply.outer(i, i),
    "divmod": lambda xp, x, y, i, m: divmod(xp.arange(9), 4)[1],
    "linalg.qr": lambda xp, x, y, i, m: xp.linalg.qr(x[0])[0],
    "sinc, no ufunc in NumPy": lambda xp, x, y, i, m: xp.sinc(x),
    "result_type": lambda xp, x, y, i, m: xp.zeros(1, xp.result_type(x, xp.float64)),
    "full, arange, eye, linspace": lambda xp, x, y, i, m: (
        xp.full((3,), 2.0) * xp.arange(3) @ xp.eye(3) + xp.linspace(0, 1, 3)
    ),
}


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted_call_gives_numpys_bits(call):
    assert bits(call(strict, *sample(strict))) == bits(call(np, *sample(np)))


@pytest.mark.parametrize("name", ["allclose", "array_equal", "count_nonzero", "max", "argmax", "any"])
def test_result_without_axes_is_an_array_not_a_number(name):
    x, y, *_ = sample(strict)
    arguments = (x, y) if name in ("allclose", "array_equal") else (x,)
    result = getattr(strict, name)(*arguments)
    assert (type(result), result.shape) == (strict.ndarray, ())


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "true_divide", "power", "maximum", "exp"])
def test_loop_that_cupy_picks_has_numpys_result_dtype(name):
    loops, nin = SURFACE["ufuncs"][name], getattr(strict, name).nin
    numbers = {int: 1, float: 1.0, complex: 1j}
    for kinds in itertools.product([*map(np.dtype, "bBhHiIlLefdFD"), *numbers], repeat=nin):
        if set(kinds) <= set(numbers):  # no array among them
            continue
        operands = [numbers[kind] if kind in numbers else np.ones(1, kind) for kind in kinds]
        assert np.dtype(strict_cupy._loop(loops, kinds)) == getattr(np, name)(*operands).dtype, kinds


def test_constants_and_dtypes_are_numpys_own_objects():
    assert strict.float32 is np.float32
    assert strict.pi == math.pi
    assert strict.newaxis is None


def test_integers_wrap_around_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        top = strict.full((), 0xFFFFFFFF, dtype="u4")
        assert int(top * top + top) == 0


def test_division_by_zero_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isinf(float(strict.ones(()) / 0.0))


# --- calls that CuPy refuses --------------------------------------------------------------------------------

REJECTED = {
    "np.asarray": (lambda cp, x: np.asarray(x), TypeError, "Implicit conversion"),
    "np.ascontiguousarray": (lambda cp, x: np.ascontiguousarray(x), TypeError, "Implicit conversion"),
    "+ NumPy array": (lambda cp, x: x + np.ones(4), TypeError, "Unsupported type"),
    "NumPy array +": (lambda cp, x: np.ones(4) + x, TypeError, "Unsupported type"),
    "@ NumPy array": (lambda cp, x: x @ np.ones(4), TypeError, "cupy.ndarray"),
    "NumPy array += ": (lambda cp, x: operator.iadd(np.ones((3, 4)), x), TypeError, "Unsupported type"),
    "+ list": (lambda cp, x: x + [1.0] * 4, TypeError, "Unsupported type"),
    "== None": (lambda cp, x: x == None, TypeError, "Unsupported type"),  # noqa: E711
    "exp of a NumPy array": (lambda cp, x: cp.exp(np.ones(4)), TypeError, "Unsupported type"),
    "exp of a list": (lambda cp, x: cp.exp([1.0, 2.0]), TypeError, "Unsupported type"),
    "sum of a NumPy array": (lambda cp, x: cp.sum(np.ones(4)), TypeError, "not a cupy.ndarray"),
    "sum of a list": (lambda cp, x: cp.sum([1.0, 2.0]), TypeError, "not a cupy.ndarray"),
    "concatenate with a NumPy array": (lambda cp, x: cp.concatenate([x, np.ones((3, 4))]), TypeError, "tup"),
    "out= a NumPy array": (lambda cp, x: cp.exp(x, out=np.ones((3, 4))), TypeError, "Unsupported type"),
    "matmul out= a NumPy array": (
        lambda cp, x: cp.matmul(x, x.T, out=np.ones((3, 3))),
        TypeError,
        "Unsupported",
    ),
    "x[...] = NumPy array": (lambda cp, x: operator.setitem(x, ..., np.ones(4)), ValueError, "non-scalar"),
    "x[0] = list": (lambda cp, x: operator.setitem(x, 0, [1.0] * 4), TypeError, "Unsupported type"),
    "fill with a NumPy array": (lambda cp, x: x.fill(np.ones(4)), ValueError, "non-scalar"),
    "x[NumPy array]": (lambda cp, x: x[np.array([0, 1])], TypeError, "index"),
    "x[list]": (lambda cp, x: x[[0, 1]], TypeError, "index"),
    "take a list": (lambda cp, x: x.take([0, 1]), TypeError, "indices"),
    "x[: 0-d array]": (lambda cp, x: x[: cp.asarray(2)], TypeError, "slice indices"),
    "range(0-d array)": (lambda cp, x: range(cp.asarray(2)), TypeError, "interpreted as an integer"),
    "two masks": (lambda cp, x: x[cp.ones(3, bool), cp.ones(4, bool)], ValueError, "one boolean array"),
    "sum where=": (lambda cp, x: x.sum(where=x > 0), TypeError, "where"),
    "cupy.sum where=": (lambda cp, x: cp.sum(x, where=x > 0), TypeError, "where"),
    "np.sum where=": (lambda cp, x: np.sum(x, where=x > 0), TypeError, "where"),
    "max initial=": (lambda cp, x: x.max(initial=0.0), TypeError, "initial"),
    "var correction=": (lambda cp, x: x.var(correction=1), TypeError, "correction"),
    "count_nonzero keepdims=": (lambda cp, x: cp.count_nonzero(x, keepdims=True), TypeError, "keepdims"),
    "exp where=": (lambda cp, x: cp.exp(x, where=x > 0), TypeError, "Wrong arguments"),
    "np.exp where=": (lambda cp, x: np.exp(x, where=x > 0), TypeError, "Wrong arguments"),
    "exp subok=": (lambda cp, x: cp.exp(x, subok=True), TypeError, "Wrong arguments"),
    "einsum out=": (lambda cp, x: cp.einsum("ij->i", x, out=cp.zeros(3)), TypeError, "out"),
    "clip by name": (lambda cp, x: cp.clip(x, min=-1, max=1), TypeError, "min"),
    "clip with one bound": (lambda cp, x: cp.clip(x, -1), TypeError, "a_max"),
    "reshape by name": (lambda cp, x: cp.reshape(x, shape=(12,)), TypeError, "shape"),
    "stack by name": (lambda cp, x: cp.stack(arrays=[x, x]), TypeError, "tup"),
    "zeros device=": (lambda cp, x: cp.zeros(3, device="cpu"), TypeError, "device"),
    "sort stable=": (lambda cp, x: cp.sort(x, stable=True), TypeError, "stable"),
    "maximum.reduce": (lambda cp, x: cp.maximum.reduce(x), NotImplementedError, "maximum.reduce"),
    "maximum.accumulate": (lambda cp, x: cp.maximum.accumulate(x), NotImplementedError, "accumulate"),
    "multiply.at": (lambda cp, x: cp.multiply.at(x, 0, 2.0), NotImplementedError, "multiply.at"),
    "subtract.at of floats": (lambda cp, x: cp.subtract.at(x, 0, 2.0), TypeError, "no atomics"),
    "np.add.reduce": (lambda cp, x: np.add.reduce(x), TypeError, "returned NotImplemented"),
    "np.vecdot": (lambda cp, x: np.vecdot(x, x), TypeError, "returned NotImplemented"),
    "np.insert": (lambda cp, x: np.insert(x, 0, 1.0), TypeError, "no implementation found"),
    "errstate": (lambda cp, x: cp.errstate(all="ignore"), AttributeError, "errstate"),
    "vecdot": (lambda cp, x: cp.vecdot(x, x), AttributeError, "vecdot"),
    "erf": (lambda cp, x: cp.erf(x), AttributeError, "erf"),
    "linalg.vector_norm": (lambda cp, x: cp.linalg.vector_norm(x), AttributeError, "vector_norm"),
    "setflags": (lambda cp, x: x.setflags(write=False), AttributeError, "setflags"),
    "flags.writeable = False": (
        lambda cp, x: setattr(x.flags, "writeable", False),
        AttributeError,
        "writeable",
    ),
    "ctypes": (lambda cp, x: x.ctypes, AttributeError, "ctypes"),
    "an attribute of one's own": (lambda cp, x: setattr(x, "name", "x"), AttributeError, "name"),
    "hash": (lambda cp, x: hash(x), TypeError, "unhashable"),
    "random.Generator.normal": (lambda cp, x: cp.random.default_rng(0).normal(), AttributeError, "normal"),
    "random.Generator.shuffle": (
        lambda cp, x: cp.random.default_rng(0).shuffle(x),
        AttributeError,
        "shuffle",
    ),
    "random.SeedSequence": (lambda cp, x: cp.random.SeedSequence(0), AttributeError, "SeedSequence"),
    "a loop that is missing": (lambda cp, x: cp.logical_not(x * 1j), TypeError, "Wrong type"),
    "complex into float": (lambda cp, x: operator.iadd(x, 1j), TypeError, "Cannot cast"),
    "an object array": (lambda cp, x: cp.asarray([None]), ValueError, "Unsupported dtype"),
    "a big-endian array": (lambda cp, x: cp.asarray(np.ones(3, ">f4")), ValueError, "Unsupported dtype"),
    "longdouble": (lambda cp, x: x * np.longdouble(2), TypeError, "returned NotImplemented|Unsupported type"),
    "an enormous number": (lambda cp, x: cp.ones(3, "u4") * 2**32, OverflowError, "out of bounds"),
}


@pytest.mark.parametrize(("call", "error", "message"), REJECTED.values(), ids=REJECTED.keys())
def test_rejected_call_raises(call, error, message):
    x = strict.asarray(np.linspace(-1, 1, 12, dtype="f4").reshape(3, 4))
    with pytest.raises(error, match=message):
        call(strict, x)


STRICTER = {
    "an index out of range": (lambda cp, a: a[cp.asarray([0, 9])], IndexError, "out of bounds"),
    "a store out of range": (
        lambda cp, a: operator.setitem(a, cp.asarray([9]), 1.0),
        IndexError,
        "out of bounds",
    ),
    "a store through a repeated index": (
        lambda cp, a: operator.setitem(a, cp.asarray([1, 1]), cp.asarray([3.0, 4.0])),
        ValueError,
        "repeats",
    ),
    "an overlapping block copy": (
        lambda cp, a: operator.setitem(a, slice(1, None), a[:-1]),
        ValueError,
        "overlap",
    ),
    "copyto within an array": (lambda cp, a: cp.copyto(a[1:], a[:-1]), ValueError, "overlap"),
    "a shift by the width": (lambda cp, a: cp.arange(3, dtype="u4") >> 32, ValueError, "undefined"),
    "a negative shift": (lambda cp, a: cp.arange(3) << cp.asarray([0, -1, 2]), ValueError, "undefined"),
}


@pytest.mark.parametrize(("call", "error", "message"), STRICTER.values(), ids=STRICTER.keys())
def test_what_cupy_does_silently_wrong_raises(call, error, message):
    with pytest.raises(error, match=message):
        call(strict, strict.arange(6.0))


def test_a_number_may_be_stored_through_a_repeated_index():
    a = strict.zeros(3)
    a[strict.asarray([1, 1])] = 5.0
    assert a.tolist() == [0.0, 5.0, 0.0]


def test_memory_that_nobody_wrote_is_poisoned():
    assert np.isnan(strict.empty((2, 2)).get()).all()
    assert strict.empty_like(strict.arange(3)).min().item() > 2**40


def test_what_cupy_has_and_the_double_lacks_is_named_as_a_gap():
    with pytest.raises(strict_cupy.NotEmulated, match=r"cupy\.fft"):
        _ = strict.fft


# --- memory -------------------------------------------------------------------------------------------------

VIEWS = {
    "slice": lambda a: a[1:],
    "row": lambda a: a[0],
    "element": lambda a: a[0, 1],
    "reshape": lambda a: a.reshape(-1),
    "ravel": lambda a: a.ravel(),
    "swapaxes": lambda a: a.swapaxes(0, 1),
    "T": lambda a: a.T,
    "mT": lambda a: a.mT,
    "newaxis": lambda a: a[:, None],
    "view": lambda a: a.view("i8"),
    "real": lambda a: a.real,
    "split": lambda a: strict.split(a, 2, axis=1)[1],
    "iteration": lambda a: next(iter(a)),
    "squeeze": lambda a: strict.squeeze(a[None]),
    "asarray": lambda a: strict.asarray(a),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_writing_a_view_in_place_changes_its_base(view):
    a = strict.ones((2, 4))
    part = view(a)
    part *= 3
    assert (a != 1).sum().item() == part.size


COPIES = {
    "copy": lambda a: a.copy(),
    "copy.copy": lambda a: copy.copy(a),
    "deepcopy": lambda a: copy.deepcopy(a),
    "pickle": lambda a: pickle.loads(pickle.dumps(a)),
    "fancy index": lambda a: a[strict.arange(2)],
    "0-d index": lambda a: a[strict.asarray(1)],
    "reshape of a transposed view": lambda a: a.T.reshape(-1),
    "astype": lambda a: a.astype(a.dtype),
    "array": lambda a: strict.array(a),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES.keys())
def test_writing_a_copy_leaves_the_original(duplicate):
    a = strict.ones((2, 4))
    part = duplicate(a)
    part += 1
    assert (a == 1).all()


@pytest.mark.parametrize("symbol", ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"])
def test_in_place_operator_returns_the_same_array_changed(symbol):
    host = np.linspace(1, 2, 6)
    a = kept = strict.asarray(host)
    a = getattr(operator, f"i{symbol}")(a, 1.5)
    assert a is kept
    assert bits(a) == bits(getattr(operator, symbol)(host, 1.5))


@pytest.mark.parametrize("symbol", ["and", "or", "xor", "lshift", "rshift"])
def test_in_place_bit_operator_returns_the_same_array_changed(symbol):
    host = np.arange(6, dtype="u4")
    a = kept = strict.asarray(host)
    a = getattr(operator, f"i{symbol}")(a, 3)
    assert a is kept
    assert bits(a) == bits(getattr(operator, f"__{symbol}__")(host, 3))


def test_in_place_matmul_makes_a_new_array():
    a = before = strict.ones((2, 2))
    a @= strict.ones((2, 2))
    assert a is not before
    assert before.sum().item() == 4


def test_complex_parts_are_views_that_can_be_written():
    z = strict.zeros(3, "c16")
    z.real, z.imag = 1.0, strict.arange(3.0)
    z.imag[1:] += 1
    assert z.tolist() == [1, 1 + 2j, 1 + 3j]


OUTPUTS = {
    "ufunc": lambda cp, x, out: cp.exp(x, out=out),
    "np ufunc": lambda cp, x, out: np.exp(x, out=out),
    "matmul": lambda cp, x, out: cp.matmul(x, x, out=out),
    "np matmul": lambda cp, x, out: np.matmul(x, x, out=out),
    "cumsum": lambda cp, x, out: cp.cumsum(x, axis=0, out=out),
    "method": lambda cp, x, out: x.clip(0, 1, out=out),
    "concatenate": lambda cp, x, out: cp.concatenate([x[:1], x[1:]], out=out),
}


@pytest.mark.parametrize("call", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_out_is_returned_itself(call):
    x, out = strict.ones((2, 2)), strict.empty((2, 2))
    assert call(strict, x, out) is out
    assert not strict.isnan(out).any()


def test_astype_without_copy_returns_the_same_array():
    x = strict.ones(3, "f4")
    assert x.astype("f4", copy=False) is x


def test_asarray_copies_host_memory():
    host = np.zeros(3)
    x = strict.asarray(host)
    host += 1
    assert x.sum().item() == 0


def test_get_copies_device_memory():
    x = strict.zeros(3)
    x.get()[...] = 1
    assert x.sum().item() == 0


def test_get_writes_into_out():
    out = np.empty(3)
    assert strict.arange(3.0).get(out=out) is out
    assert out.tolist() == [0, 1, 2]


def test_set_writes_a_host_array_into_the_device_array():
    x = strict.zeros(3)
    x[1:].set(np.array([4.0, 5.0]))
    assert x.tolist() == [0, 4, 5]


def test_data_pointer_tells_where_a_view_begins():
    x = strict.zeros(4, "f4")
    assert x[1:].data.ptr == x.data.ptr + 4


def test_flags_tell_layout_and_nothing_else():
    flags = strict.zeros((2, 3)).T.flags
    assert (flags.c_contiguous, flags["F_CONTIGUOUS"], flags.fnc) == (False, True, True)
    assert {name for name in dir(flags) if not name.startswith("_")} == set(SURFACE["flags"])


# --- synchronisation ----------------------------------------------------------------------------------------

SYNCS = {
    "float": (lambda cp, x: float(x[0, 0]), "float"),
    "int": (lambda cp, x: int(x[0, 0]), "int"),
    "complex": (lambda cp, x: complex(x[0, 0]), "complex"),
    "bool": (lambda cp, x: bool(x[0, 0]), "bool"),
    "if": (lambda cp, x: 1 if (x > 0).any() else 0, "bool"),
    "math.sqrt": (lambda cp, x: math.sqrt(x[0, 0]), "float"),
    "item": (lambda cp, x: x[0, 0].item(), "item"),
    "tolist": (lambda cp, x: x.tolist(), "tolist"),
    "tobytes": (lambda cp, x: x.tobytes(), "tobytes"),
    "get": (lambda cp, x: x.get(), "get"),
    "asnumpy": (lambda cp, x: cp.asnumpy(x), "asnumpy"),
    "mask": (lambda cp, x: x[x > 0], "boolean mask"),
    "store through a mask": (lambda cp, x: operator.setitem(x, x > 0, 0.0), "boolean mask"),
    "nonzero": (lambda cp, x: cp.nonzero(x), "nonzero"),
    "nonzero method": (lambda cp, x: x.nonzero(), "nonzero"),
    "where alone": (lambda cp, x: cp.where(x > 0), "where"),
    "argwhere": (lambda cp, x: cp.argwhere(x), "argwhere"),
    "unique": (lambda cp, x: cp.unique(x), "unique"),
    "bincount": (lambda cp, x: cp.bincount(cp.arange(3)), "bincount"),
    "repr": (lambda cp, x: repr(x), "print"),
    "str": (lambda cp, x: str(x), "print"),
    "format": (lambda cp, x: f"{x[0, 0]:.3f}", "print"),
    "stream": (lambda cp, x: cp.cuda.get_current_stream().synchronize(), "Stream.synchronize"),
    "device": (lambda cp, x: cp.cuda.Device().synchronize(), "Device.synchronize"),
}


@pytest.mark.parametrize(("call", "kind"), SYNCS.values(), ids=SYNCS.keys())
def test_synchronisation_is_counted_once_by_its_kind(call, kind):
    x = strict.ones((2, 2))
    with count_syncs() as syncs:
        call(strict, x)
    assert [sync.kind for sync in syncs] == [kind]


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted_call_does_not_synchronise(call):
    arrays = sample(strict)
    with count_syncs() as syncs:
        call(strict, *arrays)
    assert syncs == []


def test_synchronisation_names_the_line_that_asked_for_it():
    with count_syncs() as syncs:
        float(strict.ones(()))
    line = test_synchronisation_names_the_line_that_asked_for_it.__code__.co_firstlineno + 2
    assert syncs[0].where == f"test_strict_cupy.py:{line}"


def test_counters_nest_and_the_module_keeps_them_all():
    strict.syncs.clear()
    with count_syncs() as outer:
        strict.ones(()).item()
        with count_syncs() as inner:
            strict.ones(()).item()
    strict.ones(()).item()
    assert (len(inner), len(outer), len(strict.syncs)) == (1, 2, 3)


# --- the module ---------------------------------------------------------------------------------------------


def test_import_cupy_finds_the_double(cupy):
    import cupy as imported
    import cupy.linalg as linalg

    assert imported is cupy is strict
    assert linalg is strict.linalg


def test_import_cupy_is_as_before_outside_the_block(monkeypatch):
    before = types.ModuleType("cupy")
    monkeypatch.setitem(sys.modules, "cupy", before)
    monkeypatch.delitem(sys.modules, "cupy.linalg", raising=False)
    with strict_cupy.installed():
        assert sys.modules["cupy"] is strict
    assert sys.modules["cupy"] is before
    assert "cupy.linalg" not in sys.modules


def test_import_cupyx_fails_even_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupyx", types.ModuleType("cupyx"))
    with strict_cupy.installed(), pytest.raises(ImportError):
        import cupyx  # noqa: F401


def test_arrays_say_that_they_are_cupys(cupy):
    x = cupy.ones(3)
    assert (type(x).__module__, type(x).__qualname__) == ("cupy", "ndarray")
    assert isinstance(x, cupy.ndarray)
    assert not isinstance(x, np.ndarray)


def test_get_array_module_tells_arrays_apart(cupy):
    assert cupy.get_array_module(cupy.ones(3)) is cupy
    assert cupy.get_array_module(np.ones(3)) is np


def test_a_device_is_available(cupy):
    assert cupy.cuda.is_available() is True
    assert cupy.cuda.runtime.getDeviceCount() == 1


def test_generator_draws_repeat_for_a_seed():
    draws = [strict.random.default_rng(3).random((2, 3), dtype="f4") for _ in range(2)]
    assert bits(draws[0]) == bits(draws[1])
    assert draws[0].dtype == np.float32


def test_generator_draw_without_size_stays_on_the_device():
    assert strict.random.default_rng(0).standard_normal(dtype="f4").dtype == np.float32


def test_generator_uniform_takes_a_dtype():
    assert strict.random.default_rng(0).uniform(-1, 1, 5, dtype="f4").dtype == np.float32


def test_cuda_kernel_runs_the_function_that_stands_in_for_it(monkeypatch):
    monkeypatch.setattr(strict_cupy, "_emulations", {})
    strict_cupy.emulate("saxpy")(lambda a, x, y: a * x + y)
    kernel = strict.ElementwiseKernel("T a, T x, T y", "T z", "z = a * x + y", "saxpy")
    x, z = strict.arange(3.0), strict.empty(3)
    assert kernel(2.0, x, x, z) is z
    assert kernel(2.0, x, x).tolist() == z.tolist() == [0, 3, 6]


def test_raw_cuda_kernel_writes_into_its_arguments(monkeypatch):
    monkeypatch.setattr(strict_cupy, "_emulations", {})
    strict_cupy.emulate("twice")(lambda grid, block, x, y: np.multiply(x, 2, out=y))
    x, y = strict.arange(3.0), strict.empty(3)
    strict.RawKernel("__global__ void twice(...) {}", "twice")((1,), (32,), (x, y))
    assert y.tolist() == [0, 2, 4]


def test_cuda_kernel_without_a_stand_in_is_named_as_a_gap():
    kernel = strict.ElementwiseKernel("T x", "T y", "y = x", "nobody_emulates_this")
    with pytest.raises(strict_cupy.NotEmulated, match="nobody_emulates_this"):
        kernel(strict.ones(3))


def test_base_is_the_array_that_owns_the_memory():
    owner = strict.ones((4, 6))
    assert owner.base is None
    assert owner[1:].reshape(6, 3).T.base is owner
    assert owner[1:].copy().base is None


# --- the frozen surface -------------------------------------------------------------------------------------


def test_double_offers_no_attribute_of_arrays_that_cupy_lacks():
    public = {name for name in dir(strict.ndarray) if not name.startswith("_")}
    assert public == {*SURFACE["ndarray"], *SURFACE["attributes"]} - {"cstruct", "flat"}


def test_double_offers_no_operator_that_cupy_lacks():
    own = {name for name, item in vars(strict.ndarray).items() if name.startswith("__") and callable(item)}
    assert own - set(dir(object)) - {"__getattr__"} <= set(SURFACE["operators"])


def test_double_offers_no_function_that_cupy_lacks():
    known = {name for part in ("functions", "ufuncs", "same", "others") for name in SURFACE[part]}
    own = {name for name in vars(strict_cupy._cupy()) if not name.startswith("_")}
    assert own <= known


def test_double_offers_no_function_of_the_runtime_that_cupy_lacks():
    assert vars(strict.cuda.runtime).keys() <= set(SURFACE["runtime"])


def test_double_offers_no_generator_method_that_cupy_lacks():
    public = {name for name in dir(strict.random.Generator) if not name.startswith("_")}
    assert public == set(SURFACE["Generator"])


def entries(surface: dict) -> dict:
    """A surface as one flat dictionary, (section, name) to signature or loops."""
    sections = {name: part for name, part in surface.items() if name != "versions"}
    items = ((s, n, part[n] if isinstance(part, dict) else "") for s, part in sections.items() for n in part)
    return {(section, name): text for section, name, text in items}


def used_by_the_package() -> tuple[set, set]:
    """What vitnp names, as (owner, attribute): ("xp", "sum"); what it passes, as (function, keyword)."""
    names, keywords = set(), set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
                names.add(("xp" if owner in ("np", "cupy") else owner, node.attr))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                keywords |= {(node.func.attr, keyword.arg) for keyword in node.keywords}
    return names, keywords


@pytest.fixture(scope="module")
def installed_surface():
    """The surface of the real CuPy."""
    pytest.importorskip("cupy", reason="compares with the real CuPy, which is not installed")
    from freeze_cupy_surface import surface

    return surface()


def test_frozen_surface_equals_that_of_the_installed_cupy(installed_surface):
    if installed_surface["versions"] != SURFACE["versions"]:
        pytest.skip(f"frozen from {SURFACE['versions']}, installed is {installed_surface['versions']}")
    frozen, installed = entries(SURFACE), entries(installed_surface)
    changed = {key for key in frozen.keys() | installed.keys() if frozen.get(key) != installed.get(key)}
    assert {key: (frozen.get(key), installed.get(key)) for key in changed} == {}


def test_installed_cupy_of_any_version_has_what_the_package_uses(installed_surface):
    names, keywords = used_by_the_package()
    of_modules = dict.fromkeys(("functions", "ufuncs", "same", "others"), "xp")
    of_modules |= {part: part for part in ("linalg", "random", "cuda", "runtime", "flags")}
    anything = {name for _, name in names}
    installed, lost = entries(installed_surface), []
    for (section, name), text in entries(SURFACE).items():
        used = (of_modules[section], name) in names if section in of_modules else name in anything
        passed = [word for function, word in keywords if function == name and f"{word}=" in text]
        there = installed.get((section, name))
        takes_them = there is not None and ("**" in there or all(f"{word}=" in there for word in passed))
        if used and not takes_them:
            lost.append((section, name, text, there))
    assert lost == []


# --- in use -------------------------------------------------------------------------------------------------


def transformer_step(xp):
    """Attention over normalised tokens and one Adam step on its projection, as a layer would write them."""
    rng = np.random.default_rng(7)
    x, w = (xp.asarray(rng.standard_normal(shape).astype("f4")) for shape in [(2, 5, 8), (8, 24)])
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / xp.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)
    x_hat = xp.multiply(centred, rstd, out=centred)
    qkv = (x_hat.reshape(-1, 8) @ w).reshape(2, 5, 3, 2, 4)
    q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))  # (B, H, N, K)
    scores = xp.matmul(q, k.swapaxes(-1, -2)) * 4**-0.5
    scores -= scores.max(-1, keepdims=True)
    probs = np.exp(scores, out=scores)
    probs /= probs.sum(-1, keepdims=True)
    heads = (probs @ v).swapaxes(1, 2).reshape(2, 5, 8)
    dw = x_hat.reshape(-1, 8).T @ xp.concatenate([heads, heads, heads], -1).reshape(-1, 24)
    m, s = xp.zeros_like(w), xp.zeros_like(w)
    m += (1 - 0.9) * (dw - m)
    s += (1 - 0.999) * (dw * dw - s)
    w[:4] -= (1e-3 * m / (xp.sqrt(s) + 1e-8))[:4]
    return heads, w


def test_transformer_step_equals_numpys_bit_for_bit():
    assert [bits(x) for x in transformer_step(strict)] == [bits(x) for x in transformer_step(np)]


def test_transformer_step_does_not_synchronise():
    with count_syncs() as syncs:
        transformer_step(strict)
    assert syncs == []
