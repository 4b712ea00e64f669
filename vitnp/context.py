"""Context: everything that one pass computes, so that layers hold nothing but what is learned.

    saved tensors   what backward needs of forward           ctx.save(layer, x=x)   ctx.saved(layer).x
    gradients       of the parameters, always added to       ctx.add_grad(layer, gamma=...)
    buffers         memory that the next pass uses again     ctx.empty(layer, "y", shape, like=x)
                    or already the next block                ctx.lend(layer, "y", shape, like=x)
    randomness      a seed, a step and a row, no stream      ctx.random_bits(layer, shape, like=x)
    mode            ctx.train

Two contexts never touch each other, so one model may be used by any number of them at a time, on any number of threads.
"""

from __future__ import annotations

import hashlib
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitnp.backend import Array, array_module

if TYPE_CHECKING:
    from vitnp.layer import Layer, Layout


class ContextError(RuntimeError):
    """A pass was asked for something that it did not record, or in an order that cannot be right."""


class Context:
    """The state of one pass through a model.

    Args:
        train: dropout is active.
        rng: an integer seed for dropout. With rng=None a pass with active dropout raises.
        record: keep what backward needs. Follows `train` unless given.
        input_grad: the gradient of the images is wanted too. A network's backward returns None without it, as training,
            which has no use for it, asks for.

    Attributes:
        step: which training step this is. A dropout mask is a pure function of (rng, step, layer, row in the batch):
            the same step draws the same masks again, and `zero_grad` begins the next step.
        first_row: where this context's batch begins in the global batch, for shards and micro-batches.
    """

    def __init__(
        self, train: bool = False, rng: int | None = None, record: bool | None = None, input_grad: bool = True
    ) -> None:
        if rng is not None and (isinstance(rng, bool) or not hasattr(rng, "__index__")):
            raise TypeError(f"rng is {rng!r}; a Context takes an integer seed or None")
        self.train = train
        self.rng = None if rng is None else rng.__index__()
        self.record = train if record is None else record
        self.input_grad = input_grad
        self.step = 0
        self.first_row = 0
        self._saved: dict[Layer, SimpleNamespace] = {}
        self._flat_grads: dict[Layout, Array] = {}  # a whole model's gradients, one vector
        self._own_grads: list[Array] = []  # gradients of layers used alone
        self._grads: dict[tuple[Layer, str], Array] = {}  # by parameter: views into the first, or of the second
        self._written: set[tuple[Layer, str]] = set()  # gradients that are no longer zero
        self._buffers: dict[Any, Array] = {}  # flat memory
        self._views: dict[Any, Array] = {}  # the same in the shape it was last asked for
        self._lent: set[int] = set()  # whose memory it is, among the buffers
        self._ones_buffer: Array | None = None
        self._drawing: dict[str, list[Layer]] = {}  # who has drawn random bits in this pass, by path

    # -- saved tensors ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open a new pass: forget what the last one saved. Gradients, buffers and the step stay."""
        self._saved.clear()
        self._drawing.clear()

    def save(self, layer: Layer, **tensors: Any) -> None:
        """Keep tensors by name for `layer.backward`; does nothing in a context that does not record.

        What is kept are the arrays themselves, but of memory that is only lent it is a copy.
        """
        if not self.record:
            return
        if layer in self._saved:
            raise ContextError(
                f"{layer} ran twice in one pass, which would lose its first record: "
                "call ctx.begin() between passes, or use a second Context"
            )
        self._saved[layer] = SimpleNamespace(
            **{name: tensor.copy() if self._is_lent(tensor) else tensor for name, tensor in tensors.items()}
        )

    def saved(self, layer: Layer) -> SimpleNamespace:
        """Return what `layer.forward` saved in this pass, to be read by name and never written to.

        The next pass uses the same memory again: copy what is to outlive this one.
        """
        try:
            return self._saved[layer]
        except KeyError:
            why = "its forward has not run in this pass" if self.record else "this Context does not record"
            raise ContextError(
                f"nothing is saved for {layer}: {why}; run forward with Context(train=True) or Context(record=True)"
            ) from None

    # -- gradients --------------------------------------------------------------------------------------------------

    def grad(self, layer: Layer, name: str) -> Array:
        """Return the gradient of the parameter `name` of `layer`: zeros until something was added."""
        self._written.add((layer, name))  # as whoever has it may write to it
        return self._grad(layer, name)

    def has_gradients(self, layout: Layout) -> bool:
        """Return whether this context has seen a backward of the model of this layout."""
        return layout in self._flat_grads

    def _grad(self, layer: Layer, name: str) -> Array:
        key = layer, name
        if key not in self._grads:
            parameter = getattr(layer, name)
            if layer.layout is None:
                self._grads[key] = array_module(parameter).zeros(parameter.shape, parameter.dtype)
                self._own_grads.append(self._grads[key])
            else:
                flat = self.flat_grad(layer.layout, like=parameter)
                self._grads[key] = layer.layout.view(flat, layer.parameter_name(name))
        return self._grads[key]

    def flat_grad(self, layout: Layout, like: Array) -> Array:
        """Return the gradients of a whole model as the one vector that they are views into."""
        if layout not in self._flat_grads:
            self._flat_grads[layout] = layout.zeros(like)
        return self._flat_grads[layout]

    def add_grad(self, layer: Layer, **grads: Array) -> None:
        """Add to gradients of `layer`, by the names of its parameters."""
        for name, value in grads.items():
            total = self._grad(layer, name)
            if value.shape != total.shape:
                raise ValueError(f"the gradient of {layer}'s {name} has shape {value.shape}; expected {total.shape}")
            total += value
            self._written.add((layer, name))

    def add_product(self, layer: Layer, name: str, a: Array, b: Array) -> None:
        """Add the matrix product a @ b to a gradient: straight into its place where that is still zero.

        The product has as many elements as the parameter, in the same order; its shape may be another.
        """
        total = self._grad(layer, name).reshape(*a.shape[:-1], b.shape[-1])
        xp = array_module(total)
        if (layer, name) in self._written:
            product = self.scratch("product", total.shape, like=total)
            total += xp.matmul(a, b, out=product)
        else:
            xp.matmul(a, b, out=total)
            self._written.add((layer, name))

    def add_row_sum(self, layer: Layer, name: str, rows: Array) -> None:
        """Add the sum over a matrix's rows: as a product with ones, which is faster and rounds less than sum(0)."""
        self.add_product(layer, name, self._ones(len(rows), like=rows), rows)

    def zero_grad(self) -> None:
        """Set every gradient to zero, in place, and begin the next step."""
        for array in (*self._flat_grads.values(), *self._own_grads):
            array.fill(0)
        self._written.clear()
        self.step += 1

    # -- memory -----------------------------------------------------------------------------------------------------

    def memory(self, layer: Layer) -> Memory:
        """Return the memory that a kernel may use on behalf of `layer`."""
        return Memory(self, layer)

    def empty(self, layer: Layer, name: str, shape: tuple[int, ...], like: Array) -> Array:
        """Return an uninitialised array of `like`'s type and dtype: the same memory in the next pass.

        Allocating large arrays anew costs more than computing them, for the system clears every page that it hands out.
        """
        return self._memory((layer, name), shape, like)

    def lend(self, layer: Layer, name: str, shape: tuple[int, ...], like: Array) -> Array:
        """Return memory as `empty` does, for what only the next layer reads: all layers of one role share it.

        So it stays in the cache, and does not grow with the number of blocks.
        """
        if layer.role is None:
            return self.empty(layer, name, shape, like)
        key = layer.role, name
        before, view = self._buffers.get(key), self._memory(key, shape, like)
        if view.base is not before:  # it has grown: what was lent goes, and an array that is not may get its id
            self._lent.discard(id(before))
            self._lent.add(id(view.base))
        return view

    def _is_lent(self, tensor: Any) -> bool:
        """Whether it is a view into memory that is lent: the array that owns it is its base, in NumPy and in CuPy."""
        return id(getattr(tensor, "base", None)) in self._lent

    def scratch(self, name: str, shape: tuple[int, ...], like: Array) -> Array:
        """Return uninitialised memory that all layers share: for what does not outlive the calling function."""
        return self._memory(name, shape, like)

    def _memory(self, key: Any, shape: tuple[int, ...], like: Array) -> Array:
        view: Any = self._views.get(key)
        fits = view is not None and view.dtype == like.dtype and type(view) is type(like)
        if fits and view.shape == shape:  # as in nearly every call
            return view
        size, buffer = math.prod(shape), self._buffers.get(key) if fits else None
        if buffer is None or buffer.size < size:
            buffer = self._buffers[key] = array_module(like).empty(size, like.dtype)
        view = self._views[key] = buffer[:size].reshape(shape)
        return view

    def _ones(self, size: int, like: Array) -> Array:
        ones = self._ones_buffer
        if ones is None or ones.size < size or ones.dtype != like.dtype or type(ones) is not type(like):
            ones = self._ones_buffer = array_module(like).ones(size, like.dtype)
        return ones[:size]

    # -- randomness -------------------------------------------------------------------------------------------------

    def random_bits(self, layer: Layer, shape: tuple[int, ...], like: Array) -> Array:
        """Return uint32 bits of the given shape (B, ...), each a pure function of its position.

        Counter-based: bits[b, i] is a hash of (rng, step, layer, first_row + b, i). No state moves, so the same bits
        come out however the batch is cut into shards and micro-batches, on any device, and after a resume.
        The hash is a multiply-xorshift finaliser (in the manner of MurmurHash3's) with a key of the row at both ends.
        """
        if self.rng is None:
            raise ContextError(f"{layer} draws random bits: give this pass a seed, Context(train=True, rng=0)")
        # Layers outside of a model share the path "": there the order in which a pass comes to them tells them apart.
        same_path = self._drawing.setdefault(layer.path, [])
        if layer not in same_path:
            same_path.append(layer)
        name = f"{self.rng} {self.step} {layer.path}" + " again" * same_path.index(layer)
        key = hashlib.blake2b(name.encode(), digest_size=8).digest()
        low, high = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little")
        xp = array_module(like)
        rows = xp.arange(self.first_row, self.first_row + shape[0], dtype="uint32")[:, None]
        columns = xp.arange(math.prod(shape[1:]), dtype="uint32")
        bits = columns + _mix(rows ^ low)
        return _mix(bits, key=_mix(rows ^ high)).reshape(shape)


