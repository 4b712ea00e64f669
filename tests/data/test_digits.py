"""The rendered digits: reproducible, the same for any n, fast to make, and beyond a linear classifier."""

import time

import numpy as np
import pytest

from vitnp.data import DataError, load_digits


@pytest.fixture(scope="module")
def training():
    return load_digits(20_000, seed=0)


@pytest.fixture(scope="module")
def linear_accuracy(training):
    """Share of 2,000 unseen digits that ridge regression onto one-hot labels, solved exactly, gets right."""
    unseen = load_digits(2_000, seed=1)
    x, x_unseen = (
        np.c_[part.images.reshape(len(part), -1) / np.float32(255), np.ones((len(part), 1), np.float32)]
        for part in (training, unseen)
    )
    weight = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ np.eye(10)[training.labels])
    return ((x_unseen @ weight).argmax(1) == unseen.labels).mean()


def test_a_linear_classifier_stays_under_65_percent(linear_accuracy):
    assert linear_accuracy < 0.65


def test_labels_belong_to_their_pictures(linear_accuracy):
    assert linear_accuracy > 0.3  # three times as many as by chance


def test_the_same_seed_gives_the_same_bytes():
    first, again = load_digits(600, seed=7), load_digits(600, seed=7)
    assert first.images.tobytes() == again.images.tobytes()


def test_another_seed_gives_other_pictures():
    first, other = load_digits(600, seed=7), load_digits(600, seed=8)
    assert not (first.images == other.images).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("n", [1, 250, 251, 499])
def test_fewer_digits_are_the_beginning_of_more(training, n):
    few = load_digits(n, seed=0)
    np.testing.assert_array_equal(few.images, training.images[:n])


def test_no_picture_occurs_twice(training):
    assert len(np.unique(training.images.reshape(len(training), -1), axis=0)) == len(training)


def test_every_class_is_about_as_frequent(training):
    assert abs(np.bincount(training.labels, minlength=10) - 2_000).max() < 200  # 4.7 standard deviations


def test_a_digit_may_lie_anywhere_but_is_seldom_cut_off(training):
    """Ink is what noise cannot be. In nine pictures of ten there is none on the outermost pixels."""
    ink = training.images[..., 0] > 80
    edge = ink.copy()
    edge[:, 1:-1, 1:-1] = False
    assert edge.any(axis=(1, 2)).mean() < 0.1


def test_pictures_are_grey_uint8_of_28_by_28():
    digits = load_digits(3)
    assert (digits.images.shape, digits.images.dtype) == ((3, 28, 28, 1), np.uint8)


def test_20_000_digits_take_less_than_3_seconds_of_processor_time():
    load_digits(1)  # draws the characters
    start = time.process_time()
    load_digits(20_000, seed=5)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_a_count_that_is_not_positive_is_refused(n):
    with pytest.raises(DataError, match=f"n is {n}; expected an integer of at least 1"):
        load_digits(n)
