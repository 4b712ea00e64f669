"""A Dataset is right once it is built, its parts are disjoint, and the folders come in the said order."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitnp.data.dataset import DataError, Dataset, data_roots, random_stream

DIGITS = tuple("0123456789")


def dataset(n=20, **replaced):
    """n images, image i all of grey level i, label i % 10."""
    fields = {
        "images": np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 5, 1)).copy(),
        "labels": np.arange(n) % 10,
        "class_names": DIGITS,
        "name": "toy",
    }
    return Dataset(**(fields | replaced))


def numbers(part):
    """Which of the images of `dataset` these are."""
    return part.images[:, 0, 0, 0].tolist()


def test_length_is_the_number_of_images():
    assert len(dataset(7)) == 7


def test_float_images_are_refused():
    with pytest.raises(DataError, match=r"toy: images are float32; expected a uint8 array"):
        dataset(images=np.zeros((20, 4, 5, 1), np.float32))


def test_a_list_of_images_is_refused():
    with pytest.raises(DataError, match="toy: images are list; expected a uint8 array"):
        dataset(images=[[0]])


def test_images_without_a_channel_axis_are_refused():
    with pytest.raises(DataError, match=r"shape \(20, 4, 5\); expected \(n, height, width, channels\)"):
        dataset(images=np.zeros((20, 4, 5), np.uint8))


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match=r"shape \(0, 4, 5, 1\); expected .* at least one image"):
        dataset(images=np.zeros((0, 4, 5, 1), np.uint8), labels=np.zeros(0, np.int64))


def test_channels_first_images_are_refused_with_the_transposition_that_mends_them():
    with pytest.raises(DataError, match=r"look like channels first; .* images.transpose\(0, 2, 3, 1\)"):
        dataset(images=np.zeros((20, 3, 32, 32), np.uint8))


@pytest.mark.parametrize("dtype", ["bool", "int32", "float64", "uint8"])
def test_labels_of_another_dtype_are_refused(dtype):
    with pytest.raises(DataError, match=f"labels are {dtype}; expected an int64 array"):
        dataset(labels=np.zeros(20, dtype))


def test_fewer_labels_than_images_are_refused():
    with pytest.raises(DataError, match=r"labels have shape \(19,\); expected \(20,\)"):
        dataset(labels=np.zeros(19, np.int64))


@pytest.mark.parametrize("bad", [-1, 10])
def test_a_label_outside_the_classes_is_refused_and_the_first_one_named(bad):
    labels = np.zeros(20, np.int64)
    labels[[13, 17]] = bad
    with pytest.raises(DataError, match=rf"labels\[13\] is {bad}; expected 0 to 9"):
        dataset(labels=labels)


def test_class_names_must_be_a_tuple():
    with pytest.raises(DataError, match="class_names is '0123456789'; expected a non-empty tuple"):
        dataset(class_names="0123456789")


def test_subset_keeps_the_given_order_and_the_labels_beside_their_images():
    part = dataset().subset([13, 2])
    assert (numbers(part), part.labels.tolist()) == ([13, 2], [3, 2])


@pytest.mark.parametrize("bad", [-1, 20])
def test_subset_names_the_first_index_that_is_outside(bad):
    with pytest.raises(DataError, match=rf"toy: indices\[1\] is {bad}; expected 0 to 19"):
        dataset().subset([0, bad])


def test_subset_refuses_a_mask_and_says_how_to_convert_it():
    with pytest.raises(DataError, match=r"dtype bool; expected integers: np\.flatnonzero"):
        dataset().subset(np.ones(20, bool))


def test_an_empty_subset_is_refused():
    with pytest.raises(DataError, match="expected a non-empty list"):
        dataset().subset([])


def test_split_is_a_partition():
    rest, held_out = dataset().split(6, seed=0)
    assert sorted(numbers(rest) + numbers(held_out)) == list(range(20))


def test_split_holds_out_as_many_as_asked():
    rest, held_out = dataset().split(6, seed=0)
    assert (len(rest), len(held_out)) == (14, 6)


def test_split_of_the_same_seed_is_the_same():
    assert numbers(dataset().split(6, seed=3)[1]) == numbers(dataset().split(6, seed=3)[1])


def test_split_of_another_seed_is_another():
    assert numbers(dataset().split(6, seed=3)[1]) != numbers(dataset().split(6, seed=4)[1])


@pytest.mark.parametrize("held_out", [0, 20, 2.5])
def test_split_refuses_to_leave_one_side_empty(held_out):
    with pytest.raises(DataError, match=f"held_out is {held_out}; expected an integer from 1 to 19"):
        dataset().split(held_out, seed=0)


def test_split_indices_say_which_images_are_in_each_part():
    made = dataset(9)
    rest, held_out = made.split(3, seed=0)
    for part, indices in zip((rest, held_out), made.split_indices(3, seed=0), strict=True):
        np.testing.assert_array_equal(part.images, made.images[indices])


def test_a_digest_is_that_of_images_labels_and_names_and_of_nothing_else():
    made = dataset(9)
    digest = made.digest()
    images, labels = made.images.copy(), made.labels.copy()
    images[8, 0, 0, 0] ^= 1
    labels[8] = (labels[8] + 1) % len(made.class_names)
    names = (*made.class_names[:-1], "other")
    others = [replace(made, images=images), replace(made, labels=labels), replace(made, class_names=names)]
    assert len({digest, *(other.digest() for other in others)}) == 4
    assert replace(made, name="other", images=np.asfortranarray(made.images)).digest() == digest


def test_streams_of_one_seed_do_not_repeat_each_other_when_a_key_ends_in_zero():
    assert random_stream(5, 1).integers(2**62) != random_stream(5, 1, 0).integers(2**62)


def test_a_negative_seed_is_refused():
    with pytest.raises(DataError, match="seed is -1; expected an integer of at least 0"):
        random_stream(-1)


def test_roots_are_the_argument_then_the_variable_then_the_cache(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("VITNP_DATA", "/from/variable")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_roots("/given") == [Path("/given"), Path("/from/variable"), Path("/cache/vitnp")]


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "/home/me/.cache/vitnp"),
        ("darwin", {}, "/home/me/Library/Caches/vitnp"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/vitnp"),
    ],
)
def test_the_cache_folder_is_the_one_of_the_platform(monkeypatch, platform, variables, expected):
    for name in ("VITNP_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert data_roots() == [Path(expected)]


def test_importing_the_package_does_not_import_pillow():
    code = "import sys, vitnp.data; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
