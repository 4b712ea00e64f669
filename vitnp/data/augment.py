"""Augmentation: the random changes that make one training image many, and the mixing of several into one.

An `Augmentation` says which, and how strong. It draws from the generator it is given and from nothing else, so that a
batch is a pure function of (seed, epoch, step). The functions below it can be used alone; each takes and returns
uint8 images (n, H, W, C), and leaves its argument as it was. In the order in which they apply:

    distort               turned, slanted, stretched and bent a little           good for handwriting
    random_resized_crop   a random part, enlarged                   Szegedy et al., arXiv 1409.4842, section 6
    shift                 moved by whole pixels: the crop from a padded image
    flip                  mirrored, or not                          not for what can be read
    rand_augment          random operations of fourteen             Cubuk et al., arXiv 1909.13719
    erase                 a random rectangle of noise               Zhong et al., arXiv 1708.04896
    mixup, cutmix         two images and their labels mixed         Zhang et al., arXiv 1710.09412;
                                                                    Yun et al., arXiv 1905.04899
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vitnp.data.dataset import DataError, whole_number
from vitnp.data.warp import Warp, interpolate

if TYPE_CHECKING:
    from PIL.Image import Image

DISTORTION = Warp(rotation=15, shear=0.15, scale=(1 / 1.15, 1.15), translation=0, bend=1)  # of strength 1, at 28 pixels
ASPECT = (3 / 4, 4 / 3)  # of the part that random_resized_crop takes, width to height
ERASED = (0.02, 1 / 3)  # share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images. All of it is off unless said.

    Attributes:
        distort: strength of a random rotation, slant, stretch and bend; 1 is up to 15 degrees, 15 %.
        crop: the least share of an image's area that a random part of it may have; 1 takes all of it.
        shift: pixels by which images move at most, each way.
        flip: whether images are mirrored, each with probability 1/2.
        rand_augment: magnitude in [0, 10] of two random operations an image; 0 for none.
        erase: probability that a rectangle of an image is erased.
        mixup, cutmix: alpha of the Beta distribution that mixing ratios come from; 0 for none. With both, each batch
            gets one of them at random.

    Raises:
        DataError: a value outside its range.
    """

    distort: float = 0.0
    crop: float = 1.0
    shift: int = 0
    flip: bool = False
    rand_augment: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        whole_number("shift", self.shift, 0)
        if not isinstance(self.flip, bool):
            raise DataError(f"flip is {self.flip!r}; expected True or False")
        ranges = {"distort": (0, 5), "crop": (0.01, 1), "rand_augment": (0, 10), "erase": (0, 1)}
        for name, (least, most) in (ranges | {"mixup": (0, math.inf), "cutmix": (0, math.inf)}).items():
            value = getattr(self, name)
            if not least <= value <= most or value == math.inf:
                above = f"a number from {least} to {most}" if most < math.inf else f"a number of at least {least}"
                raise DataError(f"{name} is {value}; expected {above}")

    def change(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Every change of single images, for a batch uint8 (n, H, W, C)."""
        if self.distort:
            images = distort(images, rng, self.distort)
        if self.crop < 1:
            images = random_resized_crop(images, rng, self.crop)
        if self.shift:
            images = shift(images, rng, self.shift)
        if self.flip:
            images = flip(images, rng)
        if self.rand_augment:
            images = rand_augment(images, rng, self.rand_augment)
        if self.erase:
            images = erase(images, rng, self.erase)
        return images

    def mix(
        self, images: NDArray, labels: NDArray[np.int64], classes: int, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray]:
        """A batch of normalised images (n, H, W, C) mixed, with soft labels (n, classes); mixing off, as it was."""
        if not (self.mixup or self.cutmix):
            return images, labels
        targets = one_hot(labels, classes, images.dtype)
        if self.cutmix and (not self.mixup or rng.random() < 0.5):
            return cutmix(images, targets, rng, self.cutmix)
        return mixup(images, targets, rng, self.mixup)


# -- geometry ---------------------------------------------------------------------------------------------------------


def distort(images: NDArray[np.uint8], rng: np.random.Generator, strength: float) -> NDArray[np.uint8]:
    """Each image turned, slanted, stretched and bent at random; zeros come in from outside."""
    count, height, width, _ = images.shape
    most = DISTORTION
    warp = replace(
        most,
        rotation=strength * most.rotation,
        shear=strength * most.shear,
        scale=(most.scale[0] ** strength, most.scale[1] ** strength),
        bend=strength * most.bend * min(height, width) / 28,
    )
    y, x = warp.points(rng, count, height, width)
    bordered = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    grey = interpolate(bordered, np.arange(count), y, x)
    grey += 0.5
    return grey.astype(np.uint8).reshape(images.shape)


def random_resized_crop(images: NDArray[np.uint8], rng: np.random.Generator, least: float) -> NDArray[np.uint8]:
    """A random part of each image, resized to the whole.

    Its area is uniform in [least, 1] of the image's, its aspect (width to height) log-uniform in [3/4, 4/3] times the
    image's own. A side that would be longer than the image's is as long, and the area then smaller.
    """
    count, height, width, _ = images.shape
    area = rng.uniform(least, 1, count)
    aspect = _log_uniform(rng, ASPECT, count)
    rows = np.minimum(height * np.sqrt(area / aspect), height)
    columns = np.minimum(width * np.sqrt(area * aspect), width)
    top, left = rng.random((2, count)) * (height - rows, width - columns)
    boxes = np.stack([left, top, left + columns, top + rows], axis=1).tolist()

    def resize(image: Image, box: list[float]) -> Image:
        from PIL.Image import Resampling

        return image.resize((width, height), Resampling.BILINEAR, (box[0], box[1], box[2], box[3]))

    return _through_pillow(images, resize, boxes)


def shift(images: NDArray[np.uint8], rng: np.random.Generator, max_shift: int) -> NDArray[np.uint8]:
    """Each image (n, H, W, C) moved by its own (dy, dx), uniform in [-max_shift, max_shift]²; zeros come in.

    With a margin of zeros all around, a moved image is a window into the padded one. The axes (W, C) become
    one, so that a window is H plain runs of bytes.
    """
    count, height, width, channels = images.shape
    m = whole_number("max_shift", max_shift, 0, min(height, width) - 1)
    if m == 0:
        return images
    padded = np.zeros((count, height + 2 * m, width + 2 * m, channels), images.dtype)
    padded[:, m:-m, m:-m] = images
    rows = padded.reshape(count, height + 2 * m, -1)
    windows = np.lib.stride_tricks.sliding_window_view(rows, (height, width * channels), axis=(1, 2))
    top, left = rng.integers(0, 2 * m + 1, (2, count))
    moved: NDArray[np.uint8] = windows[np.arange(count), top, left * channels]
    return moved.reshape(images.shape)


def flip(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Each image mirrored, left to right, with probability 1/2."""
    mirrored = rng.random(len(images)) < 0.5
    images = images.copy()
    images[mirrored] = images[mirrored, :, ::-1]
    return images


# -- colours and erasing ----------------------------------------------------------------------------------------------


def rand_augment(
    images: NDArray[np.uint8], rng: np.random.Generator, magnitude: float, operations: int = 2
) -> NDArray[np.uint8]:
    """Each image, grey or RGB, through `operations` random ones of fourteen, all of one `magnitude` in [0, 10].

    RandAugment as published: its fourteen operations, identity among them, in the strengths of AutoAugment. Those that
    have a direction take either at random; what comes in from outside is black.
    """
    chosen = rng.integers(0, len(OPERATIONS), (len(images), operations)).tolist()
    signs = rng.choice((-1.0, 1.0), (len(images), operations)).tolist()
    names = list(OPERATIONS)

    def apply(image: Image, plan: tuple[list[int], list[float]]) -> Image:
        for which, sign in zip(*plan, strict=True):
            image = OPERATIONS[names[which]](image, sign * magnitude / 10)
        return image

    return _through_pillow(images, apply, list(zip(chosen, signs, strict=True)))


def _affine(*matrix: Callable[[float, Image], float]) -> Callable[[Image, float], Image]:
    """An operation that moves pixels: (x, y) of the result shows (a x + b y + c, d x + e y + f)."""

    def transform(image: Image, s: float) -> Image:
        from PIL.Image import Resampling, Transform

        return image.transform(image.size, Transform.AFFINE, [entry(s, image) for entry in matrix], Resampling.BILINEAR)

    return transform


def _enhance(what: str) -> Callable[[Image, float], Image]:
    """An operation of Pillow's ImageEnhance, where 1 leaves an image as it is."""

    def enhance(image: Image, s: float) -> Image:
        from PIL import ImageEnhance

        changed: Image = getattr(ImageEnhance, what)(image).enhance(1 + 0.9 * s)
        return changed

    return enhance


def _rotate(image: Image, s: float) -> Image:
    from PIL.Image import Resampling

    return image.rotate(30 * s, Resampling.BILINEAR)


def _autocontrast(image: Image, s: float) -> Image:
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def _equalize(image: Image, s: float) -> Image:
    from PIL import ImageOps

    return ImageOps.equalize(image)


def _solarize(image: Image, s: float) -> Image:
    from PIL import ImageOps

    return ImageOps.solarize(image, round(256 * (1 - abs(s))))


def _posterize(image: Image, s: float) -> Image:
    from PIL import ImageOps

    return ImageOps.posterize(image, 8 - round(4 * abs(s)))


ZERO, ONE = (lambda s, image: 0.0), (lambda s, image: 1.0)

OPERATIONS: dict[str, Callable[[Image, float], Image]] = {  # of an image and a strength in [-1, 1]
    "identity": lambda image, s: image,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "posterize": _posterize,
    "color": _enhance("Color"),
    "contrast": _enhance("Contrast"),
    "brightness": _enhance("Brightness"),
    "sharpness": _enhance("Sharpness"),
    "shear_x": _affine(ONE, lambda s, _: 0.3 * s, lambda s, image: -0.15 * s * image.height, ZERO, ONE, ZERO),
    "shear_y": _affine(ONE, ZERO, ZERO, lambda s, _: 0.3 * s, ONE, lambda s, image: -0.15 * s * image.width),
    "translate_x": _affine(ONE, ZERO, lambda s, image: 0.45 * s * image.width, ZERO, ONE, ZERO),
    "translate_y": _affine(ONE, ZERO, ZERO, ZERO, ONE, lambda s, image: 0.45 * s * image.height),
}


def erase(images: NDArray[np.uint8], rng: np.random.Generator, probability: float) -> NDArray[np.uint8]:
    """Each image, with this probability, with a random rectangle of it replaced by noise.

    Area uniform in [0.02, 1/3] of the image, aspect log-uniform in [0.3, 3.3]. A side that would be longer than the
    image's is as long, where the paper draws again.
    """
    count, height, width, channels = images.shape
    area = rng.uniform(*ERASED, count)
    aspect = _log_uniform(rng, ERASED_ASPECT, count)
    inside = _rectangles(rng, (height, width), np.sqrt(area / aspect), np.sqrt(area * aspect))
    inside &= np.less(rng.random((count, 1, 1)), probability)
    images = images.copy()
    images[inside] = rng.integers(0, 256, (int(inside.sum()), channels), np.uint8)
    return images


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float], count: int) -> NDArray[np.float64]:
    return np.exp(rng.uniform(math.log(limits[0]), math.log(limits[1]), count))


