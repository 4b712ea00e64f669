"""What a gradient check checks: a scalar function of named arrays, and the gradients that someone claims for them.

Whatever a user brings becomes one of these: a layer with an input, a model with images and labels, a loss, a function
of arrays with its gradients. A vector-valued function is multiplied with a random cotangent. The sum of its entries
would not do: errors cancel in it, and the gradient of a softmax is zero.

Before any derivative is taken, `claims` looks at how the functions behave: forward twice gives the same bits, backward
twice gives the same gradients, and neither writes into what it was given.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer
from vitnp.layers.attention import Attention
from vitnp.losses import softmax_cross_entropy
from vitnp.vit import VisionTransformer

# One seed gives each purpose a stream of its own. From default_rng(seed) itself people draw their inputs: a cotangent
# that equals the input would hide the mistakes of a normalisation, whose gradient is orthogonal to it.
COTANGENT, DIRECTIONS = 1, 2
NAMED = 6  # names that a message has room for


class Fault(Exception):
    """Something that no tolerance excuses: `verdict` names it, `where` has it, the text says what was seen."""

    def __init__(self, verdict: str, where: str, text: str) -> None:
        super().__init__(text)
        self.verdict, self.where = verdict, where


class Problem:
    """A scalar function of named arrays, in forward order, and the claimed gradients."""

    arrays: dict[str, Array]
    before: dict[str, Array]  # copies of them, from before anything was called
    batch: dict[str, int]  # sizes that a wrong factor may be named after
    upstream = 0.0  # the largest entry of the gradient that backward begins with
    here = math.nan  # the function's value
    evaluations = 0  # forwards so far

    def value(self, moved: Mapping[str, Array]) -> Any:
        """Return the function's value with some of its arrays replaced by others, all real or all complex."""
        raise NotImplementedError

    def claims(self) -> tuple[dict[str, Array], list[Fault]]:
        """Return the claimed gradient of each array, and what is wrong with how they were computed.

        There are no gradients where forward itself misbehaves, for then there is nothing to compare them with.
        """
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return sum(array.size for array in self.arrays.values())

    def take(self, arrays: Mapping[str, Any]) -> None:
        """Remember the arrays as they are; TypeError or ValueError for what cannot be differentiated by."""
        if not arrays:
            raise ValueError("there is no array to check; expected one at least")
        for name, array in arrays.items():
            check_array(name, array)
        self.arrays = dict(arrays)
        self.before = {name: array.copy() for name, array in arrays.items()}

    def check_untouched(self) -> list[Fault]:
        """Put back what was written into, which is a fault."""
        written = [name for name, array in self.arrays.items() if not _same(array, self.before[name])]
        for name in written:
            self.arrays[name][...] = self.before[name]
        return [_written(name) for name in written]

    def check_repeats(self, once: Any = None) -> list[Fault]:
        """Evaluate twice, or compare with `once`: other bits are a fault, and so is an array that has changed."""
        last = next(reversed(self.arrays))  # one array is enough, moved to where it is; a layer's last is the input
        unmoved = {last: self.arrays[last]}
        once = self.value(unmoved) if once is None else once
        again = self.value(unmoved)
        self.here = float(once.real)
        if faults := self.check_untouched():
            return faults
        if _same(once, again):
            return [] if math.isfinite(self.here) else [Fault("INCONCLUSIVE", "forward", _not_here(self.here))]
        text = f"two forwards gave {float(once.real):.9g} and {float(again.real):.9g}: hold its random numbers fixed"
        return [Fault("NONDETERMINISTIC", "forward", text)]

    def check_shapes(self, grads: Mapping[str, Any]) -> tuple[dict[str, Array], list[Fault]]:
        """Return the gradients that can be compared with something, and a fault for each that cannot."""
        good, faults = {}, []
        there = [name for name, grad in grads.items() if grad is not None]
        others = f"; there are {_some(there)}" if there else ", nor for anything else"
        for name, array in self.arrays.items():
            grad = grads.get(name)
            if grad is None:
                faults.append(Fault("MISSING", name, f"there is no gradient for it{others}"))
            elif grad.shape != array.shape:
                turned = grad.shape == array.shape[::-1]
                text = f"its gradient has shape {grad.shape}; expected {array.shape}"
                faults.append(Fault("SHAPE", name, text + (": it is transposed" if turned else "")))
            else:
                good[name] = grad
        return good, faults