class StreamingContext(Context):
    """A context for forwards that nobody looks into: a block's results go where the block before it had its own.

    So memory does not grow with depth, and stays in the cache. By the time a block writes its output it has done with
    its input, which is the output of the block before.
    """

    def save(self, layer: Layer, **tensors: Any) -> None:
        """Look at what will be gone: FloatingPointError where it is a norm's whose variance overflowed."""
        if "rstd" in tensors:
            check_variance(layer, tensors["rstd"])
        super().save(layer, **tensors)

    def empty(self, layer: Layer, name: str, shape: tuple[int, ...], like: Array) -> Array:
        """Return memory that layers of the same role share."""
        return (super().empty if layer.role is None else self.lend)(layer, name, shape, like)


def check_variance(norm: Layer, rstd: Array) -> None:
    """Raise FloatingPointError that names the norm, where 1/sqrt(variance) is 0: it would go on with zeros.

    On a GPU nothing is looked at, for that would make it wait.
    """
    if array_module(rstd) is np and rstd.min() == 0:
        raise FloatingPointError(
            f"the variance in {norm.path} overflows, so that its output would be zeros: lower the learning rate, "
            "or look for bad input"
        )


class Memory(NamedTuple):
    """Where a kernel puts its results and what it needs on the way: the methods of a context, for one layer."""

    ctx: Context
    layer: Layer

    def empty(self, name: str, shape: tuple[int, ...], like: Array) -> Array:
        """Return memory for a result, which lives until the next pass of the context."""
        return self.ctx.empty(self.layer, name, shape, like)

    def lend(self, name: str, shape: tuple[int, ...], like: Array) -> Array:
        """Return memory for a result that only the next layer reads."""
        return self.ctx.lend(self.layer, name, shape, like)

    def scratch(self, name: str, shape: tuple[int, ...], like: Array) -> Array:
        """Return memory that is free again when the kernel returns."""
        return self.ctx.scratch(name, shape, like)


def _mix(x: Array, key: Array | int = 0) -> Array:
    """Hash the uint32 array `x` in place: every bit of the result depends on every bit of x and of the key."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= key
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x
