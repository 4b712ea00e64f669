"""Softmax cross-entropy, fused: together they have a simple gradient, and neither a logarithm nor a quotient overflows.

Forward     loss = −(1/B) Σ_b Σ_j t_bj log p_bj,   p = softmax(z)
                 = (1/B) Σ_b (s_b lse(z_b) − Σ_j t_bj z_bj),   lse(z) = m + log Σ_j e^(z_j − m),   m = max z
            because log p_j = z_j − lse(z). s = Σ_j t_j is 1 but for the rounding of soft targets, and kept: without it
            backward would not be the derivative of forward to the last digit.

Backward    ∂lse/∂z_j = p_j, hence   dz = (s p − t) / B

Label smoothing by e mixes the targets with the uniform distribution: t = (1 − e) onehot + e / classes (Szegedy et al.,
arXiv 1512.00567, section 7).
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from vitnp.backend import Array, array_module, to_device


def softmax_cross_entropy(
    logits: Array, labels: Any, label_smoothing: float = 0.0, batch_size: int | None = None
) -> tuple[Any, Array]:
    """Return the mean loss over the batch, and its gradient with respect to the logits.

    Args:
        logits: (B, classes), real; complex in a gradient check.
        labels: integers (B,) in [0, classes), or soft targets (B, classes) whose rows sum to 1.
        label_smoothing: in [0, 1).
        batch_size: what to divide by instead of B, for shards of a larger batch.

    Returns:
        loss, a scalar of the logits' dtype on the logits' device, and dlogits (B, classes).

    Raises:
        ValueError: shapes that do not fit, labels outside the classes, targets that are no distributions, NaN logits.
            Values on a GPU are not read, for that would make it wait: there a NaN shows in the loss.
        TypeError: labels that are neither integers (B,) nor floats (B, classes).
    """
    logits = logits if hasattr(logits, "dtype") else np.asarray(logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits have shape {logits.shape}; expected (batch, classes), neither of them 0")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
    xp, B = array_module(logits), len(logits) if batch_size is None else operator.index(batch_size)
    if B < 1:
        raise ValueError(f"batch_size is {B}; it must be at least 1")
    if xp is np and not (logits.real < np.inf).all():
        row = int((~(logits.real < np.inf)).any(-1).argmax())
        raise ValueError(
            f"logits of sample {row} are NaN or inf: the network has diverged, or its input was not finite"
        )
    targets = _targets(labels, logits, float(label_smoothing))
    shifted = logits - logits.real.max(-1, keepdims=True)
    exp = xp.exp(shifted)
    total, mass = exp.sum(-1, keepdims=True), targets.sum(-1, keepdims=True)
    # A class that no target asks for may have the logit −inf: 0 · −inf would be NaN.
    chosen = xp.where(targets == 0, 0, shifted)
    loss = (mass * xp.log(total) - (targets * chosen).sum(-1, keepdims=True)).sum() / B
    return loss, (mass * (exp / total) - targets) / B


def _targets(labels: Any, logits: Array, label_smoothing: float) -> Array:
    """Return the distributions (B, classes) that `labels` mean, in the logits' real dtype and on their device."""
    xp, (B, classes), dtype = array_module(logits), logits.shape, logits.real.dtype
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    if labels.dtype.kind in "iu":
        _check_integers(labels, B, classes)
        device = "cpu" if xp is np else "cuda"
        columns = xp.arange(classes)
        targets = (to_device(labels, device)[:, None] == columns).astype(dtype)
    else:
        _check_distributions(labels, B, classes)
        targets = to_device(labels, "cpu" if xp is np else "cuda").astype(dtype)
    return targets * (1 - label_smoothing) + label_smoothing / classes


def _check_integers(labels: Array, B: int, classes: int) -> None:
    if labels.shape != (B,):
        raise ValueError(f"labels have shape {labels.shape}; expected ({B},), one integer for each row of logits")
    if array_module(labels) is np and ((labels < 0) | (labels >= classes)).any():
        row = int(((labels < 0) | (labels >= classes)).argmax())
        raise ValueError(f"label {labels[row]} of sample {row} is outside the {classes} classes 0 to {classes - 1}")


def _check_distributions(labels: Array, B: int, classes: int) -> None:
    if labels.dtype.kind != "f" or labels.ndim != 2:
        raise TypeError(
            f"labels are {labels.dtype} of shape {labels.shape}; expected integers ({B},) or floats ({B}, {classes})"
        )
    if labels.shape != (B, classes):
        raise ValueError(f"soft labels have shape {labels.shape}; expected ({B}, {classes}), as the logits")
    if array_module(labels) is not np:
        return
    wrong = ~((labels >= 0).all(-1) & (abs(labels.sum(-1) - 1) < 1e-3))
    if wrong.any():
        raise ValueError(
            f"soft labels of sample {int(wrong.argmax())} are no distribution: expected values of at least 0 and sum 1"
        )
