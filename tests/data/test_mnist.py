"""IDX files that are damaged, exchanged or not MNIST are refused in one line; real ones are read exactly."""

import gzip
import hashlib
import os
import struct
import tracemalloc

import numpy as np
import pytest

from vitnp.data import DataError, channel_statistics, find_mnist, load_mnist, read_idx
from vitnp.data.mnist import SHA256

SHAPE = (5, 4, 3)
ENTRIES = np.arange(60, dtype=np.uint8).reshape(SHAPE)
needs_mnist = pytest.mark.skipif(
    not os.environ.get("VITNP_DATA"), reason="VITNP_DATA is unset; expected a folder with the MNIST files"
)


def idx(entries, code=8):
    header = bytes([0, 0, code, entries.ndim]) + struct.pack(f">{entries.ndim}I", *entries.shape)
    return header + entries.tobytes()


@pytest.fixture
def refusal(tmp_path):
    """What read_idx says about a file with this content: one line that begins with the file."""

    def said(content, shape=SHAPE):
        path = tmp_path / "some-idx3-ubyte.gz"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_idx(path, shape)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{path}: ")

    return said


# reading


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_entries_are_read_from_either_kind_of_file_whatever_its_name(tmp_path, pack):
    path = tmp_path / "some-idx3-ubyte.gz"
    path.write_bytes(pack(idx(ENTRIES)))
    np.testing.assert_array_equal(read_idx(path, SHAPE), ENTRIES)


