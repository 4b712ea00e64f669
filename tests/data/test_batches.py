"""Batches: the same after a resume, every image once an epoch, and exactly the promised arithmetic."""

import gc
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp.data import (
    Augmentation,
    Batches,
    DataError,
    Dataset,
    channel_statistics,
    fit_images,
    normalize,
    prepared_ahead,
)
from vitnp.data.augment import mixup
from vitnp.data.batches import CHANGE
from vitnp.data.dataset import random_stream

MEAN, STD = (0.25,), (0.5,)
PLAIN, SHIFTED, FAR = Augmentation(), Augmentation(shift=2), Augmentation(shift=4)
MIXED = Augmentation(distort=0.5, shift=1, mixup=0.4, cutmix=1.0)


def dataset(n=23, channels=1):
    images = np.random.default_rng(0).integers(0, 256, (n, 9, 8, channels), dtype=np.uint8)
    return Dataset(images, np.arange(n), tuple(str(i) for i in range(n)), "toy")  # the label is the position


def batches(**options):
    usual = {"dataset": dataset(), "batch_size": 5, "mean": MEAN, "std": STD, "augmentation": SHIFTED}
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
    of = batches(augmentation=PLAIN)
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
    of = batches(dataset=dataset(1), augmentation=FAR)
    shown = {next(of.epoch(epoch))[0].tobytes() for epoch in range(20)}
    assert len(shown) > 10


def test_steps_shift_the_same_image_differently():
    one = dataset(1)
    of = batches(dataset=one.subset([0] * 20), batch_size=1, augmentation=FAR)
    assert len({images.tobytes() for images, _ in of.epoch(0)}) > 10


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 5), st.sampled_from([PLAIN, SHIFTED, MIXED]))
def test_starting_late_gives_exactly_the_batches_of_an_uninterrupted_epoch(seed, epoch, start, augmentation):
    of = batches(seed=seed, augmentation=augmentation)
    whole, resumed = list(of.epoch(epoch))[start:], list(of.epoch(epoch, start))
    assert [(a.tobytes(), b.tobytes()) for a, b in whole] == [(a.tobytes(), b.tobytes()) for a, b in resumed]


def test_indices_say_which_images_are_in_a_batch():
    of = batches()
    for step, (_, labels) in enumerate(of.epoch(2)):
        np.testing.assert_array_equal(of.dataset.labels[of.indices(2, step)], labels)


def test_skipped_steps_are_not_computed(monkeypatch):
    computed = []
    monkeypatch.setattr(Augmentation, "change", lambda self, images, rng: computed.append(1) or images)
    list(batches().epoch(0, start=3))
    assert len(computed) == 2


def test_evaluation_batches_are_the_dataset_in_its_own_order():
    of = batches(shuffle=False, augmentation=PLAIN)
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
        ({"augmentation": Augmentation(shift=8)}, "shift is 8; expected an integer from 0 to 7"),
        ({"std": (0.0,)}, "expected finite numbers, and std above zero"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_batch(wrong, said):
    with pytest.raises(DataError, match=said):
        batches(**wrong)


def test_a_start_beyond_the_epoch_is_refused_at_the_call():
    with pytest.raises(DataError, match="start is 6; expected an integer from 0 to 5"):
        batches().epoch(0, start=6)


def test_mixed_batches_have_soft_labels():
    _, labels = next(batches(augmentation=MIXED).epoch(0))
    assert (labels.shape, labels.dtype) == ((5, 23), np.float32)
    assert 1 < (labels > 0).sum(1).max() <= 2


def test_steps_and_epochs_mix_the_same_images_differently():
    same = dataset().subset([0, 1, 2, 3] * 5)
    of = batches(dataset=same, batch_size=4, shuffle=False, augmentation=Augmentation(mixup=1))
    assert len({labels.tobytes() for epoch in range(2) for _, labels in of.epoch(epoch)}) == 10


def test_what_mixes_images_is_drawn_apart_from_what_changes_them():
    """Else a shift would tell which images are mixed, and how."""
    plain, moved = (batches(augmentation=Augmentation(shift=s, mixup=1.0)) for s in (0, 2))
    assert all(a[1].tobytes() == b[1].tobytes() for a, b in zip(plain.epoch(0), moved.epoch(0), strict=True))
    of = batches(augmentation=Augmentation(mixup=1.0))
    first = mixup(np.ones((5, 1, 1, 1), "f"), np.eye(5, 23, dtype="f"), random_stream(0, CHANGE, 0, 0), 1.0)[1]
    assert not np.array_equal(np.sort(next(of.epoch(0))[1]), np.sort(first))


# ahead of the step


def test_batches_prepared_ahead_are_the_same_in_the_same_order():
    of = batches(augmentation=MIXED)
    one, other = list(of.epoch(3)), list(prepared_ahead(of.epoch(3)))
    assert [(a.tobytes(), b.tobytes()) for a, b in one] == [(a.tobytes(), b.tobytes()) for a, b in other]


def test_the_next_batches_are_made_while_one_is_in_use():
    made, may_go_on = [], threading.Event()

    def items():
        for number in range(10):
            made.append(number)
            if number == 2:
                may_go_on.set()
            yield number

    ahead = prepared_ahead(items(), ahead=2)
    assert next(ahead) == 0
    assert may_go_on.wait(10)  # though nobody has asked for the second yet
    assert list(ahead) == list(range(1, 10))


def test_no_more_are_made_ahead_than_asked():
    made = []
    ahead = prepared_ahead((made.append(number) for number in range(100)), ahead=3)
    next(ahead)
    ahead.close()  # waits for the thread
    assert len(made) == 4


@pytest.mark.parametrize("ahead", [0, -1, 1.5])
def test_less_than_one_ahead_is_refused(ahead):
    with pytest.raises(DataError, match=f"ahead is {ahead}; expected an integer of at least 1"):
        next(prepared_ahead([1, 2], ahead))


def test_they_are_made_on_another_thread():
    threads = prepared_ahead(threading.get_ident() for _ in range(3))
    assert threading.get_ident() not in set(threads)


def test_an_error_while_preparing_reaches_the_loop():
    def items():
        yield 1
        raise DataError("the second cannot be read")

    ahead = prepared_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(DataError, match="the second cannot be read"):
        next(ahead)


def test_leaving_the_loop_early_ends_the_thread():
    before = set(threading.enumerate())  # of which some, of other tests, may end meanwhile
    for number in prepared_ahead(range(1000)):
        if number == 5:
            break
    gc.collect()
    assert not set(threading.enumerate()) - before


def test_batches_are_fitted_after_their_images_were_changed():
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 1), np.uint8)
    dataset = Dataset(images, np.arange(9) % 2, ("a", "b"), "nine")
    options = {"seed": 3, "augmentation": Augmentation(shift=2, flip=True)}
    plain = Batches(dataset, 4, mean=[0.0], std=[1 / 255], **options)
    fitted = Batches(dataset, 4, mean=[0.4] * 3, std=[0.2] * 3, fit=((12, 10), 3), **options)
    for (before, labels), (found, same_labels) in zip(plain.epoch(1), fitted.epoch(1), strict=True):
        truth = normalize(fit_images(np.rint(before).astype(np.uint8), (12, 10), 3), [0.4] * 3, [0.2] * 3)
        np.testing.assert_array_equal(found, truth)
        np.testing.assert_array_equal(labels, same_labels)
