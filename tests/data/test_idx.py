"""IDX files are read exactly; damaged, exchanged and foreign ones are refused in one line."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from vitnp.data import DataError, read_idx

SHAPE = (5, 4, 3)
ENTRIES = np.arange(60, dtype=np.uint8).reshape(SHAPE)


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
    assert (
        refusal(idx(ENTRIES)[:-1]) == "truncated, 75 bytes uncompressed; expected 76: remove it and download it again"
    )


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


def test_a_plain_file_without_end_is_read_to_its_proper_length_only(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(idx(ENTRIES))
        file.truncate(100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="goes on after byte 76"):
            read_idx(path, SHAPE)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_file_that_cannot_be_read_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: cannot be read \(No such file or directory\)"):
        read_idx(tmp_path / "nowhere", SHAPE)
