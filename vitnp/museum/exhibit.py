"""What an exhibit is: a mistake, with its name, its formula beside the right one, and the layer that makes it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

from vitnp.layer import Layer
from vitnp.optim import Adam
from vitnp.vit import VisionTransformer

Kind = Literal["gradient", "function", "both", "update"]


@dataclass(frozen=True)
class Exhibit:
    """One mistake.

    Attributes:
        name: what `install` knows it by, "softmax-diagonal".
        title: the mistake in a line.
        wrong: the formula that is computed.
        why: how that comes about, what it does, or why nobody notices.
        right: the formula that belongs there.
        kind: "gradient": backward is not the derivative of forward, which is right. "function": backward is, but
            forward is not a Vision Transformer's. "both": neither is right. "update": both are, and the optimizer
            makes the mistake. A gradient check finds the first and the third.
        first: the first tensor whose gradient is wrong on the way back from the loss, or the layer that it belongs
            to, as in a network of depth 2; empty where no gradient is.
        layer: the wrong layer, a class that takes the place of the class `replaces` wherever a path ends in `path`.
            Only its forward and backward are its own: it has the parameters and attributes of what it replaces.
        optimizer: what to train with: Adam, or a wrong one.
    """

    name: str
    title: str
    wrong: str
    why: str
    right: str
    kind: Kind = "gradient"
    first: str = ""
    layer: type[Layer] | None = None
    replaces: type[Layer] | None = None
    path: str = ""
    optimizer: type[Adam] = Adam

    @property
    def forward_is_right(self) -> bool:
        """Whether a forward pass has the same bits as that of the right network."""
        return self.kind in ("gradient", "update")

    @property
    def fails_gradcheck(self) -> bool:
        """Whether backward is something else than the derivative of forward."""
        return self.kind in ("gradient", "both")

    def install(self, model: VisionTransformer) -> Specimen:
        """Return a copy of `model` that makes this mistake, its parameters in a vector of its own.

        The copy trains, is checked, saved and copied as any model is. A checkpoint of it holds its parameters alone:
        loaded, they are a right model's. Raises TypeError for a model that makes a mistake already, or for what is no
        model.
        """
        if not isinstance(model, VisionTransformer):
            raise TypeError(f"the model is {model!r}; expected a VisionTransformer: mistakes are made in whole models")
        if isinstance(model, Specimen):
            raise TypeError(f"{model!r} makes a mistake already; expected a right model: install one mistake at a time")
        specimen = copy.deepcopy(model)
        for layer in list(specimen.layers()):
            if self.layer and type(layer) is self.replaces and layer.path.endswith(self.path):
                layer.__class__ = self.layer  # forward and backward are all in which the two classes differ
        specimen.__class__ = Specimen
        assert isinstance(specimen, Specimen)
        specimen.exhibit = self
        return specimen


class Specimen(VisionTransformer):
    """A Vision Transformer that makes the mistake of an exhibit; `Exhibit.install` makes it."""

    exhibit: Exhibit

    def __repr__(self) -> str:
        return f"VisionTransformer with {self.exhibit.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        # A model is pickled, and copied, as its configuration and its parameters: the mistake is made anew in these.
        rebuild, (_, *arguments) = super().__reduce__()
        return Exhibit.install, (self.exhibit, rebuild(VisionTransformer, *arguments))
