"""From uint8 images to the float batches a network trains on.

Everything random here is a pure function of numbers a checkpoint can hold. The order of an epoch depends on
(seed, epoch) alone, the augmentation of a batch on (seed, epoch, step) alone, so a run that resumes at step 57 sees
exactly the batches it would have seen, and no generator state has to be saved.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vitnp.data.augment import Augmentation
from vitnp.data.dataset import DataError, Dataset, random_stream, whole_number
from vitnp.data.images import fit_images

ORDER, CHANGE, MIX = 0, 1, 2  # which random stream of a seed
T = TypeVar("T")


class Batches:
    """The batches of a dataset, epoch after epoch: images (b, H, W, C) normalised, labels int64 (b,).

    `shuffle` draws a new order each epoch; `augmentation` changes each image at random, and where it mixes images the
    labels are soft, floats (b, classes). Without both, these are the dataset's own images in its own order: what
    evaluation wants. With `fit`, a (height, width) and a number of channels, each batch's images are fitted to them
    after they were changed, as `fit_images` does it. `targets` is what to predict instead of the labels: a function of
    a batch's images, uint8, as they are then. Images are not mixed with them, as nothing says how targets would be.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        dtype: DTypeLike = "float32",
        shuffle: bool = True,
        fit: tuple[tuple[int, int], int] | None = None,
        targets: Callable[[NDArray[np.uint8]], NDArray] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.seed = whole_number("seed", seed, 0)
        self.augmentation, self.fit = augmentation or Augmentation(), fit
        whole_number("shift", self.augmentation.shift, 0, min(dataset.images.shape[1:3]) - 1)
        self.mean, self.std, self.dtype, self.shuffle, self.targets = mean, std, dtype, shuffle, targets
        if targets is not None and (self.augmentation.mixup or self.augmentation.cutmix):
            raise DataError("mixup and cutmix mix labels, and there are none to mix: leave both at 0")
        normalize(
            self._fitted(dataset.images[:1]), mean, std, dtype
        )  # a bad mean is an error now, not at the first batch

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the last of which may be smaller."""
        return math.ceil(len(self.dataset) / self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[NDArray, NDArray]]:
        """The batches of one epoch from step `start` on; the skipped ones cost nothing."""
        epoch = whole_number("epoch", epoch, 0)
        start = whole_number("start", start, 0, self.steps_per_epoch)
        order = self._order(epoch)
        return (self._batch(order, epoch, step) for step in range(start, self.steps_per_epoch))

    def indices(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Which images of the dataset are in a batch, in its order."""
        return self._chosen(self._order(epoch), step)

    def _chosen(self, order: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        return order[step * self.batch_size : (step + 1) * self.batch_size]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        count = len(self.dataset)
        return random_stream(self.seed, ORDER, epoch).permutation(count) if self.shuffle else np.arange(count)

    def _batch(self, order: NDArray[np.int64], epoch: int, step: int) -> tuple[NDArray, NDArray]:
        chosen = self._chosen(order, step)
        images, labels = self.dataset.images[chosen], self.dataset.labels[chosen]
        images = self._fitted(self.augmentation.change(images, random_stream(self.seed, CHANGE, epoch, step)))
        targets = None if self.targets is None else self.targets(images)
        images = normalize(images, self.mean, self.std, self.dtype)
        if targets is not None:
            return images, targets
        classes, rng = len(self.dataset.class_names), random_stream(self.seed, MIX, epoch, step)
        return self.augmentation.mix(images, labels, classes, rng)

    def _fitted(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return images if self.fit is None else fit_images(images, *self.fit)


def prepared_ahead(items: Iterable[T], ahead: int = 2) -> Iterator[T]:
    """The same items in the same order, up to `ahead` of them made on a thread while an earlier one is in use."""
    ahead, end = whole_number("ahead", ahead, 1), object()
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="vitnp-data") as thread:
        waiting = deque(thread.submit(next, iterator, end) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, iterator, end))
            yield item  # type: ignore[misc]


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel of uint8 images (n, H, W, C) scaled to [0, 1].

    Exact: each grey level is counted, the sums are whole numbers, and only the last division rounds.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise DataError(f"images are {images.dtype} {images.shape}; expected uint8 (n, H, W, C), not empty")
    pixels = images.size // images.shape[-1]
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        counts = _count_levels(images[..., channel])
        total = sum(level * count for level, count in enumerate(counts))
        squares = sum(level * level * count for level, count in enumerate(counts))
        means.append(total / (255 * pixels))
        # var = E[x²] − E[x]²,  over the common denominator pixels²
        deviations.append(math.sqrt((pixels * squares - total * total) / (255 * pixels) ** 2))
    return tuple(means), tuple(deviations)


def _count_levels(plane: NDArray[np.uint8], chunk: int = 1024) -> list[int]:
    """How often each of the 256 grey levels occurs. In chunks, as bincount takes 8 bytes for each pixel."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(plane), chunk):
        counts += np.bincount(plane[start : start + chunk].reshape(-1), minlength=256)
    return counts.tolist()


def normalize(
    images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], dtype: DTypeLike = "float32"
) -> NDArray:
    """(images / 255 - mean) / std per channel, for uint8 images (n, H, W, C), in `dtype` throughout."""
    dtype = np.dtype(dtype)
    if dtype.kind != "f":
        raise DataError(f"dtype is {dtype}; expected a floating-point type such as float32")
    if images.dtype != np.uint8:
        raise DataError(f"images have dtype {images.dtype}; expected uint8: were they normalised already?")
    # Whole images are multiplied at a time: an innermost axis of only C would be ten times slower.
    average, deviation = _per_channel(mean, std, images.shape[-1])
    pixels = math.prod(images.shape[1:-1])
    scale = np.tile(1 / (255 * deviation), pixels).astype(dtype)
    offset = np.tile(-average / deviation, pixels).astype(dtype)
    out: NDArray = np.multiply(images.reshape(len(images), -1), scale, dtype=dtype)
    out += offset
    return out.reshape(images.shape)


def _per_channel(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as arrays (C,), once they can be divided by and are as many as the channels."""
    average, deviation = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if average.shape != (channels,) or deviation.shape != (channels,):
        raise DataError(f"mean is {mean}, std {std}; expected {channels} numbers in each, one per channel")
    if not (np.isfinite(average).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
        raise DataError(f"mean is {mean}, std {std}; expected finite numbers, and std above zero")
    return average, deviation
