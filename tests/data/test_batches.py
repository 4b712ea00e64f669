"""Batches: the same after a resume, every image once an epoch, and exactly the promised arithmetic."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp.data import Batches, DataError, Dataset, channel_statistics, normalize, shift

MEAN, STD = (0.25,), (0.5,)


def dataset(n=23, channels=1):
    images = np.random.default_rng(0).integers(0, 256, (n, 9, 8, channels), dtype=np.uint8)
    return Dataset(images, np.arange(n), tuple(str(i) for i in range(n)), "toy")  # the label is the position


def batches(**options):
    usual = {"dataset": dataset(), "batch_size": 5, "mean": MEAN, "std": STD, "max_shift": 2}
    return Batches(**(usual | options))


def order(of, epoch=0):
    return [label for _, labels in of.epoch(epoch) for label in labels.tolist()]


# statistics


def test_statistics_are_those_of_numpy_in_float64():
    images = dataset(channels=3).images
    mean, std = channel_statistics(images)
    expected = images.reshape(-1, 3) / 255
    np.testing.assert_allclose([mean, std], [expected.mean(0), expected.std(0)], rtol=1e-14)


def test_a_constant_channel_has_a_deviation_of_exactly_zero():
    assert channel_statistics(np.full((3000, 7, 7, 1), 77, np.uint8)) == ((77 / 255,), (0.0,))


def test_statistics_take_little_memory():
    images = np.zeros((20_000, 28, 28, 1), np.uint8)
    tracemalloc.start()
    try:
        channel_statistics(images)
        assert tracemalloc.get_traced_memory()[1] < images.nbytes
    finally:
        tracemalloc.stop()


def test_statistics_of_float_images_are_refused():
    with pytest.raises(DataError, match="images are float32"):
        channel_statistics(np.zeros((2, 4, 4, 1), np.float32))


# normalisation


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
def test_normalize_subtracts_the_mean_and_divides_by_the_deviation(dtype, tolerance):
    images, mean, std = dataset(channels=3).images, (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images / 255 - mean) / std
    np.testing.assert_allclose(normalize(images, mean, std, dtype), expected, rtol=0, atol=tolerance * 5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_normalize_returns_the_dtype_asked_for(dtype):
    assert normalize(dataset().images, MEAN, STD, dtype).dtype == dtype


def test_normalize_makes_no_float64_temporary():
    images = np.zeros((500, 28, 28, 1), np.uint8)
    tracemalloc.start()
    try:
        out = normalize(images, MEAN, STD, "float32")
        assert tracemalloc.get_traced_memory()[1] < 1.2 * out.nbytes
    finally:
        tracemalloc.stop()


def test_a_dataset_normalised_by_its_own_statistics_has_mean_0_and_deviation_1():
    images = dataset(channels=3).images
    out = normalize(images, *channel_statistics(images), "float64").reshape(-1, 3)
    np.testing.assert_allclose([out.mean(0), out.std(0)], [[0] * 3, [1] * 3], atol=1e-12)


def test_images_that_are_already_float_are_not_normalised_again():
    with pytest.raises(DataError, match="dtype float32; expected uint8: were they normalised already"):
        normalize(np.zeros((2, 4, 4, 1), np.float32), MEAN, STD)


def test_an_integer_dtype_is_refused():
    with pytest.raises(DataError, match="dtype is int32; expected a floating-point type"):
        normalize(dataset().images, MEAN, STD, "int32")


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deviation_that_cannot_be_divided_by_is_refused(std):
    with pytest.raises(DataError, match="expected finite numbers, and std above zero"):
        normalize(dataset().images, MEAN, (std,))


def test_as_many_means_as_channels_are_needed():
    with pytest.raises(DataError, match="expected 3 numbers in each, one per channel"):
        normalize(dataset(channels=3).images, MEAN, STD)


# shifting


def moved(image, dy, dx):
    """The plain definition, for one image (H, W, C)."""
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - dy < height and 0 <= x - dx < width:
                out[y, x] = image[y - dy, x - dx]
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_moved_by_whole_pixels_within_the_limit(channels):
    images = dataset(channels=channels).images
    distances = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    for before, after in zip(images, shift(images, np.random.default_rng(0), 2), strict=True):
        assert sum(np.array_equal(moved(before, *distance), after) for distance in distances) == 1


def test_every_distance_occurs_about_as_often():
    images = np.zeros((25_000, 5, 5, 1), np.uint8)
    images[:, 2, 2] = 255
    landed = shift(images, np.random.default_rng(0), 2).astype(bool).sum(axis=0)
    assert abs(landed - 1_000).max() < 150  # 4.8 standard deviations


def test_shift_leaves_its_argument_as_it_was():
    images = dataset().images
    before = images.copy()
    shift(images, np.random.default_rng(0), 3)
    np.testing.assert_array_equal(images, before)


def test_a_shift_of_zero_changes_nothing():
    images = dataset().images
    np.testing.assert_array_equal(shift(images, np.random.default_rng(0), 0), images)


@pytest.mark.parametrize("max_shift", [-1, 8, 1.5])
def test_a_shift_out_of_the_picture_is_refused(max_shift):
    with pytest.raises(DataError, match=f"max_shift is {max_shift}; expected an integer from 0 to 7"):
        shift(dataset().images, np.random.default_rng(0), max_shift)


# epochs


def test_an_epoch_shows_every_image_once():
    assert sorted(order(batches())) == list(range(23))


def test_the_last_batch_is_kept_even_if_smaller():
    assert [len(labels) for _, labels in batches().epoch(0)] == [5, 5, 5, 5, 3]


def test_a_batch_size_beyond_the_dataset_gives_one_batch():
    assert batches(batch_size=100).steps_per_epoch == 1


def test_there_are_as_many_batches_as_steps_per_epoch():
    assert len(list(batches().epoch(0))) == batches().steps_per_epoch == 5


def test_labels_stay_with_their_images():
    of = batches(max_shift=0)
    for images, labels in of.epoch(0):
        np.testing.assert_array_equal(images, normalize(of.dataset.images[labels], MEAN, STD))


def test_epochs_have_different_orders():
    assert order(batches(), epoch=0) != order(batches(), epoch=1)


def test_seeds_have_different_orders():
    assert order(batches(seed=0)) != order(batches(seed=1))


def test_an_epoch_is_the_same_whatever_was_drawn_before():
    used = batches()
    list(used.epoch(0))
    assert order(used, epoch=3) == order(batches(), epoch=3)


def test_epochs_shift_the_same_image_differently():
    of = batches(dataset=dataset(1), max_shift=4)
    shown = {next(of.epoch(epoch))[0].tobytes() for epoch in range(20)}
    assert len(shown) > 10


def test_steps_shift_the_same_image_differently():
    one = dataset(1)
    of = batches(dataset=one.subset([0] * 20), batch_size=1, max_shift=4)
    assert len({images.tobytes() for images, _ in of.epoch(0)}) > 10


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 5), st.integers(0, 7))
def test_starting_late_gives_exactly_the_batches_of_an_uninterrupted_epoch(seed, epoch, start, max_shift):
    of = batches(seed=seed, max_shift=max_shift)
    whole, resumed = list(of.epoch(epoch))[start:], list(of.epoch(epoch, start))
    assert [(a.tobytes(), b.tobytes()) for a, b in whole] == [(a.tobytes(), b.tobytes()) for a, b in resumed]


def test_skipped_steps_are_not_computed(monkeypatch):
    computed = []
    monkeypatch.setattr("vitnp.data.batches.shift", lambda images, *_: computed.append(1) or images)
    list(batches().epoch(0, start=3))
    assert len(computed) == 2


def test_evaluation_batches_are_the_dataset_in_its_own_order():
    of = batches(shuffle=False, max_shift=0)
    shown = np.concatenate([images for images, _ in of.epoch(0)])
    np.testing.assert_array_equal(shown, normalize(of.dataset.images, MEAN, STD))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batches_have_the_dtype_asked_for(dtype):
    images, labels = next(batches(dtype=dtype).epoch(0))
    assert (images.dtype, labels.dtype) == (dtype, np.int64)


def test_making_batches_leaves_the_dataset_as_it_was():
    of = batches()
    before = of.dataset.images.copy()
    for images, _ in of.epoch(0):
        images[:] = 0
    np.testing.assert_array_equal(of.dataset.images, before)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
        ({"seed": -3}, "seed is -3; expected an integer of at least 0"),
        ({"max_shift": 8}, "max_shift is 8; expected an integer from 0 to 7"),
        ({"std": (0.0,)}, "expected finite numbers, and std above zero"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_batch(wrong, said):
    with pytest.raises(DataError, match=said):
        batches(**wrong)


def test_a_start_beyond_the_epoch_is_refused_at_the_call():
    with pytest.raises(DataError, match="start is 6; expected an integer from 0 to 5"):
        batches().epoch(0, start=6)