class LayerProblem(Problem):
    """A layer with an input: the arrays are its parameters and the input, the function a loss of its output."""

    def __init__(
        self, layer: Layer, x: Array, labels: Any, smoothing: float, cotangent: Array | None, seed: int
    ) -> None:
        self.layer, self.smoothing, self.seed = layer, smoothing, seed
        self.take({**layer.parameters(), "input": x})
        if x.ndim == 0:
            raise ValueError("input has no axes; expected a batch, its samples along the first axis")
        self._twins = {"f": layer}
        self._ctx = Context(train=True, rng=seed, record=False)  # its step never moves on, so dropout repeats
        self.labels = targets_of(layer, labels, self._ctx)
        self.cotangent: Any = cotangent
        if labels is None and cotangent is None:
            self.cotangent = cotangent_for(layer.forward(x, self._new_pass()), None, seed)
        self.batch = {"B": len(x), **({"N": x.shape[1]} if x.ndim == 3 else {}), **_head_sizes(layer)}

    def _new_pass(self) -> Context:
        self._ctx.begin()
        self.evaluations += 1
        return self._ctx

    def claims(self) -> tuple[dict[str, Array], list[Fault]]:
        """As in the base; the second backward of a record must add the same gradients once more."""
        ctx, x = Context(train=True, rng=self.seed), self.arrays["input"]
        self.evaluations += 1
        y = self.layer.forward(x, ctx)
        if self.labels is None:
            self.cotangent = cotangent_for(y, self.cotangent, self.seed)
        loss, dy = self._loss(y)
        if faults := self.check_repeats(loss):  # what backward differentiates must be what differences see
            return {}, faults
        dy_before, self.upstream = dy.copy(), float(abs(dy).max())
        dx = _gradient("input", self.layer.backward(dy, ctx))
        grads = {name: grad.copy() for name, grad in self.layer.gradients(ctx).items()}
        grads |= {} if dx is None else {"input": dx}
        faults = self._check_reentrant(grads, dy, ctx)
        faults += self.check_untouched() + ([] if _same(dy, dy_before) else [_written("cotangent")])
        grads, wrong = self.check_shapes(grads)
        return grads, faults + wrong

    def _check_reentrant(self, grads: Mapping[str, Array], dy: Array, ctx: Context) -> list[Fault]:
        """A second backward of the same record must give the same gradients once more."""
        try:
            dx = self.layer.backward(dy, ctx)
        except Exception as error:  # whatever comes of what the first has thrown away
            return [Fault("NOT REENTRANT", "backward", f"a second backward of the same record raised {_raised(error)}")]
        again = {**self.layer.gradients(ctx), **({} if dx is None else {"input": 2 * dx})}
        return [
            Fault("NOT REENTRANT", name, "a second backward of the same record gave another gradient")
            for name, grad in grads.items()
            if name in again and grad.shape == again[name].shape and not _same(2 * grad, again[name])
        ]

    def _loss(self, y: Array) -> tuple[Any, Array]:
        """The loss of the layer's output, and its gradient, which backward may write into without harm."""
        if self.labels is None:
            return (y * self.cotangent).sum(), self.cotangent.copy()
        return softmax_cross_entropy(y, self.labels, self.smoothing)

    def value(self, moved: Mapping[str, Array]) -> Any:
        """The loss; parameters are replaced in place, in a copy of the layer where they are complex, and put back."""
        dtype = next(iter(moved.values())).dtype
        if dtype.kind not in self._twins:
            self._twins[dtype.kind] = self.layer.astype(dtype)
        twin = self._twins[dtype.kind]
        parameters = {name: array for name, array in twin.parameters().items() if name in moved}
        before = {name: array.copy() for name, array in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter[...] = moved[name]
            y = twin.forward(moved.get("input", self.arrays["input"]).astype(dtype), self._new_pass())
        finally:
            for name, parameter in parameters.items():
                parameter[...] = before[name]
        return self._loss(y)[0]


class LossProblem(Problem):
    """A loss that returns its value and its gradient: loss(x, labels) -> (value, dx)."""

    def __init__(self, loss: Callable[..., Any], x: Array, labels: Any) -> None:
        self.loss, self.labels = loss, labels
        self.take({"input": x})
        self.batch = {"B": len(x), **_lengths({"input": x}, first=1)} if x.ndim else {}
        self._call(x)

    def _call(self, x: Array) -> tuple[Any, Any]:
        self.evaluations += 1
        found = self.loss(x, self.labels)
        if not (isinstance(found, tuple | list) and len(found) == 2) or np.shape(found[0]) != ():
            raise TypeError(
                f"the loss returned {_kind(found)}; expected (value, gradient), the value a number: for a loss without "
                "its gradient pass gradcheck(loss, x, grads=...)"
            )
        return found[0], found[1]

    def value(self, moved: Mapping[str, Array]) -> Any:
        """The first of what the loss returns."""
        return self._call(moved.get("input", self.arrays["input"]))[0]

    def claims(self) -> tuple[dict[str, Array], list[Fault]]:
        """As in the base."""
        if faults := self.check_repeats():
            return {}, faults
        grad = _gradient("input", self._call(self.arrays["input"])[1])
        again = _gradient("input", self._call(self.arrays["input"])[1])
        if grad is not None and not _same(grad, again):
            faults.append(Fault("NOT REENTRANT", "input", "a second call gave another gradient"))
        faults += self.check_untouched()
        grads, wrong = self.check_shapes({"input": grad})
        return grads, faults + wrong


class FunctionProblem(Problem):
    """Any function of arrays, and its gradients: arrays, or a function that returns them."""

    def __init__(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, Array] | Sequence[Array],
        grads: Any,
        cotangent: Array | None,
        seed: int,
    ) -> None:
        if not callable(function):
            raise TypeError(f"the target is {_kind(function)}; expected a layer, or a function with grads=...")
        if grads is None:
            raise TypeError("a function comes with its gradients: gradcheck(f, arrays, grads=...)")
        self.function, self.grads = function, grads
        self._by_name = isinstance(arrays, Mapping)
        self.take(arrays if isinstance(arrays, Mapping) else dict(_named(function, arrays)))
        self.batch = _lengths(self.arrays)
        names = [f"{name}=..." for name in self.arrays] if self._by_name else list(self.arrays)
        _check_call(function, f"the function is called as f({', '.join(names)})", *self._arguments(self.arrays))
        y = self._call({})
        self.scalar = not getattr(y, "shape", ())
        if isinstance(y, complex) or getattr(getattr(y, "dtype", None), "kind", "") == "c":
            raise TypeError("the function returned complex numbers; expected real ones for real arrays")
        if self.scalar and cotangent is not None:
            raise ValueError("the function returns a number, which takes no cotangent: leave it out")
        if not self.scalar and not callable(grads):
            raise TypeError(
                f"the function returns an array {y.shape}, so its gradients depend on a cotangent: give them as a "
                "function, grads(dy, ...)"
            )
        self.cotangent = None if self.scalar else cotangent_for(y, cotangent, seed)
        if callable(grads):
            what, first = ("a number", []) if self.scalar else ("an array", ["dy"])
            text = f"the function returns {what}, so grads is called as grads({', '.join(first + names)})"
            positional, named = self._arguments(self.arrays)
            _check_call(grads, text, (*self._upstream(), *positional), named)

    def _arguments(self, arrays: Mapping[str, Array]) -> tuple[tuple[Array, ...], Mapping[str, Array]]:
        """Positional and named arguments of a call."""
        return ((), arrays) if self._by_name else (tuple(arrays.values()), {})

    def _upstream(self) -> tuple[Array, ...]:
        """A copy of the cotangent, if there is one: the argument before all others of `grads`."""
        return () if self.cotangent is None else (self.cotangent.copy(),)

    def _call(self, moved: Mapping[str, Array]) -> Any:
        self.evaluations += 1
        positional, named = self._arguments({**self.arrays, **moved})
        y = self.function(*positional, **named)
        if not isinstance(y, float | int | complex) and not hasattr(y, "dtype"):
            raise TypeError(f"the function returned {_kind(y)}; expected one array or number")
        return y

    def value(self, moved: Mapping[str, Array]) -> Any:
        """The function's value, or its product with the cotangent."""
        y = self._call(moved)
        return y if self.scalar else (y * self.cotangent).sum()

    def claims(self) -> tuple[dict[str, Array], list[Fault]]:
        """As in the base."""
        if faults := self.check_repeats():
            return {}, faults
        grads, impure = self._claimed()
        faults = self._check_reentrant(grads) if callable(self.grads) else []
        faults += self.check_untouched() + impure
        if extra := [name for name in grads if name not in self.arrays]:
            raise ValueError(f"there is a gradient for {extra[0]}, which is none of the arrays {_some(self.arrays)}")
        good, wrong = self.check_shapes(grads)
        return good, faults + wrong

    def _check_reentrant(self, grads: Mapping[str, Any]) -> list[Fault]:
        """A second call must give the same gradients."""
        try:
            again, _ = self._claimed()
        except Exception as error:  # whatever comes of what the first has thrown away
            return [Fault("NOT REENTRANT", "grads", f"a second call raised {_raised(error)}")]
        return [
            Fault("NOT REENTRANT", name, "a second call gave another gradient")
            for name, grad in grads.items()
            if name in again and not _same(grad, again[name])
        ]

    def _claimed(self) -> tuple[dict[str, Any], list[Fault]]:
        """The gradients by name, from arrays or from a function, which may return them by name or in order."""
        grads, faults = self.grads, list[Fault]()
        if callable(grads):
            upstream = self._upstream()
            positional, named = self._arguments(self.arrays)
            grads = grads(*upstream, *positional, **named)
            faults += [_written("cotangent") for dy in upstream if not _same(dy, self.cotangent)]
        if not isinstance(grads, Mapping):
            in_order = grads if isinstance(grads, tuple | list) else (grads,)
            if len(in_order) > len(self.arrays):
                raise ValueError(
                    f"there are {len(in_order)} gradients for {len(self.arrays)} arrays; expected one for each, as "
                    "arrays in a tuple or by name"
                )
            grads = dict(zip(self.arrays, in_order, strict=False))
        return {name: _gradient(name, grad) for name, grad in grads.items() if grad is not None}, faults


