"""Layer: named parameters and named children, and nothing that a pass computes.

A layer is any object with

    y  = layer.forward(x, ctx)      saves what backward needs in ctx
    dx = layer.backward(dy, ctx)    adds to the gradients in ctx, returns the gradient of the input

Parameters are plain arrays in plain attributes (`self.weight`); `declare` only remembers their names, how they start,
and whether weight decay applies. Children are layers in attributes, alone or in lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike

from vitnp.backend import Array, array_module, to_device
from vitnp.context import Context

Initializer = Callable[[np.random.Generator, tuple[int, ...]], Array | float]


class Spec(NamedTuple):
    """What a layer knows of a parameter besides its values."""

    initializer: Initializer
    decay: bool


class Layer:
    """The base of every layer: declare parameters, find them by name, copy them to another dtype or device."""

    path = ""  # dotted name within the outermost layer, "blocks.0.attn"
    inline = False  # parameters go by the parent's name: "cls_token", not "embeddings.cls_token"
    role: str | None = None  # what this layer is in each of a model's blocks, "block.attn.qkv"
    lends = False  # whether what comes next only reads its output, and keeps nothing of it: see Context.lend
    layout: Layout | None = None  # where a model's flat vectors hold this layer's parameters

    def __init__(self) -> None:
        self.specs: dict[str, Spec] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.path!r}" if self.path else type(self).__name__

    def forward(self, x: Array, ctx: Context) -> Array:
        """Return y, the layer's output for x.

        It may be memory of the context, which the next pass writes over, or within a model's blocks the next block.
        """
        raise NotImplementedError

    def backward(self, dy: Array, ctx: Context) -> Array:
        """Return dx, the gradient of a loss whose gradient with respect to y is dy; add the parameters' to ctx.

        dx, too, may be memory of the context.
        """
        raise NotImplementedError

    # -- building ---------------------------------------------------------------------------------------------------

    def declare(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike, initializer: Initializer, decay: bool = False
    ) -> None:
        """Add the parameter `name`, unset until `initialize`."""
        self.specs[name] = Spec(initializer, decay)
        setattr(self, name, np.empty(shape, dtype))

    def built(self, rng: int | np.random.Generator | None) -> None:
        """End every constructor with this: it names the children, and sets the parameters unless rng is None."""
        self._name("")
        if rng is not None:
            self.initialize(rng)

    def _name(self, path: str) -> None:
        self.path = path
        for name, child in self._children():
            child._name(path if child.inline else _join(path, name))

    def initialize(self, rng: int | np.random.Generator) -> None:
        """Draw every parameter anew, in the order of their names' appearance, in float64 whatever the dtype."""
        generator = np.random.default_rng(rng)
        for layer in self.layers():
            for name, spec in layer.specs.items():
                parameter = getattr(layer, name)
                parameter[...] = to_device(
                    np.asarray(spec.initializer(generator, parameter.shape), parameter.dtype), layer.device
                )

    # -- names ------------------------------------------------------------------------------------------------------

    def layers(self) -> Iterator[Layer]:
        """Yield this layer and all below it, in the order of their construction; each knows its dotted `path`."""
        yield self
        for _, child in self._children():
            yield from child.layers()

    def _children(self) -> Iterator[tuple[str, Layer]]:
        for attribute, value in vars(self).items():
            if isinstance(value, Layer):
                yield attribute, value
            elif isinstance(value, list):
                yield from ((f"{attribute}.{i}", child) for i, child in enumerate(value) if isinstance(child, Layer))

    def parameter_name(self, name: str) -> str:
        """Return the dotted name of this layer's parameter `name` within the outermost layer."""
        return _join(self.path, name)

    def parameters(self) -> dict[str, Array]:
        """Return every parameter by its dotted name: the arrays themselves, which may be written in place."""
        return {layer.parameter_name(name): getattr(layer, name) for layer in self.layers() for name in layer.specs}

    def gradients(self, ctx: Context) -> dict[str, Array]:
        """Return the gradient in `ctx` of every parameter by its dotted name: the arrays themselves."""
        return {layer.parameter_name(name): ctx.grad(layer, name) for layer in self.layers() for name in layer.specs}

    @property
    def num_parameters(self) -> int:
        """The number of scalars that are learned."""
        return sum(parameter.size for parameter in self.parameters().values())

    @property
    def device(self) -> str:
        """ "cpu" or "cuda": where the parameters are ("cpu" for a layer without any)."""
        on_cpu = all(array_module(parameter) is np for parameter in self.parameters().values())
        return "cpu" if on_cpu else "cuda"

    # -- copies -----------------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self._copy(lambda array: array.copy())

    def astype(self, dtype: DTypeLike) -> Self:
        """Return a copy whose parameters have another dtype: "float32", "float64" or "complex128"."""
        return self._copy(lambda array: array.astype(dtype))

    def to_device(self, device: str) -> Self:
        """Return a copy on "cpu" or "cuda". Raises DeviceError where there is no CuPy or no GPU."""
        return self._copy(lambda array: to_device(array.copy(), device))

    def _copy(self, convert: Callable[[Array], Array]) -> Self:
        """Return a copy of the tree of layers, with every parameter converted."""
        clone = self._clone()
        for layer in clone.layers():
            layer.layout = None
            for name in layer.specs:
                setattr(layer, name, convert(getattr(layer, name)))
        return clone

    def _clone(self) -> Self:
        """Return a copy of the tree of layers that still shares the arrays."""
        clone = object.__new__(type(self))  # copy.copy would go the way of pickle, which copies a model's parameters
        vars(clone).update(vars(self))
        for attribute, child in vars(self).items():
            if isinstance(child, Layer):
                setattr(clone, attribute, child._clone())
            elif isinstance(child, list):
                setattr(clone, attribute, [item._clone() if isinstance(item, Layer) else item for item in child])
        return clone


class Layout:
    """Where each parameter of a model stands in one flat vector.

    A model's parameters, its gradients and the optimizer's moments are vectors of the same layout, so that a step, a
    norm or a checkpoint is one pass over memory. Decayed tensors come first: vector[: layout.decayed] is what weight
    decay applies to. Each tensor begins at a multiple of 64 bytes (a cache line); the gaps stay zero.
    """

    def __init__(self, model: Layer) -> None:
        self.names: list[str] = []
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.size = self.decayed = 0
        for decay in (True, False):
            for layer in model.layers():
                for name, spec in layer.specs.items():
                    if spec.decay == decay:
                        self._append(layer.parameter_name(name), getattr(layer, name).shape)
            if decay:
                self.decayed = self.size

    def _append(self, name: str, shape: tuple[int, ...]) -> None:
        self.names.append(name)
        self._places[name] = self.size, shape
        self.size += -(-math.prod(shape) // _LINE) * _LINE

    def zeros(self, like: Array) -> Array:
        """Return a vector of zeros in this layout, its first element at a multiple of 64 bytes."""
        xp = array_module(like)
        spare = xp.zeros(self.size + _LINE, like.dtype)
        if xp is not np:  # CuPy's allocations begin at multiples of 512 bytes
            return spare[: self.size]
        start = -spare.ctypes.data % 64 // spare.itemsize
        return spare[start : start + self.size]

    def view(self, vector: Array, name: str) -> Array:
        """Return the part of `vector` that belongs to the parameter `name`, in that parameter's shape."""
        start, shape = self._places[name]
        return vector[start : start + math.prod(shape)].reshape(shape)


_LINE = 16  # elements: 64 bytes in float32, a multiple of that in every wider dtype


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
