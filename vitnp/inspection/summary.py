"""What a network is made of, and what a pass costs: parameters, operations and memory, layer by layer.

Nothing is written down about any layer. A copy of the model, whose parameters have shapes and no numbers, runs its own
forward in a training Context (see outlines.py): so every figure is that of the code as it is, whatever layers there
are, and takes a fraction of a second for a network of any size.

    flops     of the matrix products of a forward: a product (m, k) @ (k, n) has m k n multiplications and as many
              additions. What is done element by element (norms, GELU, softmax) is not counted, nor are sums, which some
              layers write as products with ones. Products that choose rows are counted as any, though an index would do
              without: of relative positions (n², 2 n − 1) by K for a side of n patches, in each layer whatever the
              batch; of corrupted patches (n, n) by D for an image. For the "GFLOPs" of papers and of timm, which are
              multiply-adds, halve it. A backward has about twice as many.
    saved     bytes that the Context keeps for backward. What several layers save is counted where it was saved first,
              and a view as all of the memory that it keeps alive; parameters and their gradients come on top.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import DTypeLike

from vitnp.config import ViTConfig
from vitnp.context import Context
from vitnp.inspection.outlines import Outline, OutlineFunctions, UnknownOperation
from vitnp.layer import Layer
from vitnp.vit import VisionTransformer


class LayerSummary(NamedTuple):
    """What one layer has and does itself, without the layers inside it, so that columns add up to the whole.

    `output` is the shape of what forward returned, None for a layer that the pass did not come to.
    """

    path: str
    kind: str
    output: tuple[int, ...] | None
    parameters: int
    flops: int
    saved: int


@dataclass(frozen=True, repr=False)
class Summary:
    """A network and a training pass of `batch_size` images; prints as a table, in which blocks alike are one line.

    Attributes:
        config, batch_size, dtype: of what this is the summary.
        layers: every layer, in the order of their construction.
    """

    config: ViTConfig
    batch_size: int
    dtype: str
    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Multiplications and additions of all matrix products of a forward of the whole batch."""
        return sum(layer.flops for layer in self.layers)

    @property
    def saved(self) -> int:
        """Bytes that a training pass of the whole batch keeps for its backward."""
        return sum(layer.saved for layer in self.layers)

    def __repr__(self) -> str:
        c, batch = self.config, f"{self.batch_size} image{'s' * (self.batch_size > 1)}"
        size = " x ".join(map(str, (*c.image_size, c.channels)))
        head = ("layer", "kind", "output", "parameters", "flops", "saved")
        rows = [head, *map(_cells, _folded(self.layers))]
        rows.append(("total", "", "", f"{self.parameters:,}", _scaled(self.flops), _scaled(self.saved, "B")))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        lines.insert(-1, "-" * max(map(len, lines)))
        return "\n".join(
            [
                f"Vision Transformer, {batch} of {size}, {c.num_classes} classes, {self.dtype}",
                *lines,
                f"flops: of forward's matrix products, {_scaled(self.flops // 2)} multiply-adds counted as two each",
                "saved: what a training pass keeps for its backward, counted where it is first saved",
            ]
        )


def summary(model: VisionTransformer | ViTConfig, batch_size: int = 1) -> Summary:
    """Return what a model has, computes and keeps, layer by layer: print it, or read its fields.

    No pass is made, and no memory used that grows with the batch. Of a ViTConfig alone it tells the same, for float32;
    the parameters, which nobody sets, then take addresses and no memory.

    Args:
        model: the network, or its configuration.
        batch_size: images of the pass.

    Raises TypeError for anything else, ValueError for a batch of none, and UnknownOperation, an AttributeError that
    says what to add and where, for a layer that uses a function of arrays that was never summarised.
    """
    if isinstance(model, ViTConfig):
        model = VisionTransformer(model, rng=None)
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"model is a {type(model).__name__}; expected a VisionTransformer or a ViTConfig")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected an integer of at least 1")
    shape = (batch_size, *model.config.image_size, model.config.channels)
    return Summary(model.config, batch_size, str(model.flat.dtype), trace(model, shape, model.flat.dtype))