def is_array(thing: Any) -> bool:
    """Whether it is an array of NumPy or CuPy, and no matrix or masked array, which behave unlike one."""
    if array_module(thing) is not np:
        return True
    return isinstance(thing, np.ndarray | np.generic) and not isinstance(thing, np.matrix | np.ma.MaskedArray)


def check_array(name: str, array: Any) -> None:
    """Raise TypeError for what is no array of float64, ValueError for one that is empty or not finite."""
    if not is_array(array):
        raise TypeError(f"{name} is {_kind(array)}; expected an array, as np.asarray makes one")
    if array.dtype != np.float64:
        reason = ", for rounding in float32 hides errors below 1e-3" if array.dtype in ("float16", "float32") else ""
        way_out = "which upcast=True makes" if array.dtype.kind in "fiub" else "with real numbers for what is complex"
        way_out += ", unless it is labels or indices: leave those out, as in lambda a: f(a, labels)" * (
            array.dtype.kind in "iub"
        )
        raise TypeError(
            f"{name} is {array.dtype}; a gradient check needs float64{reason}: check a copy in float64, {way_out}"
        )
    if array.size == 0:
        raise ValueError(f"{name} is empty, of shape {array.shape}; expected one element at least: leave it out")
    if not (finite := array_module(array).isfinite(array)).all():
        place = first_place(~finite)
        kind = "NaN" if float(array[place]) != float(array[place]) else "inf"
        raise ValueError(f"{name} has {kind} at {place}; expected finite numbers, at which there is a derivative")


