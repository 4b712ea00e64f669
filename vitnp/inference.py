"""Using a trained model: class probabilities, features, and an evaluation on labelled images.

The images go through the network a batch at a time, the rows of a batch on all cores, so memory grows with the
results and not with what is computed on the way. Nothing is trained and no dropout acts.

    probabilities = softmax(logits)     predicted = argmax of the logits     confidence = largest probability

All of it comes back as NumPy arrays, wherever the model is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from vitnp.backend import Array, to_cpu
from vitnp.checkpoint import CheckpointError, load_checkpoint
from vitnp.context import Context, StreamingContext
from vitnp.cores import usable_cores
from vitnp.data.batches import normalize
from vitnp.data.images import fit_images
from vitnp.losses import softmax_cross_entropy
from vitnp.masked import MaskedPatchPrediction
from vitnp.parallel import blas_controller, one_at_a_time
from vitnp.vit import VisionTransformer

BATCH = 256  # images in the network at a time, on all cores together, at most
ROWS = 2048  # tokens that a core's cache holds with all that a block makes of them


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained model and what its training says about images: uint8 ones are normalised with `mean` and `std`.

    `progress` is all that the training wrote into the checkpoint, its `script` and `settings` among them.
    """

    model: VisionTransformer
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    progress: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a model did on n labelled images.

    Attributes:
        loss: mean cross-entropy, without label smoothing.
        accuracy: share of images classified right, in [0, 1].
        per_class: the same for the images of each class, (classes,); NaN where there are none.
        confusion: int64 (classes, classes), how many images of each class (row) were taken for each (column).
        probabilities: (n, classes).
        predicted: int64 (n,), the class of the largest logit.
        labels: int64 (n,), as they were given.
    """

    loss: float
    accuracy: float
    per_class: NDArray[np.float64]
    confusion: NDArray[np.int64]
    probabilities: NDArray
    predicted: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def samples(self) -> int:
        """How many images there were."""
        return len(self.labels)

    def mistakes(self) -> NDArray[np.int64]:
        """The numbers of the images classified wrong, the most confident mistake first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        confidence = self.probabilities[wrong, self.predicted[wrong]]
        return wrong[np.argsort(-confidence, kind="stable")]


def load_classifier(path: str | os.PathLike[str], device: str = "cpu") -> Classifier:
    """Read a checkpoint that a training script wrote, for use on "cpu" or "cuda": the model that the run tests.

    That is the moving average of the parameters where the run keeps one.

    Raises what `load_checkpoint` does, and CheckpointError where the model came without its classes, mean and std.
    """
    checkpoint = load_checkpoint(path, device)
    if isinstance(checkpoint.model, MaskedPatchPrediction):
        raise CheckpointError(f"{path}: predicts patches; expected a classifier, as backbone.safetensors beside it")
    config, progress = checkpoint.model.config, checkpoint.progress
    expected = {"classes": config.num_classes, "mean": config.channels, "std": config.channels}
    for name, count in expected.items():
        found = progress.get(name)
        if not isinstance(found, list) or len(found) != count:
            raise CheckpointError(
                f"{path}: {name} is {found}; expected a list of {count}, as the training scripts write it: "
                "give vitnp.predict the model with what you know of its training"
            )
    class_names, mean, std = (tuple(progress[name]) for name in expected)
    if not all(isinstance(name, str) for name in class_names):
        raise CheckpointError(f"{path}: classes are {list(class_names)}; expected their names: save them as text")
    if not all(isinstance(number, int | float) for number in mean + std) or min(std) <= 0:
        raise CheckpointError(f"{path}: mean is {list(mean)}, std {list(std)}; expected numbers, those of std above 0")
    model = checkpoint.model if checkpoint.average is None else checkpoint.average.averaged
    return Classifier(model, class_names, mean, std, progress)