def trace(layer: Layer, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[LayerSummary, ...]:
    """Return a line for `layer` and for every layer in it, of a training pass with an input of that shape and dtype."""
    xp = OutlineFunctions()
    twin = layer._copy(lambda parameter: xp.empty(parameter.shape, parameter.dtype))
    parameters = {path: sum(getattr(part, name).size for name in part.specs) for path, part in _paths(twin)}
    ctx, pass_ = _KeptBytes(twin), _Pass(xp)
    for path, part in _paths(twin):
        pass_.watch(path, part)
    try:
        twin.forward(xp.empty(shape, dtype), ctx)
    except UnknownOperation as error:
        raise UnknownOperation(f"{pass_.running[-1]}: {error}") from error
    return tuple(
        LayerSummary(
            path, type(part).__name__, pass_.output.get(part), parameters[path], pass_.flops[part], ctx.kept[part]
        )
        for path, part in _paths(twin)
    )


def _paths(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield the layer and all in it, each by its dotted path; those that go by their parent's name by their own too."""
    yield path, layer
    for name, child in layer._children():
        inline = f"{path}.{name}" if path else name
        yield from _paths(child, inline if child.inline else child.path)


class _Pass:
    """Watches the layers of a pass: what each returned, and the operations in it that are in no layer within."""

    def __init__(self, xp: OutlineFunctions) -> None:
        self.xp = xp
        self.output: dict[Layer, tuple[int, ...]] = {}
        self.flops: defaultdict[Layer, int] = defaultdict(int)
        self.running: list[str] = []  # the layers that have begun and not ended
        self._within = 0  # operations of the layers that ended in the one that runs

    def watch(self, path: str, layer: Layer) -> None:
        """Wrap the layer's forward."""
        forward, name = layer.forward, f"{type(layer).__name__} {path!r}"

        def watched(*args: Any, **options: Any) -> Any:
            before, outer, self._within = self.xp.flops, self._within, 0
            self.running.append(name)
            y = forward(*args, **options)
            self.running.pop()
            found = self.xp.flops - before
            self.flops[layer] += found - self._within
            self._within = outer + found
            self.output[layer] = y.shape
            return y

        layer.forward = watched  # type: ignore[method-assign]


class _KeptBytes(Context):
    """A training Context that counts the memory of what is saved in it, each array once; parameters are the model's."""

    def __init__(self, model: Layer) -> None:
        super().__init__(train=True, rng=0)
        self.kept: defaultdict[Layer, int] = defaultdict(int)
        owners = map(_owner, model.parameters().values())
        self._seen: dict[int, Outline] = {id(owner): owner for owner in owners}

    def save(self, layer: Layer, **tensors: Any) -> None:
        super().save(layer, **tensors)
        for tensor in vars(self.saved(layer)).values():
            if tensor is not None and id(owner := _owner(tensor)) not in self._seen:
                self._seen[id(owner)] = owner
                self.kept[layer] += owner.nbytes


def _owner(tensor: Outline) -> Outline:
    return tensor if tensor.base is None else tensor.base


# -- the table --------------------------------------------------------------------------------------------------------


def _folded(layers: tuple[LayerSummary, ...]) -> Iterator[LayerSummary]:
    """Yield the lines of the table: of neighbours in a list that are alike, the first, and one line for the others."""
    stretches = [list(stretch) for _, stretch in itertools.groupby(layers, lambda layer: _place(layer.path)[:2])]
    for _, alike in itertools.groupby(stretches, _likeness):
        first, *others = alike
        yield from (layer for layer in first if layer.path)
        if others:
            (name, of, _), (_, start, _), (_, end, _) = (
                _place(part[0].path) for part in (first, others[0], others[-1])
            )
            path = f"{name}.{start}" + (f" to {end}" if len(others) > 1 else "")
            flat = [layer for stretch in others for layer in stretch]
            parameters, flops, saved = (sum(column) for column in zip(*(layer[3:] for layer in flat), strict=True))
            yield LayerSummary(path, f"as {name}.{of}", None, parameters, flops, saved)


def _place(path: str) -> tuple[str, str, str]:
    """ "blocks.3.attn.qkv" -> "blocks", "3", "attn.qkv"; a path without a number has itself in the last place alone."""
    found = re.fullmatch(r"(.*?)\.(\d+)\.?(.*)", path)
    return (found[1], found[2], found[3]) if found else ("", "", path)


def _likeness(stretch: list[LayerSummary]) -> Any:
    """What two blocks that are shown as one have in common."""
    return [(_place(layer.path)[0], _place(layer.path)[2], *layer[1:]) for layer in stretch]


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    output = "" if layer.output is None else str(layer.output)
    return (
        layer.path,
        layer.kind,
        output,
        f"{layer.parameters:,}" if layer.parameters else "",
        _scaled(layer.flops) if layer.flops else "",
        _scaled(layer.saved, "B") if layer.saved else "",
    )


def _aligned(row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    """Names to the left, numbers to the right."""
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if i < 3 else cell.rjust(width)


def _scaled(number: float, unit: str = "") -> str:
    """Four digits and a decimal prefix: 17563766784 -> "17.56 G"."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 999.95 or prefix == "T":
            return f"{number:.4g} {prefix}{unit}".rstrip()
        number /= 1000
    raise AssertionError("unreachable")
