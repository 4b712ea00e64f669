"""NaN and infinity: what hides them, and where they began.

A step notices what is not finite in the logits and in the norm of the gradient, which it computes anyway. What hides
an explosion is a layer norm: a variance beyond the largest float gives rstd = 1/√inf = 0, and zeros go on. So rstd is
looked at too, and so are the parameters once they are updated. Where a step has failed, the same pass is taken once
more with every tensor looked at, to name the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module
from vitnp.context import Context, ContextError, check_variance
from vitnp.layer import Layer
from vitnp.layers import GroupNorm, LayerNorm
from vitnp.losses import softmax_cross_entropy
from vitnp.vit import VisionTransformer


def check_variances(norms: Iterable[LayerNorm | GroupNorm], ctx: Context) -> None:
    """Raise FloatingPointError that names a norm whose variance overflowed in the last pass of `ctx`.

    On a GPU nothing is looked at, for that would make it wait.
    """
    for norm in norms:
        try:
            rstd = ctx.saved(norm).rstd
        except ContextError:
            continue  # it takes no part in this model
        check_variance(norm, rstd)


def bad_parameter(model: VisionTransformer) -> str | None:
    """Return the first parameter with NaN or infinity, as "the parameter head.weight"; None if all are finite."""
    for name, parameter in model.parameters().items():
        if not bool(array_module(parameter).isfinite(parameter).all()):
            return f"the parameter {name}"
    return None


def check_update(model: VisionTransformer, in_parts: Callable[[Callable[[int, int], None], int], Any]) -> None:
    """Raise FloatingPointError where an optimizer's step has made a parameter NaN or infinity.

    A sum shows it, which threads share as they do the step itself (`in_parts`, as in `Adam.step`). On a GPU nothing is
    looked at, for that would make it wait.
    """
    flat, sums = model.flat, list[float]()
    if array_module(flat) is not np:
        return
    in_parts(lambda start, end: sums.append(float(flat[start:end].sum())), len(flat))
    # A sum of finite numbers may overflow, too.
    if not np.isfinite(sum(sums)) and (bad := bad_parameter(model)):
        raise FloatingPointError(f"the step has made {bad} NaN or infinity: lower the learning rate")


class _Found(Exception):
    """Says which tensor it is."""


def first_not_finite(
    model: VisionTransformer,
    images: Array,
    labels: Any,
    *,
    rng: int,
    step: int,
    size: int,
    label_smoothing: float = 0.0,
) -> str | None:
    """Repeat a training step's pass, and return what the first tensor with NaN or infinity is; None if all are finite.

    Args:
        model, images, labels: as they were before the step; images (B, H, W, C).
        rng, step, label_smoothing: seed and number of the step, for its dropout masks, and the loss.
        size: how many images pass at a time.
    """
    copy = model.astype(model.flat.dtype)  # whose layers can be watched, and the model stays as it is
    ctx = Context(train=True, rng=rng)
    ctx.step = step
    try:
        for name, parameter in copy.parameters().items():
            _look(f"the parameter {name}", parameter)
        for layer in copy.layers():
            _watch(layer, ctx)
        with np.errstate(all="ignore"):
            for first in range(0, len(images), size):
                rows, ctx.first_row = slice(first, first + size), first
                _look("the images", images[rows], first)
                logits = copy.forward(images[rows], ctx)
                targets, count = copy.targets(labels[rows], ctx), len(images) * copy.answers
                loss, dlogits = softmax_cross_entropy(logits, targets, label_smoothing, count)
                _look("the loss", loss)
                copy.backward(dlogits, ctx)
    except _Found as found:
        return str(found)
    except ValueError:
        return None  # labels that do not fit, which the step has told
    return None


def _watch(layer: Layer, ctx: Context) -> None:
    """Wrap the two methods of a layer so that their results are looked at: children end before their parents."""
    forward, backward = layer.forward, layer.backward
    name = layer.path or "the model"

    def look_forward(x: Array, ctx: Context) -> Array:
        y = forward(x, ctx)
        if isinstance(layer, LayerNorm):
            _look(f"the variance in {name}", 1 / ctx.saved(layer).rstd, ctx.first_row)
        _look(f"the output of {name}", y, ctx.first_row)
        return y

    def look_backward(dy: Array, ctx: Context) -> Array:
        dx = backward(dy, ctx)
        for parameter in layer.specs:
            _look(f"the gradient of {layer.parameter_name(parameter)}", ctx.grad(layer, parameter))
        _look(f"the gradient of the input of {name}", dx, ctx.first_row)
        return dx

    layer.forward, layer.backward = look_forward, look_backward  # type: ignore[method-assign]


def _look(what: str, tensor: Array, first_row: int | None = None) -> None:
    """Raise _Found unless all is finite; where rows are samples, with the first sample that is not."""
    finite = array_module(tensor).isfinite(tensor)
    if bool(finite.all()):
        return
    if first_row is None:
        raise _Found(what)
    row = first_row + int((~finite.reshape(len(tensor), -1)).any(-1).argmax())
    raise _Found(f"{what}, sample {row}")