def predict(
    model: VisionTransformer,
    images: Array,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = BATCH,
    fit: bool = False,
) -> NDArray:
    """Class probabilities (n, classes) of images (n, H, W, C), in the model's dtype.

    Images of uint8 are normalised with `mean` and `std`, one number a channel, as in training; floats are taken as
    they are. At most `batch_size` images are in the network at a time. With `fit`, uint8 images of another size or
    colour than the model's are cut to their centre, scaled and converted, so many at a time: `vitnp.data.fit_images`.

    Raises ValueError or TypeError for images that the model cannot take, ValueError naming the first image whose
    logits are not finite, and on a CPU ValueError naming a norm whose variance overflows, which would hide that.
    """
    return _softmax(_logits(model, images, mean, std, batch_size, fit))


def features(
    model: VisionTransformer,
    images: Array,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = BATCH,
    fit: bool = False,
) -> NDArray:
    """What the classifier reads of each image, (n, D): see `VisionTransformer.features`. Otherwise as `predict`."""
    return _in_batches(model, model.features, model.config.dim, images, mean, std, batch_size, fit)


def evaluate(
    model: VisionTransformer,
    images: Array,
    labels: Any,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = BATCH,
    fit: bool = False,
) -> Evaluation:
    """Loss, accuracy and confusions on images (n, H, W, C) with integer labels (n,). Otherwise as `predict`.

    Raises ValueError or TypeError, before anything is computed, for labels that do not fit.
    """
    classes = model.config.num_classes
    labels = _check_labels(labels, len(images), classes)
    logits = _logits(model, images, mean, std, batch_size, fit)
    predicted = logits.argmax(-1).astype(np.int64)
    confusion = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    right, count = np.diagonal(confusion), confusion.sum(-1)
    return Evaluation(
        loss=float(softmax_cross_entropy(logits, labels)[0]),
        accuracy=float(right.sum() / len(labels)),
        per_class=np.where(count > 0, right / np.maximum(count, 1), np.nan),
        confusion=confusion,
        probabilities=_softmax(logits),
        predicted=predicted,
        labels=labels,
    )


def _check_labels(labels: Any, count: int, classes: int) -> NDArray[np.int64]:
    found = to_cpu(labels) if hasattr(labels, "dtype") else np.asarray(labels)
    if found.dtype.kind not in "iu":
        raise TypeError(f"labels are {found.dtype}; expected integers, the numbers of the classes")
    if found.shape != (count,):
        raise ValueError(f"labels have shape {found.shape}; expected ({count},), one for each image")
    outside = np.flatnonzero((found < 0) | (found >= classes))
    if outside.size:
        first = outside[0]
        raise ValueError(f"label {found[first]} of image {first} is outside the {classes} classes 0 to {classes - 1}")
    return found.astype(np.int64)


def _logits(
    model: VisionTransformer,
    images: Array,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    batch_size: int,
    fit: bool,
) -> NDArray:
    return _in_batches(model, model.forward, model.config.num_classes, images, mean, std, batch_size, fit)


def _softmax(logits: NDArray) -> NDArray:
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: NDArray = exp / exp.sum(-1, keepdims=True)
    return probabilities


def _in_batches(
    model: VisionTransformer,
    compute: Callable[[Array, Context], Array],
    width: int,
    images: Array,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    batch_size: int,
    fit: bool,
) -> NDArray:
    """Return compute(images), (n, width) and finite, from one thread a core, each with a context of its own."""
    images = images if hasattr(images, "dtype") else np.asarray(images)
    shape = model.config.image_size, model.config.channels
    fit = fit and images.dtype == np.uint8 and images.ndim == 4
    _check_images(model, fit_images(images[:1], *shape) if fit else images, mean, std, batch_size)
    threads = min(usable_cores() if model.device == "cpu" else 1, batch_size)
    size = _images_a_pass(model, len(images), batch_size, threads)
    results = np.empty((len(images), width), model.flat.dtype)

    def run(start: int, ctx: Context) -> None:
        rows = slice(start, start + size)
        # What overflows is found in the results below; no need to warn as well.
        with np.errstate(over="ignore", invalid="ignore"):
            some = fit_images(images[rows], *shape) if fit else images[rows]
            try:
                results[rows] = to_cpu(compute(_prepare(some, mean, std, model.flat.dtype), ctx))
            except FloatingPointError as error:
                raise ValueError(f"images {start} to {start + len(some) - 1}: {error}") from error

    # As in a training step: one BLAS thread for each of ours, and one model at a time.
    with one_at_a_time, blas_controller().limit(limits=1, user_api="blas"):
        workers = _KEPT.get(model)
        if workers is None or workers.contexts.qsize() != threads:
            workers = _KEPT[model] = _Workers(threads)
        workers.do(run, range(0, len(images), size), on_threads=model.device == "cpu")
    _check_finite(results, images)
    return results


