"""The data sets that have a name: how each is loaded, and what is known of it before it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vitnp.data import cifar, mnist
from vitnp.data.dataset import Dataset


class NamedSet(NamedTuple):
    """One of them: `loader` is the function of this package, the numbers are those of its training images."""

    loader: Callable[..., Dataset]
    num_classes: int
    training_images: int


NAMED_SETS = {
    name: NamedSet(load, len(known.class_names), mnist.SHAPES[mnist.SPLITS["train"][0]][0])
    for name, load, known in (
        ("mnist", mnist.load_mnist, mnist.MNIST),
        ("fashion-mnist", mnist.load_fashion_mnist, mnist.FASHION),
    )
} | {
    name: NamedSet(load, len(known.class_names), sum(known.binary.batches["train"].values()))
    for name, load, known in (
        ("cifar10", cifar.load_cifar10, cifar.CIFAR10),
        ("cifar100", cifar.load_cifar100, cifar.CIFAR100),
    )
}
