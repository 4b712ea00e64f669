"""What a wrong gradient looks like, said only where it is certain: a hint that guesses costs more than it saves.

Arrays may be CuPy's; only scalars are read from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from vitnp.backend import Array

EXACT = 1e-6  # how closely a pattern must fit, relative to the largest entry
FLOAT32 = 2.0**-24  # relative: by so much a float32 is off at most
ROUNDING = (FLOAT32 / 8, 8 * FLOAT32)  # errors that are its rounding lie between


def explain(
    name: str, analytic: Array, numeric: Array, batch: Mapping[str, int], scale: float, tolerance: float
) -> str:
    """Return what the difference of two gradients, known in every coordinate, looks like; "" if nothing certain."""
    if not scale > 0:
        return ""
    if float(abs(analytic).max()) == 0:
        return "the analytic gradient is zero everywhere"
    for text in _patterns(name, analytic, numeric, batch, scale, tolerance):
        return text
    return ""


def _patterns(
    name: str, analytic: Array, numeric: Array, batch: Mapping[str, int], scale: float, tolerance: float
) -> Iterator[str]:
    """Each pattern that fits, the most telling first."""
    difference = abs(analytic - numeric) / scale
    error = float(difference.max())
    if ROUNDING[0] < error < ROUNDING[1] and _is_float32(analytic):
        yield "every value is a float32: the gradient was computed or stored in it"
    ratio = _constant_ratio(analytic, numeric, scale)
    if ratio is not None:
        yield f"analytic = {ratio:.6g} × numeric everywhere{_named(ratio, batch)}"
    square = analytic.ndim == 2 and analytic.shape[0] == analytic.shape[1]
    if square and float(abs(analytic.T - numeric).max()) <= EXACT * scale:
        yield "it is the transpose of the right one"
    yield from _wrong_part(name, analytic, numeric, difference > max(tolerance, EXACT * error), batch)
    if ROUNDING[0] < error < ROUNDING[1] and _is_everywhere(difference, numeric, scale):
        yield "the error has the size of float32's rounding: look for a cast, or for constants of a few digits"


def _is_float32(array: Array) -> bool:
    return bool((array == array.astype("float32")).all())


def _is_everywhere(difference: Array, numeric: Array, scale: float) -> bool:
    """Whether more than half of the entries are off, each by about as much as float32 would round it."""
    off = difference * scale
    rounded = (off > FLOAT32 / 64 * abs(numeric)) & (off < 64 * FLOAT32 * abs(numeric))
    return bool(2 * int(rounded.sum()) > numeric.size)


def _constant_ratio(analytic: Array, numeric: Array, scale: float) -> float | None:
    """The factor between the two where it is one and not 1, by least squares."""
    square = float((numeric * numeric).sum())
    if square == 0:
        return None
    ratio = float((analytic * numeric).sum()) / square
    fits = float(abs(analytic - ratio * numeric).max()) <= EXACT * abs(ratio) * scale
    return ratio if fits and analytic.size > 1 and abs(ratio - 1) > EXACT else None


def _named(ratio: float, batch: Mapping[str, int]) -> str:
    """The factor's name, if it is that of one size alone."""
    plain = [text for value, text in ((-1.0, "the sign"), (2.0, "twice"), (0.5, "half")) if _close(ratio, value)]
    sizes = {name: size for name, size in batch.items() if size > 1}
    able = sizes if not plain else {name: size for name, size in sizes.items() if "shape" not in name}
    named = plain + [text for name, size in able.items() for text in _forms(ratio, name, size)]
    for many in (2, 3):  # the product of several sizes, as of a mean over several axes, where no size alone has it
        if not named:
            named = [text for names in combinations(sizes, many) for text in _products(ratio, names, sizes)]
    more = f" or {len(named) - 2} more" if len(named) > 2 else ""
    return f": {' or '.join(named[:2])}{more}" if named else ""


def _forms(ratio: float, name: str, size: int) -> list[str]:
    """What the factor is of one size: itself, its root, or one over them."""
    forms = {size: name, 1 / size: f"1/{name}", math.sqrt(size): f"√{name}", 1 / math.sqrt(size): f"1/√{name}"}
    repeats = "shape" in name
    return [
        f"{text} = {size}" if repeats and text == name else f"{text} ({name} = {size})"
        for value, text in forms.items()
        if _close(ratio, value)
    ]


