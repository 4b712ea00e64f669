"""CIFAR's pickles are read whoever wrote them; nothing in a pickle runs, or makes the machine allocate."""

import collections
import os
import pickle
import re
import struct
import tracemalloc

import numpy as np
import pytest

from vitnp.data import DataError, pickles
from vitnp.data.pickles import read_pickle

BATCH = {"data": np.arange(24, dtype=np.uint8).reshape(2, 12), "labels": [3, 7], "batch_label": "one of one"}


def python2(text):
    """A byte string as Python 2 wrote it."""
    data = text.encode("latin-1")
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def as_python2_wrote_it(data, labels, key="labels"):
    """The program that Python 2's cPickle wrote for {"data": array, key: list}, protocol 2."""
    code = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01b\x87Rq\x04"
    code += b"(K\x01" + b"".join(b"M" + struct.pack("<H", size) for size in data.shape) + b"\x86"
    code += b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    code += b"\x89" + python2(data.tobytes().decode("latin-1")) + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x00(" + python2("data") + code + python2(key) + listed + b"u."


def refusal(content):
    """What read_pickle says: one line that begins with the file."""
    with pytest.raises(DataError) as caught:
        read_pickle(content, "folder/data_batch_1", 2)
    assert str(caught.value).startswith("folder/data_batch_1: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("folder/data_batch_1: ")


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def test_a_batch_of_python_2_is_read():
    found = read_pickle(as_python2_wrote_it(BATCH["data"], BATCH["labels"]), "", 2)
    np.testing.assert_array_equal(found["data"], BATCH["data"])
    assert found["labels"] == [3, 7]


@pytest.mark.parametrize("protocol", range(6))
def test_a_batch_that_python_3_wrote_anew_is_read(protocol):
    found = read_pickle(pickle.dumps(BATCH, protocol), "", 2)
    np.testing.assert_array_equal(found["data"], BATCH["data"])
    assert found["labels"] == [3, 7]


@pytest.mark.parametrize("protocol", range(6))
def test_names_of_files_may_be_bytes_in_every_protocol(protocol):
    names = [b"%d.png" % i for i in range(1000)]
    batch = {b"data": BATCH["data"], b"labels": [300] * 1000, b"coarse_labels": [7] * 1000, b"filenames": names}
    assert read_pickle(pickle.dumps(batch, protocol), "", 1000)["filenames"] == names


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_can_not_be_written_to(protocol):
    assert not read_pickle(pickle.dumps(BATCH, protocol), "", 2)["data"].flags.writeable


def test_names_before_and_after_numpy_2_mean_the_same():
    content = pickle.dumps(BATCH, 3)
    assert b"numpy._core." in content or b"numpy.core." in content
    old = content.replace(b"numpy._core.", b"numpy.core.")
    np.testing.assert_array_equal(read_pickle(old, "", 2)["data"], BATCH["data"])


def test_sizes_that_python_2_wrote_as_long_integers_are_read():
    content = as_python2_wrote_it(BATCH["data"], []).replace(b"M\x02\x00M\x0c\x00", b"\x8a\x01\x02\x8a\x01\x0c")
    assert read_pickle(content, "", 2)["data"].shape == (2, 12)


def test_the_order_of_fortran_is_kept():
    transposed = np.asfortranarray(BATCH["data"])
    np.testing.assert_array_equal(read_pickle(pickle.dumps({"data": transposed}, 3), "", 2)["data"], BATCH["data"])


@pytest.mark.parametrize(
    "function", [os.system, eval, exec, __import__, getattr, open, np.fromfile, collections.OrderedDict]
)
def test_no_function_is_called(function):
    said = refusal(pickle.dumps({"data": Call(function, "touch evil")}, 2))
    assert re.search(rf"it would call \S*\b{function.__name__}\)", said)


def test_nothing_ran_before_the_refusal(tmp_path):
    refusal(pickle.dumps({"data": Call(os.mkdir, str(tmp_path / "evil"))}, 2))
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_objects_is_refused():
    assert "an array of 'O8', and not of bytes" in refusal(pickle.dumps({"data": np.array([None, {}])}, 3))


@pytest.mark.parametrize("dtype", ["float32", "int64", "U3", "V8", [("x", "u1")]])
def test_an_array_of_something_else_is_refused(dtype):
    assert "and not of bytes" in refusal(pickle.dumps({"data": np.zeros(2, dtype)}, 3))


@pytest.mark.parametrize("content", [[1], b"text", 3, None])
def test_what_is_no_dictionary_is_refused(content):
    assert f"holds a {type(content).__name__}" in refusal(pickle.dumps(content, 3))


def test_a_pickle_cut_anywhere_is_refused():
    content = as_python2_wrote_it(BATCH["data"], BATCH["labels"])
    assert all("; expected a pickle" in refusal(content[:length]) for length in range(len(content)))


def test_a_text_with_an_escape_that_there_is_not_is_refused_and_no_warning():
    refusal(b"c\\\xf9\nx\n.")


def test_an_empty_file_is_called_empty():
    assert refusal(b"").startswith("empty file; expected a pickle")


def test_a_web_page_is_recognised():
    assert refusal(b"<!DOCTYPE html>").startswith("looks like a web page; expected a pickle")


def test_an_array_with_fewer_bytes_than_its_shape_says_is_refused():
    content = as_python2_wrote_it(BATCH["data"], []).replace(b"M\x02\x00M\x0c\x00", b"M\x02\x00M\x0d\x00")
    assert "24 bytes for an array (2, 13)" in refusal(content)


def test_a_key_that_is_no_text_is_refused():
    assert "a tuple where a name is needed" in refusal(pickle.dumps({(1, 2): 3}, 3))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "object 2147483647 noted at byte 3"),
        (b"(p2147483647\n.", "object 2147483647 noted at byte 1"),
        (b"\x80\x02}(K\x01" + b"K\x01\x86" * 40 + b"u.", "40 tuples where at most 24 are needed"),
        (b"\x80\x02]" + b"]" * 3_000_000 + b".", "more than 1032 instructions"),
        (b"\x80\x02K\x012\x86.", "instruction DUP at byte 4"),
        (b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b".", "refused pickle ("),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", "refused pickle ("),
        (b"\x80\x02T\xff\xff\xff\x7f.", "refused pickle ("),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "refused pickle ("),
    ],
    ids=["memo", "memo in text", "tuples", "lists", "dup", "bytearray", "bytes", "string", "long"],
)
def test_a_few_bytes_cannot_make_much_memory(content, said):
    tracemalloc.start()
    try:
        found = refusal(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said in found
    assert peak < 1_000_000


@pytest.mark.parametrize("number", [b"\x8a\x08" + (2**61 - 1).to_bytes(8, "little"), b"I2305843009213693951\n"])
def test_integers_that_would_collide_in_a_dictionary_are_refused(number):
    assert "an integer of more than 32 bits at byte 4" in refusal(b"\x80\x02}(" + number + b"Nu.")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (b"h\x00h\x02h\x01h\x01\x87q\x01R", "an array that does not begin as NumPy's do"),
        (b"h\x03U\x02u1h\x01h\x01\x87q\x01R", "a type of array with other flags than numbers"),
        (b"h\x04(U\x00h\x05h\x06h\x01tq\x01R", "an array in another order than C or F"),
    ],
    ids=["reconstruct", "dtype", "frombuffer"],
)
def test_tuples_cannot_pass_for_the_arguments_of_a_call(call, said):
    code = b"cnumpy.core.multiarray\n_reconstruct\nq\x00K\x01q\x01cnumpy\nndarray\nq\x02cnumpy\ndtype\nq\x03"
    code += b"cnumpy.core.numeric\n_frombuffer\nq\x04h\x03U\x02u1\x85Rq\x05K\x00\x85q\x06"
    assert said in refusal(b"\x80\x02](" + code + call * 40 + b"e.")  # each holds the one before, most of them twice