def _gradient(name: str, grad: Any) -> Any:
    """A copy of a claimed gradient, as its owner may write into it; None for None."""
    if grad is None:
        return None
    grad = grad if hasattr(grad, "dtype") else np.asarray(grad)
    if not is_array(grad):
        raise TypeError(f"the gradient of {name} is {_kind(grad)}; expected an array, as np.asarray makes one")
    if grad.dtype.kind not in "fiu":
        raise TypeError(f"the gradient of {name} is {grad.dtype}; expected real numbers, as the array's are")
    return grad.copy()


def targets_of(layer: Layer, labels: Any, ctx: Context) -> Any:
    """What the rows of the layer's output are to be in a pass of `ctx`: the labels, or what a model makes of them."""
    return layer.targets(labels, ctx) if isinstance(layer, VisionTransformer) and labels is not None else labels


def cotangent_for(y: Array, cotangent: Any, seed: int) -> Array:
    """The cotangent given, or a random one, of the shape of y."""
    xp = array_module(y)
    if cotangent is None:
        return xp.asarray(np.random.default_rng([seed, COTANGENT]).standard_normal(y.shape))
    cotangent = cotangent if hasattr(cotangent, "dtype") else np.asarray(cotangent)
    if not is_array(cotangent):
        raise TypeError(f"cotangent is {_kind(cotangent)}; expected an array, as np.asarray makes one")
    if cotangent.shape != y.shape or cotangent.dtype.kind not in "fiu":
        raise ValueError(
            f"cotangent has shape {cotangent.shape} and dtype {cotangent.dtype}; expected {y.shape}, the shape of the "
            "value, and real numbers"
        )
    if not bool(xp.isfinite(cotangent).all()):
        raise ValueError("cotangent has NaN or inf; expected finite numbers")
    return xp.asarray(cotangent).astype("float64")


