"""What a gradient check checks: a scalar function of named arrays, and the gradients that someone claims for them.

Whatever a user brings becomes one of these: a layer with an input, a model with images and labels, a loss, a function
of arrays with its gradients. A vector-valued function is multiplied with a random cotangent. The sum of its entries
would not do: errors cancel in it, and the gradient of a softmax is zero.

Before any derivative is taken, `claims` looks at how the functions behave: forward twice gives the same bits, backward
twice gives the same gradients, and neither writes into what it was given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.context import Context
from vitnp.layer import Layer
from vitnp.layers.attention import Attention
from vitnp.losses import softmax_cross_entropy


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

    def value(self, moved: Mapping[str, Array]) -> Any:
        """Return the function's value with some of its arrays replaced by others, all real or all complex."""
        raise NotImplementedError

    def claims(self) -> tuple[dict[str, Array], list[Fault]]:
        """Return the claimed gradient of each array, and what is wrong with how they were computed."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return sum(array.size for array in self.arrays.values())

    def take(self, arrays: Mapping[str, Any]) -> None:
        """Remember the arrays as they are; TypeError for what is not float64."""
        for name, array in arrays.items():
            if not hasattr(array, "dtype"):
                raise TypeError(f"{name} is a {type(array).__name__}; expected an array")
            if array.dtype != np.float64:
                raise TypeError(
                    f"{name} is {array.dtype}; a gradient check needs float64, for rounding in float32 hides errors "
                    "below 1e-3: check a copy in float64, which upcast=True makes"
                )
        self.arrays = dict(arrays)
        self.before = {name: array.copy() for name, array in arrays.items()}

    def check_untouched(self) -> list[Fault]:
        """Put back what was written into, which is a fault."""
        faults = [_written(name) for name, array in self.arrays.items() if not _same(array, self.before[name])]
        for name, array in self.arrays.items():
            array[...] = self.before[name]
        return faults

    def check_repeats(self) -> list[Fault]:
        """Evaluate twice: other bits are a fault."""
        once, again = (self.value(self.arrays) for _ in range(2))
        if _same(once, again):
            return []
        text = f"two forwards of the same input gave {float(once.real)!r} and {float(again.real)!r}"
        return [Fault("NONDETERMINISTIC", "forward", f"{text}: hold its random numbers, as dropout masks, fixed")]

    def check_shapes(self, grads: Mapping[str, Any]) -> tuple[dict[str, Array], list[Fault]]:
        """Return the gradients that can be compared with something, and a fault for each that cannot."""
        good, faults = {}, []
        for name, array in self.arrays.items():
            grad = grads.get(name)
            if grad is None:
                there = ", ".join(grads) or "none"
                faults.append(Fault("MISSING", name, f"there is no gradient for it; there are {there}"))
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
        self,
        layer: Layer,
        x: Array,
        labels: Any,
        smoothing: float,
        cotangent: Array | None,
        rng: np.random.Generator,
        seed: int,
    ) -> None:
        self.layer, self.labels, self.smoothing, self.seed = layer, labels, smoothing, seed
        self.take({**layer.parameters(), "input": x})
        self._twins = {"f": layer}
        self._ctx = Context(train=True, rng=seed, record=False)  # its step never moves on, so dropout repeats
        self.cotangent: Any = cotangent
        if cotangent is None and labels is None:
            y = layer.forward(x, self._new_pass())
            self.cotangent = array_module(y).asarray(rng.standard_normal(y.shape))
        self.batch = {"B": len(x), **({"N": x.shape[1]} if x.ndim == 3 else {}), **_head_sizes(layer)}

    def _new_pass(self) -> Context:
        self._ctx.begin()
        return self._ctx

    def claims(self) -> tuple[dict[str, Array], list[Fault]]:
        """As in the base; the second backward of a record must add the same gradients once more."""
        faults = self.check_repeats()
        ctx, x = Context(train=True, rng=self.seed), self.arrays["input"]
        y = self.layer.forward(x, ctx)
        dy = self._upstream(y)
        dy_before, self.upstream = dy.copy(), float(abs(dy).max())
        dx = self.layer.backward(dy, ctx).copy()
        grads = {name: grad.copy() for name, grad in self.layer.gradients(ctx).items()} | {"input": dx}
        dx_again = self.layer.backward(dy, ctx)
        again = {**self.layer.gradients(ctx), "input": 2 * dx_again}
        faults += [
            Fault("NOT REENTRANT", name, "a second backward of the same record gave another gradient")
            for name, grad in grads.items()
            if grad.shape == again[name].shape and not _same(2 * grad, again[name])
        ]
        faults += self.check_untouched() + ([] if _same(dy, dy_before) else [_written("cotangent")])
        grads, wrong = self.check_shapes(grads)
        return grads, faults + wrong

    def _upstream(self, y: Array) -> Array:
        return (
            self.cotangent.copy() if self.labels is None else softmax_cross_entropy(y, self.labels, self.smoothing)[1]
        )

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
        if self.labels is None:
            return (y * self.cotangent).sum()
        return softmax_cross_entropy(y, self.labels, self.smoothing)[0]


class LossProblem(Problem):
    """A loss that returns its value and its gradient: loss(x, labels) -> (value, dx)."""

    def __init__(self, loss: Callable[..., Any], x: Array, labels: Any) -> None:
        self.loss, self.labels = loss, labels
        self.take({"input": x})
        self.batch = {"B": len(x)}

    def value(self, moved: Mapping[str, Array]) -> Any:
        """The first of what the loss returns."""
        return self.loss(moved.get("input", self.arrays["input"]), self.labels)[0]

    def claims(self) -> tuple[dict[str, Array], list[Fault]]:
        """As in the base."""
        faults = self.check_repeats()
        grad, again = (self.loss(self.arrays["input"], self.labels)[1] for _ in range(2))
        if not _same(grad, again):
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
        rng: np.random.Generator,
    ) -> None:
        if grads is None:
            raise TypeError("a function comes with its gradients: gradcheck(f, arrays, grads=...)")
        self.function, self.grads = function, grads
        self._by_name = isinstance(arrays, Mapping)
        self.take(arrays if isinstance(arrays, Mapping) else dict(_named(function, arrays)))
        self.batch = {
            f"the length of axis {axis} of {name}": length
            for name, array in self.arrays.items()
            for axis, length in enumerate(array.shape)
        }
        y = self._call({})
        self.scalar = not getattr(y, "shape", ())
        if not self.scalar and not callable(grads):
            raise TypeError(
                f"the function returns an array {y.shape}, so its gradients depend on a cotangent: give them as a "
                "function, grads(dy, ...)"
            )
        self.cotangent = cotangent
        if not self.scalar and cotangent is None:
            self.cotangent = array_module(y).asarray(rng.standard_normal(y.shape))

    def _call(self, moved: Mapping[str, Array]) -> Any:
        arrays = {**self.arrays, **moved}
        return self.function(**arrays) if self._by_name else self.function(*arrays.values())

    def value(self, moved: Mapping[str, Array]) -> Any:
        """The function's value, or its product with the cotangent."""
        y = self._call(moved)
        return y if self.scalar else (y * self.cotangent).sum()

    def claims(self) -> tuple[dict[str, Array], list[Fault]]:
        """As in the base."""
        faults = self.check_repeats()
        grads = self._claimed()
        if callable(self.grads):
            again = self._claimed()
            faults += [
                Fault("NOT REENTRANT", name, "a second call gave another gradient")
                for name, grad in grads.items()
                if name in again and not _same(grad, again[name])
            ]
        faults += self.check_untouched()
        if extra := [name for name in grads if name not in self.arrays]:
            raise ValueError(
                f"there is a gradient for {extra[0]}, which is none of the arrays {', '.join(self.arrays)}"
            )
        good, wrong = self.check_shapes(grads)
        return good, faults + wrong

    def _claimed(self) -> dict[str, Any]:
        """The gradients by name, from arrays or from a function, which may return them by name or in order."""
        grads = self.grads
        if callable(grads):
            first = () if self.scalar else (self.cotangent.copy(),)  # type: ignore[union-attr]
            grads = grads(*first, **self.arrays) if self._by_name else grads(*first, *self.arrays.values())
        if not isinstance(grads, Mapping):
            in_order = grads if isinstance(grads, tuple | list) else (grads,)
            if len(in_order) > len(self.arrays):
                raise ValueError(f"there are {len(in_order)} gradients for {len(self.arrays)} arrays")
            grads = dict(zip(self.arrays, in_order, strict=False))
        return {
            name: grad if hasattr(grad, "shape") else np.asarray(grad)
            for name, grad in grads.items()
            if grad is not None
        }


def _named(function: Callable[..., Any], arrays: Any) -> list[tuple[str, Array]]:
    """Arrays in order, by the names that the function gives them."""
    arrays = list(arrays) if isinstance(arrays, Sequence) else [arrays]
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    if len(names) < len(arrays):
        names = [f"argument {i}" for i in range(len(arrays))]
    return list(zip(names, arrays, strict=False))


def _head_sizes(layer: Layer) -> dict[str, int]:
    """The size of an attention head, where the layer has or contains one."""
    found = (child for child in layer.layers() if isinstance(child, Attention))
    sizes = {child.qkv.weight.shape[0] // child.num_heads for child in found}
    return {"K": sizes.pop()} if len(sizes) == 1 else {}


def _same(one: Any, other: Any) -> bool:
    """Whether these are the same numbers, NaN being one."""
    one, other = (value if hasattr(value, "shape") else np.asarray(value) for value in (one, other))
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _written(name: str) -> Fault:
    return Fault("IMPURE", name, "forward or backward wrote into it; it belongs to the caller")
