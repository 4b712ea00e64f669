"""One image file, whatever is in it, as the uint8 array that a network takes.

    1  opened as one of FORMATS and by nothing else: Pillow also knows formats that start other programs
    2  its size looked at, before anything is decoded: a file of a few bytes can claim terabytes
    3  decoded to the last byte, its first frame if there are several
    4  turned upright, as its EXIF orientation says
    5  transparent parts laid on white, as paper and web pages are
    6  mode to grey or RGB: 16 bits are scaled to 8 (Pillow would clip them), floats are taken to be 0 to 1
    7  the largest centred part of the wanted shape, scaled with antialiasing

Colour profiles are not applied.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitnp.data.dataset import DataError, PathLike, whole_number
from vitnp.data.files import out_of_memory, unusable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What the largest common cameras take: 192 MB as RGB. While it is read, it takes up to 16 bytes a pixel, or 1 GB: that
# is what copies in the modes on the way come to, where the file is one with transparency, of 16 bits or in WebP.
MAX_PIXELS = 64_000_000
COPY = "copy it again or leave it out"  # what to do about a damaged file
SHARPNESS = 3.0  # how much larger than wanted an image must stay while it is only averaged, not filtered


def read_image(path: PathLike, size: int | tuple[int, int] | None = None, channels: int = 3) -> NDArray[np.uint8]:
    """The image in a file, uint8 (H, W, channels): 3 for RGB, 1 for grey.

    `size` is a side or (height, width). The largest centred part of that shape is scaled to it, so nothing is
    distorted, and an image that has the size already keeps its every pixel. Without it the image is as it comes.

    Raises DataError, one line that names the file, for what is missing, empty, damaged, no image, or too large.
    """
    if channels not in (1, 3):
        raise DataError(f"channels is {channels!r}; expected 1 for grey or 3 for RGB")
    shape = None if size is None else sides(size)
    _check_ordinary(path)
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise unusable(path, "empty file", "an image", COPY)
            file.seek(0)
            with _decoding(path):
                image = _upright(file, path, longest=max(shape or (0,)))
                image = _in_mode(image, "L" if channels == 1 else "RGB", path)
                if shape is not None:
                    image = _fit(image, *shape)
                return np.array(image).reshape(image.height, image.width, channels)
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_ordinary(path: PathLike) -> None:
    """What is no file but a folder, a pipe or a device could keep us waiting for ever, or never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # the latter for a name with a zero byte
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        found = "cannot be read (a folder, a pipe or another special file)"
        raise unusable(path, found, "an ordinary file", "leave it out")


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that is given as one side or as both."""
    both = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(both) != 2:
        raise DataError(f"size is {size!r}; expected a number of pixels or (height, width)")
    return whole_number("height", both[0], 1), whole_number("width", both[1], 1)


@contextmanager
def _decoding(path: PathLike) -> Iterator[None]:
    """While Pillow works: what it raises about a file, of whatever type, is a DataError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged notes beside the pixels; damaged pixels are errors
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except DataError:
        raise
    except MemoryError as error:  # which damaged files may ask for
        raise out_of_memory(path, COPY) from error
    except UnidentifiedImageError as error:
        raise unusable(path, "not an image", _expected(), "convert it or leave it out") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(path, str(error)) from error
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, ...: each decoder has its own
        found = f"damaged image ({error or type(error).__name__})"
        raise unusable(path, found, "a whole one", COPY) from error


def _upright(file: IO[bytes], path: PathLike, longest: int) -> Image:
    """The decoded first frame, turned as a viewer would; a large JPEG comes at 1/2, 1/4 or 1/8 where that will do."""
    from PIL import Image, ImageOps

    image = Image.open(file, formats=FORMATS)  # which refuses sizes of 0
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")
    if longest:
        image.draft(None, (round(SHARPNESS * longest), round(SHARPNESS * longest)))
    return ImageOps.exif_transpose(image)  # which loads it first


def _in_mode(image: Image, mode: str, path: PathLike) -> Image:
    """The image in grey ("L") or "RGB", on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = _from_16_bits(image, path)
    elif image.mode == "F":
        image = _from_floats(image, path)
    elif image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # by way of RGB also to grey: not all modes have another
    return image.convert(mode)


def _from_16_bits(image: Image, path: PathLike) -> Image:
    """0 to 65535 become 0 to 255, to the nearest; Pillow's own conversion makes white of all that is above 255."""
    from PIL import Image

    levels = np.asarray(image).astype(np.int32)
    if (transparent := image.info.get("transparency")) is not None:  # the one level that a PNG file may name
        levels[levels == transparent] = 65535
    if levels.min() < 0 or levels.max() > 65535:
        found = f"has grey levels from {levels.min()} to {levels.max()}"
        raise unusable(path, found, "8 or 16 bits, 0 to 65535", "convert it")
    levels += 128
    levels //= 257
    return Image.fromarray(levels.astype(np.uint8))


def _from_floats(image: Image, path: PathLike) -> Image:
    from PIL import Image

    levels = np.asarray(image)
    if not (levels.min() >= 0 and levels.max() <= 1):  # which NaN is not either
        found = f"has floating-point grey levels from {levels.min():g} to {levels.max():g}"
        raise unusable(path, found, "numbers from 0 to 1", "convert it")
    levels = 255 * levels
    return Image.fromarray(np.rint(levels, levels).astype(np.uint8))


def _fit(image: Image, height: int, width: int) -> Image:
    """The largest centred part whose sides are as height to width, scaled to them."""
    from PIL import Image

    scale = min(image.height / height, image.width / width)
    left, top = max(0.0, image.width - scale * width) / 2, max(0.0, image.height - scale * height) / 2
    box = (left, top, min(left + scale * width, image.width), min(top + scale * height, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box, SHARPNESS)


def fit_images(images: NDArray[np.uint8], size: int | tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """Grey or RGB images in memory, uint8 (n, H, W, 1 or 3), as `read_image` makes files: (n, *size, channels).

    Of each the largest centred part of that shape, scaled to it; grey as RGB has its level three times. Images that are
    so already are returned as they are. Raises DataError for other arrays.
    """
    from PIL import Image

    height, width = sides(size)
    if images.dtype != np.uint8 or images.ndim != 4 or {images.shape[-1], channels} - {1, 3}:
        raise DataError(
            f"images are {images.dtype} {images.shape}, to have {channels} channels; expected uint8 (n, H, W, C), "
            "and 1 or 3 channels before and after"
        )
    if images.shape[1:] == (height, width, channels):
        return images
    fitted = np.empty((len(images), height, width, channels), np.uint8)
    for pixels, place in zip(images, fitted, strict=True):
        image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        place[...] = np.asarray(_fit(image.convert("L" if channels == 1 else "RGB"), height, width)).reshape(
            place.shape
        )
    return fitted


def _expected() -> str:
    return f"one of {', '.join(FORMATS)}"


def _too_large(path: PathLike, found: str) -> DataError:
    return unusable(path, found, f"at most {MAX_PIXELS:,} pixels", "make it smaller or leave it out")


def _unreadable(path: PathLike, error: OSError | ValueError) -> DataError:
    found = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return unusable(path, found, "a readable file", "check its name and permissions")
