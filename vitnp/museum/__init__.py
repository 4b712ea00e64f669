"""A museum of wrong gradients: the classic mistakes, made on purpose.

Each exhibit is a layer (or an optimizer) of this package with one mistake in it, such as people make who write a
transformer by hand: most of them were found in public code. `install` puts one into a copy of a model:

    wrong = museum.install(model, "softmax-diagonal")
    print(vitnp.gradcheck(wrong.astype("float64"), images, labels))

Four lessons:
1. Many wrong gradients still train. A direction that leans downhill is enough for Adam, and a constant factor it
   divides out again; so a falling loss proves little, and a good accuracy not much more.
2. A gradient check finds every gradient here that is wrong: it asks whether backward is the derivative of forward.
3. It can ask nothing else, and passes the other exhibits. A network that computes another function and differentiates
   it right (kind "function") is found by comparison with an independent network alone; an optimizer that misuses right
   gradients (kind "update") by its own closed form.
4. A check sees what its set-up lets it see: a head of zeros hides nearly all of these, a batch of one those that mix up
   samples, square sizes those that lack a transpose, a dropout rate of zero those of dropout.

The files go beside those of vitnp/layers: each begins with the right formulas, and each mistake is a few lines long.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection

from vitnp.backend import Array
from vitnp.context import Context
from vitnp.losses import softmax_cross_entropy
from vitnp.museum import attention, block, dropout, embeddings, gelu, layer_norm, linear, optimizer, softmax
from vitnp.museum.exhibit import Exhibit, Specimen
from vitnp.vit import VisionTransformer

__all__ = ["Exhibit", "Specimen", "exhibit", "exhibits", "first_on_the_way_back", "install", "relative_error"]


def exhibits() -> tuple[Exhibit, ...]:
    """Return every exhibit, layer by layer in the order of vitnp/layers."""
    rooms = (linear, layer_norm, gelu, dropout, softmax, embeddings, attention, block, optimizer)
    return tuple(exhibit for room in rooms for exhibit in room.EXHIBITS)


def exhibit(name: str) -> Exhibit:
    """Return the exhibit of this name. Raises ValueError, with names that are like it, if there is none.

    Raises TypeError for what is no name.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name is {name!r}; expected one of museum.exhibits(), as 'softmax-diagonal'")
    by_name = {exhibit.name: exhibit for exhibit in exhibits()}
    if name not in by_name:
        like = difflib.get_close_matches(name, by_name, n=3, cutoff=0)
        raise ValueError(f"there is no exhibit {name!r}; expected a name of museum.exhibits(), as {' or '.join(like)}")
    return by_name[name]


def install(model: VisionTransformer, name: str) -> Specimen:
    """Return a copy of `model` that makes the mistake of this name.

    Raises ValueError for an unknown name, TypeError for a model that makes a mistake already, or for what is no model.
    """
    return exhibit(name).install(model)


def relative_error(wrong: VisionTransformer, right: VisionTransformer, images: Array, labels: Array) -> float:
    """Return ‖g_wrong − g_right‖ / ‖g_right‖, over the gradient of the loss by all parameters as one vector.

    images (B, H, W, C) and labels (B,) or (B, classes) are one batch; dropout is on, and both draw the same masks.
    A head of zeros lets no gradient through: fill it before, as that of a new model is one.
    """
    vectors = []
    for model in (wrong, right):
        ctx = Context(train=True, rng=0)
        dlogits = softmax_cross_entropy(model.forward(images, ctx), labels)[1]
        model.backward(dlogits, ctx)
        vectors.append(ctx.flat_grad(model.layout, like=model.flat))
    difference, truth = vectors[0] - vectors[1], vectors[1]
    return math.sqrt(float(difference @ difference) / float(truth @ truth))


def first_on_the_way_back(model: VisionTransformer, tensors: Collection[str]) -> str:
    """Return which of these tensors backward comes to first, or "" if there are none: there the search begins.

    They go by the names of `model.parameters()`; "input" is the images, the last. A wrong gradient spoils all that
    come after it, so of those that a check finds wrong the first lies in the layer of the mistake, or right below it.
    """
    way = [*reversed(model.parameters()), "input"]
    return next((name for name in way if name in tensors), "")