def test_labels_have_one_dimension(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(idx(np.arange(7, dtype=np.uint8)))
    assert read_idx(path, (7,)).tolist() == list(range(7))


# damaged files


def test_a_truncated_file_names_file_found_and_expected(refusal):
    assert refusal(idx(ENTRIES)[:-1]) == "truncated, 75 bytes uncompressed; expected 76: download it again"


@pytest.mark.parametrize("length", range(1, 76))
def test_a_file_cut_anywhere_is_refused(refusal, length):
    assert "download it again" in refusal(idx(ENTRIES)[:length])


def test_an_archive_cut_anywhere_is_refused(refusal):
    whole = gzip.compress(idx(ENTRIES))
    assert all("download it again" in refusal(whole[:length]) for length in range(len(whole)))


def test_trailing_bytes_are_refused(refusal):
    assert refusal(idx(ENTRIES) + b"x").startswith("goes on after byte 76, uncompressed; expected exactly 76")


def test_a_second_archive_behind_the_first_is_refused(refusal):
    assert "goes on after byte 76" in refusal(gzip.compress(idx(ENTRIES)) * 2)


def test_garbage_behind_an_archive_is_refused(refusal):
    assert "damaged gzip archive" in refusal(gzip.compress(idx(ENTRIES)) + b"garbage")


def test_a_wrong_checksum_is_refused(refusal):
    archive = bytearray(gzip.compress(idx(ENTRIES)))
    archive[-8] ^= 1
    assert refusal(bytes(archive)).startswith("damaged gzip archive (CRC check failed")


def test_an_empty_file_is_refused(refusal):
    assert refusal(b"").startswith("empty file; expected 00 00 08 03")


def test_a_web_page_in_place_of_the_archive_is_recognised(refusal):
    assert refusal(b"\n<!DOCTYPE html><html>").startswith("looks like a web page; expected 00 00 08")


def test_another_kind_of_file_is_told_by_its_first_bytes(refusal):
    assert refusal(b"PK\3\4" + bytes(100)).startswith("begins with 50 4b 03 04; expected 00 00 08 03")


def test_labels_given_as_images_are_recognised(refusal):
    said = refusal(idx(np.zeros(60, np.uint8)))
    assert said == (
        "begins with 00 00 08 01, an IDX file of labels; "
        "expected 00 00 08 03, an IDX file of images: were two files exchanged?"
    )


def test_images_given_as_labels_are_recognised(refusal):
    assert "an IDX file of images; expected 00 00 08 01, an IDX file of" in refusal(idx(ENTRIES), (60,))


def test_float_entries_are_refused(refusal):
    assert "byte 2 means entries of type float32; expected 00 00 08 03" in refusal(idx(ENTRIES, code=13))


def test_one_image_too_few_is_refused_by_its_header(refusal):
    assert refusal(idx(ENTRIES[1:])).startswith("bytes 4 to 15 give the sizes (4, 4, 3); expected (5, 4, 3)")


def test_a_header_that_promises_terabytes_allocates_nothing(refusal):
    said = refusal(b"\0\0\x08\3" + b"\xff" * 12 + bytes(60))
    assert said.startswith(f"bytes 4 to 15 give the sizes {(2**32 - 1,) * 3}; expected")


def test_an_archive_that_unpacks_without_end_is_read_to_its_proper_length_only(refusal):
    bomb = gzip.compress(idx(ENTRIES) + bytes(100_000_000), compresslevel=1)
    tracemalloc.start()
    try:
        said = refusal(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said.startswith("goes on after byte 76")
    assert peak < 2_000_000 + 2 * len(bomb)


def test_a_file_that_cannot_be_read_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: cannot be read \(No such file or directory\)"):
        read_idx(tmp_path / "nowhere", SHAPE)


# finding


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No folder but the one given: neither the variable nor the cache leads anywhere."""
    monkeypatch.delenv("VITNP_DATA", raising=False)
    for variable in ("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "no-cache"))


def put(folder, names=SHA256, suffix=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / (name + suffix)).write_bytes(b"")


@pytest.mark.parametrize("below", [".", "mnist", "MNIST/raw", "raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_are_found_in_every_usual_layout(alone, tmp_path, below, suffix):
    put(tmp_path / below, suffix=suffix)
    assert find_mnist(tmp_path) == {name: tmp_path / below / (name + suffix) for name in SHA256}


def test_files_are_found_through_the_variable(alone, monkeypatch, tmp_path):
    put(tmp_path / "elsewhere")
    monkeypatch.setenv("VITNP_DATA", str(tmp_path / "elsewhere"))
    assert {path.parent for path in find_mnist().values()} == {tmp_path / "elsewhere"}


def test_the_given_folder_comes_before_the_variable(alone, monkeypatch, tmp_path):
    put(tmp_path / "given")
    put(tmp_path / "elsewhere")
    monkeypatch.setenv("VITNP_DATA", str(tmp_path / "elsewhere"))
    assert {path.parent for path in find_mnist(tmp_path / "given").values()} == {tmp_path / "given"}


def test_fashion_mnist_beside_mnist_is_not_taken_for_it(alone, tmp_path):
    put(tmp_path / "FashionMNIST" / "raw")
    put(tmp_path / "MNIST" / "raw")
    assert {path.parent for path in find_mnist(tmp_path).values()} == {tmp_path / "MNIST" / "raw"}


@pytest.mark.parametrize(
    "said", ["{folder}", "no-cache", "MNIST/raw", *SHA256, "train_digits.py, which needs no files"]
)
def test_without_files_the_error_says_where_it_looked_and_what_to_put_there(alone, tmp_path, said):
    with pytest.raises(DataError) as caught:
        find_mnist(tmp_path)
    assert said.format(folder=tmp_path) in str(caught.value)


def test_an_incomplete_folder_is_named_with_what_it_lacks(alone, tmp_path):
    first, *others = SHA256
    put(tmp_path / "mnist", others)
    with pytest.raises(DataError) as caught:
        find_mnist(tmp_path)
    assert f"{tmp_path / 'mnist'} lacks {first}: put" in str(caught.value)


def test_a_given_folder_that_does_not_exist_is_not_passed_over(alone, tmp_path):
    with pytest.raises(DataError, match="typo is not a folder"):
        find_mnist(tmp_path / "typo")


# telling MNIST from its doubles


@pytest.fixture
def double(alone, tmp_path):
    """A folder with test files of the right names, sizes and structure, but black images and these labels."""

    def make(labels):
        put(tmp_path)
        images = idx(np.zeros((10_000, 28, 28), np.uint8))
        (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, compresslevel=1))
        (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
        return tmp_path

    return make


def test_well_formed_files_that_are_not_mnist_are_refused_with_both_digests(double):
    folder = double(np.zeros(10_000, np.uint8))
    expected = SHA256["t10k-images-idx3-ubyte"]
    with pytest.raises(DataError, match=f"has SHA-256 [0-9a-f]{{64}}; expected {expected}"):
        load_mnist("test", folder)


def test_a_label_above_9_is_named_by_file_and_position(double, monkeypatch):
    labels = np.zeros(10_000, np.uint8)
    labels[[42, 77]] = 10
    folder = double(labels)
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    monkeypatch.setitem(SHA256, "t10k-images-idx3-ubyte", hashlib.sha256(images).hexdigest())
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz: label 42 is 10; expected 0 to 9"):
        load_mnist("test", folder)


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="split is 'val'; expected 'train' or 'test'"):
        load_mnist("val")


@needs_mnist
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_the_real_files_hold_as_many_images_as_the_paper_says(split, count):
    assert load_mnist(split).images.shape == (count, 28, 28, 1)


@needs_mnist
def test_the_first_labels_of_the_real_files_are_the_well_known_ones():
    assert load_mnist("train").labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@needs_mnist
def test_the_statistics_of_the_real_files_are_the_well_known_ones():
    mean, std = channel_statistics(load_mnist("train").images)
    assert (round(mean[0], 4), round(std[0], 4)) == (0.1307, 0.3081)
