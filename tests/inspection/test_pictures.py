"""The pictures: what stands where, and that no file is written over."""

import numpy as np
import pytest
from PIL import Image

from vitnp.inspection import check_new_picture, mistakes_picture, prediction_picture
from vitnp.inspection.pictures import BLUE, GREEN, RED

NAMES = ("cat", "dog", "owl")


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"), int)


def coloured(picture, colour):
    """The rows and columns of what is drawn in a colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return np.nonzero((picture == (red, green, blue)).all(-1))


def width(picture, colour, part=slice(None)):
    columns = coloured(picture[part], colour)[1]
    return columns.max() - columns.min() + 1 if len(columns) else 0


def grey(levels, channels=1, height=6, columns=6):
    return np.stack([np.full((height, columns, channels), level, np.uint8) for level in levels])


def predictions(path, **options):
    probabilities = np.array([[0.2, 0.75, 0.05], [1.0, 0.0, 0.0]])
    prediction_picture(grey([10, 200]), probabilities, NAMES, ["a.png", "b.png"], path, **options)
    return pixels(path)


def test_bars_are_as_long_as_the_probabilities(tmp_path):
    picture = predictions(tmp_path / "p.png", top=1, columns=1)
    half = len(picture) // 2
    first, second = width(picture, BLUE, slice(0, half)), width(picture, BLUE, slice(half, None))
    assert first / second == pytest.approx(0.75, abs=0.02)


def test_each_image_stands_beside_its_bars(tmp_path):
    picture = predictions(tmp_path / "p.png", columns=1)
    half = len(picture) // 2
    assert (picture[half - 30, 50] == 10).all()
    assert (picture[2 * half - 40, 50] == 200).all()


def test_as_many_classes_are_shown_as_asked_for(tmp_path):
    one, three = (predictions(tmp_path / f"{top}.png", top=top, columns=1) for top in (1, 3))
    starts = [np.diff(np.unique(coloured(picture[:160], BLUE)[0])) for picture in (one, three)]
    assert [(gaps > 1).sum() + 1 for gaps in starts] == [1, 3]


def test_more_classes_than_there_are_is_all_of_them(tmp_path):
    np.testing.assert_array_equal(predictions(tmp_path / "a.png", top=9), predictions(tmp_path / "b.png", top=3))


def test_many_bars_stay_within_their_cell(tmp_path):
    probabilities = np.full((2, 10), 0.1)
    path = tmp_path / "p.png"
    prediction_picture(grey([0, 0]), probabilities, "abcdefghij", ["", ""], path, top=10, columns=1)
    rows = np.unique(coloured(pixels(path), BLUE)[0])
    assert ((np.diff(rows) > 1).sum() + 1) == 20


def test_maps_of_attention_stand_beside_their_images(tmp_path):
    maps = np.zeros((2, 2, 2))
    maps[:, 0, 0] = 1
    picture = predictions(tmp_path / "p.png", maps=maps, columns=1)
    assert picture[50, 150, 0] > picture[150, 250, 0] + 50  # yellow in the upper left, blue in the lower right


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(6, 12), (12, 6), (300, 300)])
def test_oblong_and_large_images_keep_their_shape(tmp_path, channels, shape):
    path = tmp_path / "p.png"
    prediction_picture(grey([7], channels, *shape), np.eye(1, 3), NAMES, ["x"], path)
    rows, columns = np.nonzero((pixels(path) == 7).all(-1))
    ratio = (np.ptp(columns) + 1) / (np.ptp(rows) + 1)
    assert ratio == pytest.approx(shape[1] / shape[0], rel=0.02)


def test_a_long_name_is_shortened_and_does_not_run_into_the_next_cell(tmp_path):
    names = ("an extraordinarily long name of a class that nobody will read to its end",) * 2
    for i, caption in enumerate(["short", "captions can be long, as well, " * 9 + "\nof two lines"]):
        prediction_picture(grey([0]), np.full((1, 2), 0.5), names, [caption], tmp_path / f"{i}.png")
    short, long = pixels(tmp_path / "0.png"), pixels(tmp_path / "1.png")
    assert short.shape == long.shape
    assert (long[:, -10:] == 255).all()
    np.testing.assert_array_equal(short[40:], long[40:])


def test_a_mistake_shows_what_it_was_taken_for_in_red_and_what_it_is_in_green(tmp_path):
    path = tmp_path / "p.png"
    mistakes_picture(grey([0]), np.array([2]), np.array([[0.1, 0.8, 0.1]]), NAMES, ["x"], path)
    picture = pixels(path)
    assert width(picture, RED) / width(picture, GREEN) == pytest.approx(8, rel=0.1)
    assert coloured(picture, RED)[0].max() < coloured(picture, GREEN)[0].min()


def test_a_file_that_exists_is_left_as_it_is(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"p.png: exists already; expected a new file"):
        predictions(path)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [("p.jpg", "expected a name that ends in .png"), ("no/p.png", "no: there is no such folder")],
)
def test_a_picture_that_cannot_be_written_is_told_beforehand(tmp_path, name, message):
    with pytest.raises((ValueError, OSError), match=message):
        check_new_picture(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
