"""A linear probe: how much of the labels a linear map can read from frozen features (Dosovitskiy et al., section 4.1).

The paper's few-shot accuracies are those of a regularised least-squares map from features to targets, +1 for the class
of an image and −1 for every other. Features are standardised, z = (f − mean) / (std + 1e-5), over the images that the
probe learns from, and a constant feature of 100 stands beside them, as in the original's evaluator: so large that its
weight is hardly held back. With Z (n, D) and Y (n, classes), for a strength λ > 0,

    minimise  |Z W + 100 v − Y|² + λ |W|² + λ |v|²

Standardised columns sum to zero, so they are orthogonal to the constant one, and the two parts do not mix:

    W = (ZᵀZ + λI)⁻¹ ZᵀY = V · s/(s² + λ) · UᵀY,    Z = U s Vᵀ
    b = 100 v = mean(Y) · 100² n / (100² n + λ)

One singular value decomposition thus serves every strength, and it is the same for more images than features and for
fewer. Nothing is squared before it is decomposed, so W keeps its digits for small strengths. All of it is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitnp.backend import to_cpu
from vitnp.data.dataset import random_stream, whole_number

STRENGTHS = tuple(2.0**power for power in range(-10, 21))
CONSTANT = 100.0  # the feature that carries the bias
LEAST_STD = 1e-5  # added to every standard deviation, so that a feature that never changes becomes 0
Labelled = tuple[Any, Any]  # features (n, D) and labels (n,)


class LinearProbe:
    """A family of linear classifiers on frozen features, one for every strength; `linear_probe` makes it.

    Attributes:
        strength: the one used where none is named: of the largest validation accuracy, or the only one.
        accuracies: strength -> share of the validation features classified right; empty without validation.
        mean, std: what features are standardised with, (D,); `std` has 1e-5 added.
        num_classes: how many classes there are.
    """

    def __init__(self, features: NDArray[np.float64], labels: NDArray[np.int64], num_classes: int) -> None:
        self.strength, self.accuracies, self.num_classes = 1.0, dict[float, float](), num_classes
        self.mean, self.std = features.mean(0), features.std(0) + LEAST_STD
        targets = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
        u, self._s, vt = np.linalg.svd((features - self.mean) / self.std, full_matrices=False)
        self._v, self._ut_targets = vt.T, u.T @ targets
        self._mean_target, self._constants = targets.mean(0), CONSTANT**2 * len(features)

    def weights(self, strength: float | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return W (D, classes) and b (classes,), by which scores are (f − mean) / std @ W + b.

        Raises ValueError unless the strength is above 0.
        """
        strength = _check_strength(self.strength if strength is None else strength)
        shrunk = self._s / (self._s * self._s + strength)
        bias = self._mean_target * (self._constants / (self._constants + strength))
        return self._v @ (shrunk[:, None] * self._ut_targets), bias

    def scores(self, features: Any, strength: float | None = None) -> NDArray[np.float64]:
        """Return how much speaks for each class, (n, classes), about 1 for yes and −1 for no; features (n, D)."""
        found = _check_features(features)
        if found.shape[1] != len(self.mean):
            raise ValueError(f"features have {found.shape[1]} columns; the probe learned from {len(self.mean)}")
        weight, bias = self.weights(strength)
        scores: NDArray[np.float64] = (found - self.mean) / self.std @ weight + bias
        return scores

    def predict(self, features: Any, strength: float | None = None) -> NDArray[np.int64]:
        """Return the class of the largest score of each row, (n,); features (n, D)."""
        predicted: NDArray[np.int64] = self.scores(features, strength).argmax(1).astype(np.int64)
        return predicted

    def accuracy(self, features: Any, labels: Any, strength: float | None = None) -> float:
        """Return the share classified right, in [0, 1]; features (n, D), labels (n,)."""
        labels = _check_labels(labels, len(features), self.num_classes)
        return float((self.predict(features, strength) == labels).mean())