def first_place(mask: Array) -> tuple[int, ...]:
    """The index of the first element that is true."""
    return tuple(int(i) for i in np.unravel_index(int(mask.reshape(-1).argmax()), mask.shape))


def _check_call(function: Callable[..., Any], text: str, positional: Any, named: Any) -> None:
    """Raise TypeError with `text` where a function does not take these arguments; builtins do not tell."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise TypeError(f"{text}: {error}") from None


def _named(function: Callable[..., Any], arrays: Any) -> list[tuple[str, Array]]:
    """Arrays in order, by the names that the function gives them."""
    arrays = list(arrays) if isinstance(arrays, Sequence) else [arrays]
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in named]
    if len(names) < len(arrays):
        names = [f"argument {i}" for i in range(len(arrays))]
    return list(zip(names, arrays, strict=False))


def _lengths(arrays: Mapping[str, Array], first: int = 0) -> dict[str, int]:
    """The length of each axis, from the first on, by the name under which Python knows it."""
    return {
        f"{name}.shape[{axis}]": array.shape[axis]
        for name, array in arrays.items()
        for axis in range(first, array.ndim)
    }


def _head_sizes(layer: Layer) -> dict[str, int]:
    """The size of an attention head, where the layer has or contains one."""
    found = (child for child in layer.layers() if isinstance(child, Attention))
    sizes = {child.qkv.weight.shape[0] // child.num_heads for child in found}
    return {"K": sizes.pop()} if len(sizes) == 1 else {}


def _kind(thing: Any) -> str:
    """What it is, for a message: "a tuple", "an ndarray", "None"."""
    name = type(thing).__name__
    return "None" if thing is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _same(one: Any, other: Any) -> bool:
    """Whether these are the same numbers, NaN being one."""
    one, other = (value if hasattr(value, "shape") else np.asarray(value) for value in (one, other))
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _raised(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _some(names: Iterable[str]) -> str:
    """The first names of many."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _not_here(value: float) -> str:
    return f"forward gives {value} here, where it has no derivative: check it where its value is finite"


def _written(name: str) -> Fault:
    return Fault("IMPURE", name, "forward or backward wrote into it; it belongs to the caller")