def _products(ratio: float, names: tuple[str, ...], sizes: Mapping[str, int]) -> list[str]:
    """The same of the product of several sizes."""
    product, text = math.prod(sizes[name] for name in names), "·".join(names)
    values = f"({', '.join(f'{name} = {sizes[name]}' for name in names)})"
    if _close(ratio, product):
        return [f"{text} {values}"]
    return [f"1/({text}) {values}"] if _close(ratio, 1 / product) else []


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= EXACT * abs(other)


def _wrong_part(name: str, analytic: Array, numeric: Array, wrong: Array, batch: Mapping[str, int]) -> Iterator[str]:
    """Which part of the tensor alone is wrong, one element or consecutive indices of one axis, and how."""
    if int(wrong.sum()) == 1:
        yield "this element alone is wrong"
        return
    for axis in range(wrong.ndim):
        others = tuple(other for other in range(wrong.ndim) if other != axis)
        along = wrong.any(others) if others else wrong
        length, hit = along.shape[0], int(along.sum())
        first, last = int(along.argmax()), length - 1 - int(along[::-1].argmax())
        if hit < length and last - first + 1 == hit and _is_alive(analytic, numeric, axis, first, last):
            part = (slice(None),) * axis + (slice(first, last + 1),)
            scale = float(abs(numeric[part]).max())
            ratio = _constant_ratio(analytic[part], numeric[part], scale) if scale else None
            how = "" if ratio is None else f", by a factor of {ratio:.6g}{_named(ratio, batch)}"
            where = f"index {first}" if hit == 1 else f"{first}:{last + 1}"
            yield f"only {where} of axis {axis} is wrong{_part_of_qkv(name, first, last, length)}{how}"
            return


def _is_alive(analytic: Array, numeric: Array, axis: int, first: int, last: int) -> bool:
    """Whether there is any gradient beside that part; where there is none, that part is all that can be wrong."""
    before, after = ((slice(None),) * axis + (rest,) for rest in (slice(0, first), slice(last + 1, None)))
    beside = [abs(array[part]) for array in (analytic, numeric) for part in (before, after) if array[part].size]
    return any(float(array.max()) > 0 for array in beside)


def _part_of_qkv(name: str, first: int, last: int, length: int) -> str:
    """The columns of a fused qkv are all of q, then k, then v."""
    if "qkv" not in name or length % 3:
        return ""
    letters = " and ".join("QKV"[part] for part in range(3 * first // length, 3 * last // length + 1))
    return f" ({letters} of qkv)"


def explain_samples(analytic: np.ndarray, numeric: np.ndarray, batch: Mapping[str, int]) -> str:
    """Return what a sample of coordinates tells of a large tensor: a constant factor, or zeros."""
    scale = float(abs(numeric).max())
    if not scale > 0:
        return ""
    if not analytic.any():
        return "the analytic gradient is zero, wherever it was looked at"
    ratio = _constant_ratio(analytic, numeric, scale)
    return "" if ratio is None else f"analytic = {ratio:.6g} × numeric, wherever it was looked at{_named(ratio, batch)}"


def start_here(names: list[str], failing: set[str]) -> str:
    """Walk from the loss backwards: the place between the last right tensor and the first wrong one.

    `names` are in forward order. Backward is wrong where its gradient first is: everything before inherits the error.
    """
    after = ""
    for name in reversed(names):
        if name in failing:
            return _between(_layer(name), _layer(after) if after else "")
        after = name
    return ""


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _between(wrong: str, right: str) -> str:
    if wrong == "input":
        return f"before {right}, where the input's gradient is computed" if right else "the gradient of the input"
    if not right:
        return f"{wrong}, the first from the loss"
    if wrong == right:
        return wrong
    one, other = wrong.split("."), right.split(".")
    same = next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
    around = ".".join(one[:same])
    inner, outer = ".".join(one[same:]), ".".join(other[same:])
    if not inner or not outer:
        return wrong
    return f"{around + ', ' if around else ''}between {outer} and {inner}"