def linear_probe(
    features: Any,
    labels: Any,
    *,
    strengths: Sequence[float] = STRENGTHS,
    num_classes: int | None = None,
    validation: Labelled | None = None,
) -> LinearProbe:
    """Fit a linear map from frozen features to classes by regularised least squares, for all strengths at once.

    Args:
        features, labels: (n, D) floats, as `vitnp.features` returns them, and integers (n,), every class among them.
        strengths: λ, of which there are powers of two from 2⁻¹⁰ to 2²⁰ unless said.
        num_classes: the largest label and one unless said.
        validation: features and labels by which the strength is chosen, the larger one of equals. Not those of the
            test: a strength chosen there makes its accuracy too high.

    Raises:
        ValueError: features that are not finite or do not fit, a class without an image, a strength that is not above
            0, several strengths without validation. TypeError: labels that are no integers.
    """
    found = _check_features(features)
    labels = _check_labels(labels, len(found), num_classes)
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    counts = np.bincount(labels, minlength=classes)
    if classes < 2 or not counts.all():
        missing = f"none is of class {int(counts.argmin())}" if not counts.all() else "all are of class 0"
        raise ValueError(f"of {len(labels)} labels {missing}; expected images of each of at least 2 classes")
    strengths = [_check_strength(strength) for strength in strengths]
    if validation is None and len(strengths) != 1:
        raise ValueError(f"{len(strengths)} strengths came without validation; give what chooses one, or one strength")
    probe = LinearProbe(found, labels, classes)
    if validation is not None:
        probe.accuracies = {strength: probe.accuracy(*validation, strength) for strength in strengths}
    probe.strength = max(strengths, key=lambda strength: (probe.accuracies.get(strength, 0.0), strength))
    return probe


def few_shot_indices(labels: Any, shots: int, *, seed: int = 0, num_classes: int | None = None) -> NDArray[np.int64]:
    """Return which images a few-shot probe learns from: `shots` of each class, class by class, as (classes · shots,).

    A pure function of (seed, class, labels). Fewer shots are the first of more, so that 5 of a class are among its 10.
    Raises ValueError for a class that has not so many, TypeError for labels that are no integers.
    """
    labels = _check_labels(labels, len(labels), num_classes)
    chosen = []
    for label in range(int(labels.max()) + 1 if num_classes is None else num_classes):
        places = np.flatnonzero(labels == label)
        if len(places) < whole_number("shots", shots, 1):
            raise ValueError(f"class {label} has {len(places)} images; expected at least {shots}, one for each shot")
        chosen.append(random_stream(seed, label).permutation(places)[:shots])
    return np.concatenate(chosen)


def _check_features(features: Any) -> NDArray[np.float64]:
    found = to_cpu(features) if hasattr(features, "dtype") else np.asarray(features)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind != "f":
        raise ValueError(f"features are {found.dtype} of shape {found.shape}; expected floats (n, D), not empty")
    if not np.isfinite(found).all():
        row = int((~np.isfinite(found)).any(1).argmax())
        raise ValueError(f"features of image {row} are NaN or inf; expected finite numbers: has the network diverged?")
    return found.astype(np.float64)


def _check_labels(labels: Any, count: int, num_classes: int | None) -> NDArray[np.int64]:
    found = to_cpu(labels) if hasattr(labels, "dtype") else np.asarray(labels)
    if found.dtype.kind not in "iu":
        raise TypeError(f"labels are {found.dtype}; expected integers, the numbers of the classes")
    if found.shape != (count,) or count == 0:
        raise ValueError(f"labels have shape {found.shape}; expected ({count},), one for each image, not empty")
    outside = (found < 0) if num_classes is None else (found < 0) | (found >= num_classes)
    if outside.any():
        first, most = int(outside.argmax()), "" if num_classes is None else f", and below {num_classes}"
        raise ValueError(f"label {found[first]} of image {first} is outside the classes; expected 0 or more{most}")
    return found.astype(np.int64)


def _check_strength(strength: float) -> float:
    if not 0 < strength < np.inf:
        raise ValueError(f"strength is {strength}; it must be above 0, and finite")
    return float(strength)