class _Workers:
    """Threads and contexts that stay with a model: starting anew is what a small one would spend its time on."""

    def __init__(self, threads: int) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="vitnp-predict")
        self.contexts: SimpleQueue[Context] = SimpleQueue()
        for _ in range(threads):
            self.contexts.put(StreamingContext())

    def do(self, work: Callable[[int, Context], None], starts: Iterable[int], on_threads: bool) -> None:
        """Call work(start, ctx) for every start; when this returns or raises, none goes on.

        Not on threads where a GPU is at work: which one, and which of its streams, is chosen thread by thread.
        """
        if not on_threads:
            for start in starts:
                self._with_a_context(work, start)
            return
        jobs = [self.threads.submit(self._with_a_context, work, start) for start in starts]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
            wait(jobs)

    def _with_a_context(self, work: Callable[[int, Context], None], start: int) -> None:
        ctx = self.contexts.get()
        try:
            work(start, ctx)
        finally:
            self.contexts.put(ctx)  # also after an error, or the other threads would wait for it


_KEPT: WeakKeyDictionary[VisionTransformer, _Workers] = WeakKeyDictionary()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_KEPT.clear)  # threads do not survive a fork


def _images_a_pass(model: VisionTransformer, images: int, batch_size: int, threads: int) -> int:
    """How many images a thread takes at a time: no more than stay in the cache, and all threads take equally many."""
    if model.device != "cpu":
        return batch_size
    config = model.config
    # a stem's first map has many more places than the transformer has tokens: one for 2 x 2 pixels
    rows = (
        config.num_tokens if config.stem_blocks is None else max(config.num_tokens, math.prod(config.image_size) // 4)
    )
    most = min(batch_size // threads, max(1, ROWS // rows))
    rounds = -(-images // (most * threads))
    return -(-images // (rounds * threads))


def _prepare(images: Array, mean: Sequence[float] | None, std: Sequence[float] | None, dtype: np.dtype) -> Array:
    return images if mean is None or std is None else normalize(to_cpu(images), mean, std, dtype)


def _check_images(
    model: VisionTransformer,
    images: Array,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    batch_size: int,
) -> None:
    """Everything that would be wrong with the first batch, said before it is computed."""
    expected = (*model.config.image_size, model.config.channels)
    if images.ndim != 4 or images.shape[1:] != expected or len(images) == 0:
        raise ValueError(
            f"images have shape {images.shape}; expected (n, {', '.join(map(str, expected))}), n at least 1"
        )
    if images.dtype == np.uint8 and (mean is None or std is None):
        raise ValueError("images are uint8, without mean and std; expected both, one number a channel, as in training")
    if images.dtype != np.uint8 and (mean is not None or std is not None):
        raise ValueError(f"images are {images.dtype}, with mean or std; expected uint8: floats are taken as they are")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")


def _check_finite(results: NDArray, images: Array) -> None:
    """Raise ValueError that names the first row of NaN or inf, whose argmax would otherwise pass for an answer."""
    wrong = ~np.isfinite(results).all(-1)
    if wrong.any():
        first = int(wrong.argmax())
        pixels = to_cpu(images[first])
        if not np.isfinite(pixels).all():
            raise ValueError(f"image {first} has pixels that are NaN or inf; expected finite numbers: leave it out")
        raise ValueError(
            f"image {first}: the network's output is NaN or inf; expected finite numbers: "
            "the model has diverged in training, or the image was scaled otherwise than in training"
        )
