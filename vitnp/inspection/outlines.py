"""Arrays without numbers: a pass over them finds every shape, and costs neither memory nor arithmetic.

An `Outline` has the shape, dtype and strides of an array, and knows whose memory it would be. Layers are given outlines
in the place of their input and of their parameters and run as they are: `array_module(x)` is then an
`OutlineFunctions`, which has NumPy's functions under their names and counts the operations of matrix products. So what
is counted is what forward does, not what somebody wrote down about it.

What there is no rule for raises UnknownOperation, and numbers are asked for in vain: TypeError.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import DTypeLike

Shape = tuple[int, ...]


class UnknownOperation(AttributeError):
    """A pass without numbers came to an operation whose result's shape it has no rule for."""


def _unknown(what: str) -> UnknownOperation:
    return UnknownOperation(f"{what} has no rule for arrays without numbers: add one in vitnp/inspection/outlines.py")


class Outline(NDArrayOperatorsMixin):
    """An array of which only the outside exists.

    Attributes:
        xp: the functions for it.
        shape, dtype, strides: as an array has them, strides in elements.
        base: the outline that owns the memory; None for one that owns its own, as every result of a computation does.
        is_ones: all elements are 1, so that a matrix product with it is a sum.
    """

    is_ones = False

    def __init__(
        self,
        xp: OutlineFunctions,
        shape: Shape,
        dtype: DTypeLike,
        strides: Shape | None = None,
        base: Outline | None = None,
    ) -> None:
        self.xp, self.shape, self.dtype = xp, tuple(map(int, shape)), np.dtype(dtype)
        self.strides = _contiguous(self.shape) if strides is None else strides
        self.base = base

    def __repr__(self) -> str:
        return f"Outline({self.shape}, {self.dtype})"

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements there would be."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    # -- views of the same memory -----------------------------------------------------------------------------------

    def _view(self, shape: Shape, strides: Shape) -> Outline:
        return Outline(self.xp, shape, self.dtype, strides, self if self.base is None else self.base)

    def reshape(self, *shape: Any) -> Outline:
        """Another shape: of the same memory where strides allow it, as NumPy does, else a copy."""
        asked = shape[0] if isinstance(shape[0], tuple) else shape
        new = tuple(self.size // -math.prod(asked) if side == -1 else side for side in asked)
        if math.prod(new) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {new}")
        strides = _reshaped_strides(self.shape, self.strides, new)
        return self.xp.empty(new, self.dtype) if strides is None else self._view(new, strides)

    def transpose(self, *axes: int) -> Outline:
        """The axes in this order; in the opposite one unless said."""
        order = axes or range(self.ndim)[::-1]
        return self._view(tuple(self.shape[i] for i in order), tuple(self.strides[i] for i in order))

    @property
    def T(self) -> Outline:
        """The axes in the opposite order."""
        return self.transpose()

    def swapaxes(self, a: int, b: int) -> Outline:
        """These two axes in each other's place."""
        order = list(range(self.ndim))
        order[a], order[b] = order[b], order[a]
        return self.transpose(*order)

    @property
    def real(self) -> Outline:
        """The real part: of complex numbers, every other number in the same memory."""
        part = self._view(self.shape, tuple(stride * (1 + (self.dtype.kind == "c")) for stride in self.strides))
        part.dtype = np.empty((), self.dtype).real.dtype
        return part

    def __getitem__(self, key: Any) -> Outline:
        keys = key if isinstance(key, tuple) else (key,)
        if all(isinstance(item, Outline) for item in keys):
            return self._gathered(keys)
        given = sum(item is not None and item is not Ellipsis for item in keys)
        if given > self.ndim:
            raise IndexError(f"{given} indices for {self.ndim} axes")
        whole = (slice(None),) * (self.ndim - given)
        at = next((i for i, item in enumerate(keys) if item is Ellipsis), len(keys))
        axes, shape, strides = iter(zip(self.shape, self.strides, strict=True)), [], []
        for item in (*keys[:at], *whole, *keys[at + 1 :]):
            if item is None:
                shape.append(1)
                strides.append(0)
                continue
            side, stride = next(axes)
            if isinstance(item, slice):
                start, stop, step = item.indices(side)
                shape.append(len(range(start, stop, step)))
                strides.append(stride * step)
            elif not isinstance(item, int):
                raise _unknown(f"indexing with {type(item).__name__}")
            elif not -side <= item < side:
                raise IndexError(f"index {item} is out of bounds for an axis of {side}")
        return self._view(tuple(shape), tuple(strides))

    def _gathered(self, keys: tuple[Outline, ...]) -> Outline:
        """What stands at places that are given by arrays of integers, one for each of the first axes: a copy."""
        if any(key.dtype.kind not in "iu" for key in keys):
            raise _unknown("indexing with a mask")
        places = np.broadcast_shapes(*(key.shape for key in keys))
        return self.xp.empty((*places, *self.shape[len(keys) :]), self.dtype)

    # -- writing, which leaves no trace -----------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        self.xp.check_fits(np.shape(value), self[key].shape)

    def fill(self, value: Any) -> None:
        """Do nothing, where an array would set its elements."""

    # -- results that own their memory ------------------------------------------------------------------------------

    def copy(self) -> Outline:
        """The same shape in memory of its own."""
        return self.xp.empty(self.shape, self.dtype)

    def astype(self, dtype: DTypeLike, copy: bool = True) -> Outline:
        """The same shape in another dtype."""
        return self if not copy and self.dtype == dtype else self.xp.empty(self.shape, dtype)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Outline:
        """The shape of sums over an axis, some axes or all."""
        return self._reduced("sum", axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Outline:
        """The shape of means over an axis, some axes or all."""
        return self._reduced("mean", axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Outline:
        """The shape of maxima over an axis, some axes or all."""
        return self._reduced("max", axis, keepdims)

    def argsort(self, axis: int = -1) -> Outline:
        """The shape of the order of elements along an axis."""
        return self.xp.empty(self.shape, "int64")

    def _reduced(self, name: str, axis: Any, keepdims: bool) -> Outline:
        axes = range(self.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        gone = {range(self.ndim)[i] for i in axes}
        sides = ((1 if i in gone else side) for i, side in enumerate(self.shape) if keepdims or i not in gone)
        return self.xp.empty(tuple(sides), getattr(np.ones((), self.dtype), name)().dtype)

    # -- how NumPy meets an outline ---------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *operands: Any, **options: Any) -> Outline:
        if method != "__call__":
            raise _unknown(f"np.{ufunc.__name__}.{method}")
        (out,) = options.pop("out", (None,))
        return self.xp.apply(ufunc, *operands, out=out, **options)

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("an Outline has no numbers: take functions from array_module(x), not from numpy")

    def __bool__(self) -> bool:
        raise TypeError("an Outline has no numbers, so nothing can depend on their values")

    def __getattr__(self, name: str) -> Any:
        raise _unknown(f"the attribute {name} of an array")


class OutlineFunctions:
    """What `array_module` says of outlines: NumPy's functions, computing shapes.

    Attributes:
        flops: operations of the matrix products so far: a product (m, k) @ (k, n) has m k n multiplications and as
            many additions. What is done element by element is not counted, nor are sums, which some layers write as
            products with ones.
    """

    def __init__(self) -> None:
        self.flops = 0

    def empty(self, shape: int | Shape, dtype: DTypeLike = "float64") -> Outline:
        """A new array."""
        return Outline(self, shape if isinstance(shape, tuple) else (shape,), dtype)

    zeros = empty

    def ones(self, shape: int | Shape, dtype: DTypeLike = "float64") -> Outline:
        """A new array of ones."""
        y = self.empty(shape, dtype)
        y.is_ones = True
        return y

    def zeros_like(self, x: Outline) -> Outline:
        """A new array of the same shape and dtype."""
        return x.copy()

    def arange(self, *bounds: int, dtype: DTypeLike = "int64") -> Outline:
        """The integers of a range."""
        return self.empty(len(range(*bounds)), dtype)

    def linspace(self, start: float, stop: float, count: int) -> Outline:
        """So many numbers from one to another."""
        return self.empty(count, np.result_type(start, stop, 0.0))

    def asarray(self, x: Any) -> Any:
        """The array itself: one that has numbers may stay as it is, among outlines."""
        return x

    def take(self, x: Any, index: Outline) -> Outline:
        """Elements of x, read as a vector, one for each of `index`."""
        return self.empty(index.shape, x.dtype)

    def concatenate(self, parts: Sequence[Any], axis: int = 0) -> Outline:
        """One after the other along an axis."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.empty(tuple(shape), np.result_type(*(part.dtype for part in parts)))

    def hstack(self, parts: Sequence[Any]) -> Outline:
        """Matrices side by side."""
        return self.concatenate(parts, 1)

    def repeat(self, x: Outline, times: int, axis: int) -> Outline:
        """Every element so often, one copy beside the other."""
        return self.concatenate([x] * times, axis)

    def tile(self, x: Outline, times: Shape) -> Outline:
        """The whole so often along each axis."""
        return self.empty(tuple(side * n for side, n in zip(x.shape, times, strict=True)), x.dtype)

    def broadcast_to(self, x: Outline, shape: Shape) -> Outline:
        """The same elements along new axes, and along those of one element: a view."""
        if np.broadcast_shapes(x.shape, shape) != tuple(shape):
            raise ValueError(f"cannot broadcast {x.shape} to {shape}")
        added = (0,) * (len(shape) - x.ndim)
        kept = tuple(stride * (side > 1) for side, stride in zip(x.shape, x.strides, strict=True))
        return x._view(tuple(shape), added + kept)

    def moveaxis(self, x: Outline, source: int, destination: int) -> Outline:
        """One axis in another place, the others in their order: a view."""
        order = list(range(x.ndim))
        order.insert(destination % x.ndim, order.pop(source))
        return x.transpose(*order)

    def where(self, condition: Any, a: Any, b: Any) -> Outline:
        """One or the other."""
        return self._elementwise(np.where, condition, a, b)

    def clip(self, x: Any, least: Any, most: Any) -> Outline:
        """Limited to both sides."""
        return self._elementwise(np.clip, x, least, most)

    def matmul(self, a: Any, b: Any, out: Outline | None = None) -> Outline:
        """The matrix product of the last two axes, whose operations it counts."""
        if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2]:
            raise ValueError(f"no matrix product of shapes {a.shape} and {b.shape}")
        many = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        shape = (*many, a.shape[-2], b.shape[-1])
        if not (getattr(a, "is_ones", False) or getattr(b, "is_ones", False)):
            self.flops += 2 * math.prod(shape) * a.shape[-1]
        return self._into(out, shape, np.result_type(a.dtype, b.dtype))

    def apply(self, ufunc: np.ufunc, *operands: Any, out: Outline | None = None, **options: Any) -> Outline:
        """An elementwise function of NumPy, or the matrix product, by the function itself."""
        if options:
            raise _unknown(f"{next(iter(options))} in np.{ufunc.__name__}")
        if ufunc is np.matmul:
            a, b = operands
            return self.matmul(a, b, out)
        if ufunc.signature is not None or ufunc.nout != 1:
            raise _unknown(f"np.{ufunc.__name__}")
        return self._elementwise(ufunc, *operands, out=out)

    def __getattr__(self, name: str) -> Callable[..., Outline]:
        function = getattr(np, name, None)
        if not isinstance(function, np.ufunc):
            raise _unknown(f"the function {name}")
        return functools.partial(self.apply, function)

    def _elementwise(self, function: Any, *operands: Any, out: Outline | None = None) -> Outline:
        shape = np.broadcast_shapes(*map(np.shape, operands))
        # The dtype is that of the same function of no elements; a plain number has none of its own to give.
        none = (np.empty(0, x.dtype) if hasattr(x, "dtype") else x for x in operands)
        return self._into(out, shape, function(*none).dtype)

    def _into(self, out: Outline | None, shape: Shape, dtype: DTypeLike) -> Outline:
        if out is None:
            return self.empty(shape, dtype)
        self.check_fits(shape, out.shape)
        return out

    def check_fits(self, shape: Shape, place: Shape) -> None:
        """Raise ValueError unless an array of `shape` can be written to a `place` of that shape."""
        if np.broadcast_shapes(shape, place) != place:
            raise ValueError(f"an array of shape {shape} does not fit into one of {place}")


def _contiguous(shape: Shape) -> Shape:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _reshaped_strides(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Return the strides with which the same memory has the shape `new`, or None if there are none.

    Neighbouring axes that run through memory without a break are one; each of those is then cut into new axes.
    """
    if 0 in shape:
        return _contiguous(new)
    runs: list[tuple[int, int]] = []  # (elements, stride of the last axis in it)
    for side, stride in zip(shape, strides, strict=True):
        if side == 1:
            continue
        if runs and runs[-1][1] == side * stride:
            runs[-1] = runs[-1][0] * side, stride
        else:
            runs.append((side, stride))
    found: list[int] = []
    for side in reversed(new):
        elements, stride = runs.pop() if runs else (1, 0)
        if elements % side:
            return None
        found.append(stride)
        if elements > side:
            runs.append((elements // side, stride * side))
    return tuple(reversed(found))