def _rectangles(
    rng: np.random.Generator, size: tuple[int, int], tall: NDArray[np.float64], wide: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """A rectangle at random in each image: true within, (n, H, W). `tall` and `wide` are shares of the sides."""

    def within(side: int, share: NDArray[np.float64]) -> NDArray[np.bool_]:
        length = np.minimum(np.rint(side * share), side)
        first = np.floor(rng.random(len(length)) * (side - length + 1))
        pixels = np.arange(side)
        inside: NDArray[np.bool_] = (pixels >= first[:, None]) & (pixels < (first + length)[:, None])
        return inside

    rows, columns = within(size[0], tall), within(size[1], wide)
    return rows[:, :, None] & columns[:, None, :]


# -- mixing -----------------------------------------------------------------------------------------------------------


def one_hot(labels: NDArray[np.integer], classes: int, dtype: DTypeLike = "float32") -> NDArray:
    """Labels (n,) as distributions (n, classes)."""
    return np.asarray(labels[:, None] == np.arange(classes), dtype)


def mixup(images: NDArray, targets: NDArray, rng: np.random.Generator, alpha: float) -> tuple[NDArray, NDArray]:
    """Each image, a float (H, W, C), and its soft label (classes,) blended with those of a random other.

    x = λ x_i + (1 − λ) x_j and the same of the labels, λ from Beta(alpha, alpha), of each pair its own.
    """
    share = rng.beta(alpha, alpha, len(images)).astype(images.dtype)
    other = rng.permutation(len(images))
    weight = share[:, None, None, None]
    blended = weight * images
    blended += (1 - weight) * images[other]
    return blended, share[:, None] * targets + (1 - share[:, None]) * targets[other]


def cutmix(images: NDArray, targets: NDArray, rng: np.random.Generator, alpha: float) -> tuple[NDArray, NDArray]:
    """Each image (H, W, C) with a rectangle from a random other; soft labels (classes,) mix by the area.

    The rectangle takes 1 − λ of the area, with the image's aspect, λ from Beta(alpha, alpha), of each pair its own. It
    lies within the image, where the paper cuts off what does not.
    """
    side = np.sqrt(1 - rng.beta(alpha, alpha, len(images)))
    inside = _rectangles(rng, images.shape[1:3], side, side)
    other = rng.permutation(len(images))
    share = 1 - inside.mean((1, 2), dtype=images.dtype)[:, None]
    mixed = np.where(inside[..., None], images[other], images)
    return mixed, share * targets + (1 - share) * targets[other]


def _through_pillow(
    images: NDArray[np.uint8], operation: Callable[[Image, Any], Image], arguments: list[Any]
) -> NDArray[np.uint8]:
    """Each image through `operation`, with its argument."""
    from PIL import Image

    channels = images.shape[-1]
    if channels not in (1, 3):
        raise DataError(f"images have {channels} channels; expected 1 (grey) or 3 (RGB) for what goes through Pillow")
    changed = np.empty_like(images)
    for before, after, argument in zip(images, changed, arguments, strict=True):
        picture = Image.fromarray(before[..., 0] if channels == 1 else before)
        after[...] = np.asarray(operation(picture, argument)).reshape(after.shape)
    return changed