def test_one_text_cannot_become_many_arrays():
    data = python2("x" * 24)
    code = as_python2_wrote_it(BATCH["data"], []).replace(python2(BATCH["data"].tobytes().decode("latin-1")), data)
    assert read_pickle(code, "", 2)["data"].shape == (2, 12)
    text = b"X" + struct.pack("<I", 24) + b"x" * 24
    assert "an array, and not of bytes" in refusal(code.replace(data, text))


def test_more_memory_than_there_is_is_one_line(monkeypatch):
    monkeypatch.setattr("vitnp.data.pickles._check_instructions", lambda *arguments: bytes(2**62))
    assert refusal(b"x").startswith("needs more memory than there is; expected a file that fits into it")


def test_a_text_encoded_again_and_again_cannot_make_much_memory():
    text = b"X" + struct.pack("<I", 100_000) + b"x" * 100_000
    again = b"c_codecs\nencode\nq\x01" + b"(" + text + b"X\x06\x00\x00\x00latin1tq\x02R" + b"h\x01h\x02R" * 100
    tracemalloc.start()
    try:
        found = refusal(b"\x80\x02](" + again + b"e.")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "it would grow beyond its size" in found
    assert peak < 2_000_000


def test_a_text_in_another_encoding_is_refused():
    import codecs

    assert "in another encoding" in refusal(pickle.dumps({"data": Call(codecs.encode, "x" * 9, "utf-16")}, 2))


@pytest.mark.parametrize(
    "function", ["_codecs\nencode", "numpy.core.multiarray\n_reconstruct", "numpy.core.numeric\n_frombuffer"]
)
def test_no_function_can_be_changed_for_the_next_pickle(function):
    name = b"X\x0c\x00\x00\x00__defaults__K\x01s"
    for state in (b"N}" + name + b"\x86", b"}" + name, b"}" + name + b"N\x86"):
        refusal(b"\x80\x02c" + function.encode() + b"\n" + state + b"b.")
    for kept in (pickles._empty_array, pickles._array_of, pickles._Unpickler._encode):
        assert (kept.__defaults__, kept.__dict__) == (None, {})
