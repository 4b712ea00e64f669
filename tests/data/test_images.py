"""Image files of every mode become the right pixels; those that cannot be used are refused in one line."""

import os
import struct
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from resident import taken_by

from vitnp.data import DataError, fit_images, read_image
from vitnp.data.images import MAX_PIXELS

RNG = np.random.default_rng(0)
# smooth, so that a lossy format changes it little: red grows to the right, green downwards
GRADIENT = np.stack([*np.meshgrid(np.arange(0, 240, 6), np.arange(0, 240, 8)), np.full((30, 40), 90)], -1).astype(
    np.uint8
)


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def distance(found, expected):
    return np.abs(found.astype(int) - expected.astype(int)).max()


@pytest.fixture
def refusal(tmp_path):
    """What read_image says about a file with this content: one line that begins with the file."""

    def said(content, name="some.png", **options):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_image(path, **options)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{path}: ")

    return said


def png(width, height, data=b"", bits=8, transparent=None):
    """A grey PNG file that claims these sizes; not every Pillow writes what all of them read."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    level = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    return b"\x89PNG\r\n\x1a\n" + header + level + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


# formats and modes


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tif"])
def test_a_lossless_file_is_read_bit_for_bit(tmp_path, name):
    np.testing.assert_array_equal(read_image(save(tmp_path / name, GRADIENT)), GRADIENT)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_a_lossy_file_is_read_to_its_precision(tmp_path, name):
    assert distance(read_image(save(tmp_path / name, GRADIENT, quality=95)), GRADIENT) < 16


def test_the_content_decides_and_not_the_name(tmp_path):
    save(tmp_path / "a.png", GRADIENT).rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), GRADIENT)


def test_grey_has_one_channel_and_the_usual_weights(tmp_path):
    found = read_image(save(tmp_path / "a.png", GRADIENT), channels=1)
    assert found.shape == (30, 40, 1)
    assert distance(found[..., 0], np.rint(GRADIENT @ np.array([0.299, 0.587, 0.114]))) <= 1


def test_a_grey_file_has_three_equal_channels_if_three_are_wanted(tmp_path):
    grey = GRADIENT[..., 0]
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", grey)), np.stack([grey] * 3, -1))


def test_a_palette_gif_has_the_colours_of_its_palette(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 100])
    image.putdata([2, 0, 1])
    image.save(tmp_path / "a.gif")
    assert read_image(tmp_path / "a.gif").tolist() == [[[0, 0, 100], [255, 0, 0], [0, 200, 0]]]


def test_the_transparent_colour_of_a_gif_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 200, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "a.gif", transparency=1)
    assert read_image(tmp_path / "a.gif").tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_a_cmyk_jpeg_has_the_right_colours(tmp_path):
    path = save(tmp_path / "a.jpg", GRADIENT, mode="CMYK", quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert distance(read_image(path), GRADIENT) < 16


@pytest.mark.parametrize("channels", [1, 3])
def test_half_transparent_black_on_white_is_grey(tmp_path, channels):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 3] = [[0, 128], [255, 64]]
    found = read_image(save(tmp_path / "a.png", pixels), channels=channels)
    assert distance(found[..., 0], np.array([[255, 127], [0, 191]])) <= 1


def test_grey_with_transparency_lies_on_white(tmp_path):
    pixels = np.array([[[10, 255], [10, 0]]], np.uint8)
    image = Image.merge("LA", [Image.fromarray(pixels[..., i]) for i in (0, 1)])
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", channels=1).ravel().tolist() == [10, 255]


def test_16_bits_are_scaled_to_8_and_not_clipped(tmp_path):
    levels = np.array([[0, 255, 256, 1000, 32768, 65535]], np.uint16)
    found = read_image(save(tmp_path / "a.png", levels), channels=1)
    assert found.ravel().tolist() == [0, 1, 1, 4, 128, 255]


def test_all_16_bit_levels_go_to_the_nearest_of_8_bits(tmp_path):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = read_image(save(tmp_path / "a.tif", levels), channels=1)
    np.testing.assert_array_equal(found[..., 0], np.rint(levels / 257))


def test_a_grey_map_of_16_bits_is_scaled_too(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535))
    assert read_image(tmp_path / "a.pgm", channels=1).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_level_of_16_bits_lies_on_white(tmp_path, channels):
    pixels = b"\0" + struct.pack(">3H", 5, 6, 32768)
    (tmp_path / "a.png").write_bytes(png(3, 1, pixels, bits=16, transparent=5))
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["transparency"] == 5
    assert read_image(tmp_path / "a.png", channels=channels)[0, :, 0].tolist() == [255, 0, 128]


def test_levels_beyond_16_bits_are_refused(refusal, tmp_path):
    save(tmp_path / "a.tif", np.array([[0, 70000]], np.int32))
    assert refusal(None, "a.tif").startswith("has grey levels from 0 to 70000; expected 8 or 16 bits, 0 to 65535")


def test_floats_from_0_to_1_are_scaled(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0, 0.5, 1]], np.float32))
    assert read_image(path, channels=1).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan])
def test_other_floats_are_refused(refusal, tmp_path, bad):
    save(tmp_path / "a.tif", np.array([[0.5, bad]], np.float32))
    assert "floating-point grey levels" in refusal(None, "a.tif")


def test_one_bit_is_black_or_white(tmp_path):
    path = save(tmp_path / "a.png", np.array([[True, False]]))
    assert read_image(path, channels=1).ravel().tolist() == [255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path, orientation):
    stored = {  # how a camera would store it, so that a viewer shows GRADIENT
        1: GRADIENT,
        2: GRADIENT[:, ::-1],
        3: GRADIENT[::-1, ::-1],
        4: GRADIENT[::-1],
        5: GRADIENT.swapaxes(0, 1),
        6: np.rot90(GRADIENT, 1),
        7: GRADIENT[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(GRADIENT, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(read_image(path), GRADIENT)


# sizes


def test_an_image_of_the_right_size_keeps_every_pixel(tmp_path):
    pixels = RNG.integers(0, 256, (9, 7, 3), np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", pixels), size=(9, 7)), pixels)


@pytest.mark.parametrize("shape", [(30, 90), (90, 30)])
def test_of_a_longer_image_the_middle_is_taken(tmp_path, shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    middle = (slice(30, 60) if shape[0] == 90 else slice(None), slice(30, 60) if shape[1] == 90 else slice(None))
    pixels[middle] = 200
    found = read_image(save(tmp_path / "a.png", pixels), size=10)
    assert found.shape == (10, 10, 3)
    assert distance(found[1:-1, 1:-1], np.array(200)) <= 3
    assert found.min() > 150  # the filter looks a little beyond the edge


def test_nothing_is_distorted_when_height_and_width_differ(tmp_path):
    path = save(tmp_path / "a.png", GRADIENT)
    found = read_image(path, size=(10, 20)).astype(int)
    # 40 columns become 20, and 20 of the 30 rows, from 5 on, become 10: steps of 12 to the right and of 16 downwards
    assert distance(np.diff(found[1:-1, 1:-1, 0], axis=1), np.array(12)) <= 2
    assert distance(found[5, :, 1], np.array(8 * 15.5)) <= 2


def test_a_fine_pattern_becomes_its_mean_and_no_moire(tmp_path):
    checkers = (np.indices((280, 280)).sum(0) % 2 * 255).astype(np.uint8)
    found = read_image(save(tmp_path / "a.png", checkers), size=28, channels=1)
    assert distance(found, np.array(127)) <= 2


def test_a_smaller_image_is_enlarged(tmp_path):
    found = read_image(save(tmp_path / "a.png", np.full((3, 3, 3), 77, np.uint8)), size=28)
    assert found.shape == (28, 28, 3)
    assert (found == 77).all()


def test_a_large_photograph_shrinks_to_what_its_small_copy_shows(tmp_path):
    large = np.asarray(Image.fromarray(GRADIENT).resize((800, 600), Image.Resampling.BICUBIC))
    found = read_image(save(tmp_path / "a.jpg", large, quality=95), size=(30, 40))
    assert distance(found, GRADIENT) < 10


@pytest.mark.parametrize("times", [4, 8])
def test_a_photograph_shrinks_to_what_a_lossless_copy_does(tmp_path, times):
    large = RNG.integers(0, 256, (30, 40, 3), np.uint8).repeat(times, axis=0).repeat(times, axis=1)
    photograph = read_image(save(tmp_path / "a.jpg", large, quality=95, subsampling=0), size=(30, 40))
    lossless = read_image(save(tmp_path / "a.png", large), size=(30, 40))
    assert np.abs(photograph.astype(int) - lossless).mean() < 4


@pytest.mark.parametrize(("side", "averaged"), [(30, False), (600, True)])
def test_only_a_much_larger_image_is_averaged_before_it_is_filtered(tmp_path, monkeypatch, side, averaged):
    path, calls, reduce = save(tmp_path / "a.png", np.zeros((side, side), np.uint8)), [], Image.Image.reduce
    monkeypatch.setattr(
        Image.Image, "reduce", lambda *arguments, **named: calls.append(1) or reduce(*arguments, **named)
    )
    read_image(path, size=20, channels=1)
    assert bool(calls) == averaged


def test_a_very_long_image_needs_no_more_memory_than_its_own(tmp_path):
    path = save(tmp_path / "a.png", np.full((1, 200_000), 50, np.uint8))
    tracemalloc.start()
    try:
        found = read_image(path, size=28, channels=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found == 50).all()
    assert peak < 2_000_000


def test_the_array_can_be_written_to(tmp_path):
    assert read_image(save(tmp_path / "a.png", GRADIENT)).flags.writeable


# refusals


def test_a_missing_file_is_named(refusal):
    assert refusal(None) == (
        "cannot be read (No such file or directory); expected a readable file: check its name and permissions"
    )


def test_a_folder_is_no_image(refusal, tmp_path):
    (tmp_path / "some.png").mkdir()
    assert refusal(None).startswith("cannot be read (")


def test_a_name_with_a_zero_byte_is_refused():
    with pytest.raises(DataError, match=r"^a\\x00b: cannot be read \(.*null"):
        read_image("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(refusal, tmp_path):
    os.mkfifo(tmp_path / "some.png")
    said = refusal(None)
    assert said.startswith("cannot be read (a folder, a pipe or another special file); expected an ordinary file")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_link_to_an_image_is_read(tmp_path):
    (tmp_path / "link").symlink_to(save(tmp_path / "a.png", GRADIENT))
    np.testing.assert_array_equal(read_image(tmp_path / "link"), GRADIENT)


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be there")
def test_a_name_with_control_characters_is_one_line_of_plain_ones(tmp_path):
    (tmp_path / "a\n\x1b[31m.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"/a\\n\\x1b\[31m.png: empty file"):
        read_image(tmp_path / "a\n\x1b[31m.png")


def test_more_memory_than_there_is_is_one_line(refusal, monkeypatch, tmp_path):
    save(tmp_path / "some.png", GRADIENT)
    monkeypatch.setattr(Image, "open", lambda *arguments, **named: bytes(2**62))
    assert refusal(None) == (
        "needs more memory than there is; expected a file that fits into it: copy it again or leave it out"
    )


def test_an_empty_file_is_refused(refusal):
    assert refusal(b"") == "empty file; expected an image: copy it again or leave it out"


@pytest.mark.parametrize(
    "content", [b"hello", b"<!DOCTYPE html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_refused(refusal, content):
    assert refusal(content).startswith("not an image; expected one of BMP, GIF, JPEG, PNG")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path, refusal, name):
    whole = save(tmp_path / name, RNG.integers(0, 256, (16, 16, 3), np.uint8)).read_bytes()
    for length in range(0, len(whole) - 16, 37):
        assert refusal(whole[:length], name).split(";")[0].startswith(("damaged image (", "not an image", "empty file"))


def test_a_truncated_photograph_says_that_it_is_damaged(refusal, tmp_path):
    whole = save(tmp_path / "a.jpg", RNG.integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    said = refusal(whole[: len(whole) // 2], "a.jpg")
    assert said.startswith("damaged image (image file is truncated")
    assert said.endswith("expected a whole one: copy it again or leave it out")


@pytest.mark.parametrize("side", [9000, 10_000, 20_000, 2**31 - 1])
def test_a_bomb_is_refused_before_it_is_unpacked(refusal, side):
    bomb = png(side, side, bytes(10_000_000))
    assert len(bomb) < 20_000
    tracemalloc.start()
    try:
        said = refusal(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"expected at most {MAX_PIXELS:,} pixels: make it smaller or leave it out" in said
    assert peak < 1_000_000


MOST_BYTES = {  # a pixel, while a file is read: the copies in the modes on the way
    ("L", "png"): 5,
    ("P", "gif"): 9,
    ("RGB", "png"): 8,
    ("LA", "png"): 16,
    ("RGBA", "png"): 12,
    ("RGBA", "webp"): 16,
    ("I;16", "png"): 16,  # 11 where Pillow keeps 16 bits, as newer ones do
    ("I", "tiff"): 16,
    ("F", "tiff"): 16,
    ("CMYK", "tiff"): 12,
}


def test_a_large_image_takes_what_its_mode_costs_and_never_more_than_16_bytes_a_pixel(tmp_path):
    side, slack = 2000, 6 << 20  # the code of a decoder, and what the allocator rounds up and keeps
    calls, wanted = [], []
    for (mode, suffix), most in MOST_BYTES.items():
        path = tmp_path / f"{mode.replace(';', '')}.{suffix}"
        Image.new(mode, (side, side)).save(path)
        calls.append(f"read_image({str(path)!r}, 28)")
        wanted.append((path.name, most))
    imports = "from vitnp.data.images import read_image; import PIL.Image; PIL.Image.init()"
    for taken, (name, most) in zip(taken_by(calls, imports), wanted, strict=True):
        assert taken.said == ""
        assert taken.bytes < most * side**2 + slack, name
    assert max(MOST_BYTES.values()) * MAX_PIXELS < 1.03e9  # the 1 GB that images.py speaks of


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(refusal, width, height):
    assert refusal(png(width, height)).startswith("not an image; expected one of")


def test_a_stricter_limit_that_was_set_in_pillow_counts(refusal, monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    save(tmp_path / "some.png", GRADIENT)
    assert "exceeds limit of 1000 pixels" in refusal(None)


def test_damaged_notes_beside_good_pixels_neither_fail_nor_warn(tmp_path):
    path = save(
        tmp_path / "a.jpg", GRADIENT, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x09\xff\xff\xff\xff"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels is 2; expected 1 for grey or 3 for RGB"),
        ({"size": 0}, "height is 0; expected an integer of at least 1"),
        ({"size": (4, 5, 6)}, r"size is \(4, 5, 6\); expected a number of pixels or \(height, width\)"),
        ({"size": 2.5}, "height is 2.5; expected an integer"),
    ],
)
def test_a_size_that_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        read_image(save(tmp_path / "a.png", GRADIENT), **options)


# -- images in memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels"), [((6, 8), 3), ((6, 8), 1), (20, 3), ((5, 2), 1), ((7, 9), 3)])
@pytest.mark.parametrize("given", [1, 3])
def test_images_in_memory_are_fitted_as_files_are_read(tmp_path, size, channels, given):
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 9, given), np.uint8)
    found = fit_images(images, size, channels)
    for pixels, image in zip(found, images, strict=True):
        Image.fromarray(image if given == 3 else image[..., 0]).save(tmp_path / "image.png")
        np.testing.assert_array_equal(pixels, read_image(tmp_path / "image.png", size, channels))


def test_images_that_fit_already_are_the_same_array():
    images = np.zeros((2, 7, 9, 3), np.uint8)
    assert fit_images(images, (7, 9), 3) is images


@pytest.mark.parametrize(
    ("images", "channels"),
    [
        (np.zeros((2, 7, 9, 2), np.uint8), 3),
        (np.zeros((2, 7, 9, 3), np.uint8), 4),
        (np.zeros((7, 9, 3), np.uint8), 3),
        (np.zeros((2, 7, 9, 3)), 3),
    ],
)
def test_arrays_that_are_no_grey_or_rgb_images_are_refused(images, channels):
    with pytest.raises(DataError, match=r"expected uint8 \(n, H, W, C\), and 1 or 3 channels before and after"):
        fit_images(images, 5, channels)
