"""MNIST and Fashion-MNIST are found in every usual place and told apart by content; the wrong files are refused."""

import gzip
import hashlib
import io
import os
import zipfile

import numpy as np
import pytest
from resident import add_bomb, taken_by

from vitnp.data import DataError, DataNotice, channel_statistics, load_fashion_mnist, load_mnist
from vitnp.data import mnist as module
from vitnp.data.idx import idx_header

FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
needs_mnist = pytest.mark.skipif(
    not os.environ.get("VITNP_DATA"), reason="VITNP_DATA is unset; expected a folder with the MNIST files"
)


def contents(seed):
    """The four files of a data set of 30 training and 20 test images, by name."""
    rng = np.random.default_rng(seed)
    arrays = []
    for count in (30, 20):
        arrays += [rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count, np.uint8)]
    return {name: idx_header(array.shape) + array.tobytes() for name, array in zip(FILES, arrays, strict=True)}


DIGITS, CLOTHES, OTHERS = contents(1), contents(2), contents(3)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Sets of 50 images whose digests are known, and no folder but those that a test names."""
    for name, count in zip(FILES, (30, 30, 20, 20), strict=True):
        monkeypatch.setitem(module.SHAPES, name, (count, 28, 28) if "images" in name else (count,))
    known = {hashlib.sha256(DIGITS[name]).hexdigest(): ("MNIST", name) for name in FILES}
    known |= {hashlib.md5(CLOTHES[name]).hexdigest(): ("Fashion-MNIST", name) for name in FILES}
    monkeypatch.setattr(module, "KNOWN", known)
    for variable in ("VITNP_DATA", "KERAS_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "no-cache"))


def put(folder, files, pack=gzip.compress):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + (".gz" if pack is gzip.compress else ""))).write_bytes(pack(content))


def pixels(files, split):
    name = {"train": FILES[0], "test": FILES[2]}[split]
    return np.frombuffer(files[name], np.uint8, offset=16).reshape(-1, 28, 28, 1)


def refusal(load, *arguments):
    """The one line that the call says instead of loading."""
    with pytest.raises(DataError) as caught:
        load(*arguments, download=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# where files are found


@pytest.mark.parametrize("below", ["MNIST/raw", "mnist", ".", "raw"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_mnist_is_found_in_every_usual_layout(tmp_path, below, pack):
    put(tmp_path / below, DIGITS, pack)
    np.testing.assert_array_equal(load_mnist("test", tmp_path, download=False).images, pixels(DIGITS, "test"))


@pytest.mark.parametrize("below", ["FashionMNIST/raw", "fashion-mnist", "fashion", ".", "raw"])
def test_fashion_mnist_is_found_in_every_usual_layout(tmp_path, below):
    put(tmp_path / below, CLOTHES)
    found = load_fashion_mnist("train", tmp_path, download=False)
    np.testing.assert_array_equal(found.images, pixels(CLOTHES, "train"))


def test_labels_are_those_of_the_split(tmp_path):
    put(tmp_path, DIGITS)
    assert load_mnist("test", tmp_path).labels.tolist() == list(DIGITS[FILES[3]][8:])


def test_fashion_classes_have_names(tmp_path):
    put(tmp_path, CLOTHES)
    names = load_fashion_mnist("test", tmp_path).class_names
    assert (len(names), names[0], names[9]) == (10, "T-shirt/top", "Ankle boot")


def test_the_dataset_is_named_with_its_split(tmp_path):
    put(tmp_path, CLOTHES)
    assert load_fashion_mnist("test", tmp_path).name == "Fashion-MNIST test"


def test_files_are_found_through_the_variable(monkeypatch, tmp_path):
    put(tmp_path / "elsewhere", DIGITS)
    monkeypatch.setenv("VITNP_DATA", str(tmp_path / "elsewhere"))
    assert len(load_mnist("test", download=False)) == 20


def test_the_given_folder_comes_before_the_variable(monkeypatch, tmp_path):
    put(tmp_path / "given", DIGITS)
    put(tmp_path / "elsewhere", dict.fromkeys(FILES, b"damaged"))
    monkeypatch.setenv("VITNP_DATA", str(tmp_path / "elsewhere"))
    assert len(load_mnist("test", tmp_path / "given", download=False)) == 20


@pytest.mark.parametrize("variable", ["KERAS_HOME", "HOME"])
def test_the_folder_of_keras_is_searched(monkeypatch, tmp_path, variable):
    home = tmp_path / ".keras"
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(variable, str(home if variable == "KERAS_HOME" else tmp_path))
    put(home / "datasets" / "fashion-mnist", CLOTHES)
    assert len(load_fashion_mnist("test", download=False)) == 20


def test_files_on_disk_need_no_network(monkeypatch, tmp_path):
    put(tmp_path, DIGITS)
    monkeypatch.setattr(module, "fetch", lambda *arguments, **named: pytest.fail("a download"))
    assert len(load_mnist("test", tmp_path, download=True)) == 20


# telling one from the other


def test_fashion_mnist_in_a_folder_named_mnist_is_not_taken_for_mnist(tmp_path):
    put(tmp_path / "mnist", CLOTHES)
    assert f"{tmp_path / 'mnist'} holds Fashion-MNIST: put" in refusal(load_mnist, "test", tmp_path)


def test_mnist_in_a_folder_named_fashion_is_not_taken_for_fashion_mnist(tmp_path):
    put(tmp_path / "fashion-mnist", DIGITS)
    assert f"{tmp_path / 'fashion-mnist'} holds MNIST: put" in refusal(load_fashion_mnist, "train", tmp_path)


def test_the_other_data_set_is_passed_over_where_the_right_one_follows(tmp_path):
    put(tmp_path / "mnist", CLOTHES)
    put(tmp_path / "raw", DIGITS)
    np.testing.assert_array_equal(load_mnist("test", tmp_path, download=False).images, pixels(DIGITS, "test"))


def test_labels_of_the_other_data_set_are_not_taken_either(tmp_path):
    put(tmp_path / "mnist", DIGITS | {FILES[3]: CLOTHES[FILES[3]]})
    assert f"{tmp_path / 'mnist'} holds Fashion-MNIST" in refusal(load_mnist, "test", tmp_path)


def test_unknown_content_is_loaded_with_one_notice_that_prints_its_digests(tmp_path):
    put(tmp_path / "mnist", OTHERS)
    with pytest.warns(DataNotice) as notices:
        load_mnist("test", tmp_path)
    assert len(notices) == 1
    for name in FILES[2:]:
        assert f"{name} (SHA-256 {hashlib.sha256(OTHERS[name]).hexdigest()})" in str(notices[0].message)


def test_the_notice_points_at_who_asked_for_the_data(tmp_path):
    put(tmp_path / "mnist", OTHERS)
    with pytest.warns(DataNotice) as notices:
        load_mnist("test", tmp_path)
    assert notices[0].filename == __file__


def test_known_content_is_loaded_without_a_notice(tmp_path):
    put(tmp_path / "mnist", DIGITS)
    load_mnist("test", tmp_path)  # a warning would be an error here


@pytest.mark.parametrize("below", ["FashionMNIST/raw", "fashion-mnist", "fashion"])
def test_the_folders_name_makes_unknown_content_fashion_mnist(tmp_path, below):
    put(tmp_path / below, OTHERS)
    with pytest.warns(DataNotice, match="differs from the published Fashion-MNIST test"):
        load_fashion_mnist("test", tmp_path)


@pytest.mark.parametrize(("load", "below"), [(load_mnist, "FashionMNIST/raw"), (load_fashion_mnist, "some/raw")])
def test_unknown_content_in_a_folder_named_otherwise_is_passed_over(tmp_path, load, below):
    put(tmp_path / below, OTHERS)
    assert "holds unknown content, and its name does not say" in refusal(load, "test", tmp_path / below)


def test_a_folder_around_named_fashion_does_not_count(tmp_path):
    put(tmp_path / "fashion" / "mnist", OTHERS)
    with pytest.warns(DataNotice):
        load_mnist("test", tmp_path / "fashion", download=False)


# Keras' npz


def npz(files=DIGITS, **replaced):
    """What Keras keeps, as bytes."""
    arrays = {}
    for name, key in module.KERAS_ARRAYS.items():
        images = "images" in name
        content = np.frombuffer(files[name], np.uint8, offset=16 if images else 8)
        arrays[key] = content.reshape(-1, 28, 28) if images else content
    archive = io.BytesIO()
    np.savez(archive, **(arrays | replaced))
    return archive.getvalue()


def test_the_npz_of_keras_holds_the_same_images(monkeypatch, tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mnist.npz").write_bytes(npz())
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    np.testing.assert_array_equal(load_mnist("train", download=False).images, pixels(DIGITS, "train"))


def npz_that_runs_code():
    class Evil:
        def __reduce__(self):
            return pytest.fail, ("code was run",)

    return npz(x_test=np.array([Evil()], dtype=object))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged npz archive (File is not a zip file)"),
        (b"<html>", "damaged npz archive"),
        (npz()[:-100], "damaged npz archive"),
        (
            npz(x_test=np.zeros((19, 28, 28), np.uint8)),
            "for an array (19, 28, 28) of |u1 in C's order; expected (20, 28, 28)",
        ),
        (npz(x_test=np.zeros((20, 28, 28), np.float32)), "bytes; expected at most"),
        (
            npz(x_test=np.zeros((28, 28, 20), np.uint8).T),
            "(20, 28, 28) of |u1 in Fortran's order; expected (20, 28, 28) of |u1 in C's",
        ),
        (npz(y_test=np.arange(20, dtype=np.uint8)), "member y_test.npy: label 10 is 10; expected 0 to 9"),
        (npz_that_runs_code(), "of |O in C's order; expected (20, 28, 28) of |u1"),
    ],
    ids=["empty", "web page", "cut", "short", "floats", "transposed", "label", "objects"],
)
def test_a_bad_npz_is_refused_in_one_line(tmp_path, content, said):
    (tmp_path / "mnist.npz").write_bytes(content)
    assert said in refusal(load_mnist, "test", tmp_path)


def test_a_flipped_bit_in_the_npz_is_found_by_its_checksum(tmp_path):
    content = bytearray(npz())
    content[content.index(DIGITS[FILES[2]][16:100])] ^= 1
    (tmp_path / "mnist.npz").write_bytes(content)
    assert "damaged npz archive (Bad CRC-32" in refusal(load_mnist, "test", tmp_path)


@pytest.mark.parametrize(("change", "left"), [(lambda npy: npy[:-1], 19), (lambda npy: npy + b"x", 21)])
def test_an_array_of_another_length_than_its_header_says_is_refused(tmp_path, change, left):
    with zipfile.ZipFile(io.BytesIO(npz())) as whole, zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive:
        for name in whole.namelist():
            npy = whole.read(name)
            archive.writestr(name, change(npy) if name == "y_test.npy" else npy)
    assert f"{left} bytes for an array (20,) of |u1 in C's order; expected (20,)" in refusal(
        load_mnist, "test", tmp_path
    )


@pytest.mark.parametrize(
    "header", ["{'descr': '|u1', 'shape': (", "  \n\tx\n  y\n z", "{[]: 1}", "(" * 9000, "-" * 9000 + "1", "'" * 3, ""]
)
def test_the_header_of_an_array_is_compared_and_never_evaluated(tmp_path, header):
    npy = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(20)
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive:
        archive.writestr("y_test.npy", npy)
        archive.writestr("x_test.npy", npy)
    assert "expected an npy file of version 1.0" in refusal(load_mnist, "test", tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_npz_that_numpy_does_not_make_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w", method) as archive:
        archive.writestr("x_test.npy", b"x")
    said = refusal(load_mnist, "test", tmp_path)
    assert f"x_test.npy is compressed by method {method}; expected 0 or 8" in said


def test_an_npz_that_needs_more_memory_than_there_is_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "mnist.npz").write_bytes(npz())
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda archive: bytes(2**62))
    assert "mnist.npz: needs more memory than there is" in refusal(load_mnist, "test", tmp_path)


def test_a_compressed_npz_is_read(tmp_path):
    arrays = dict(np.load(io.BytesIO(npz())))
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    np.testing.assert_array_equal(load_mnist("test", tmp_path, download=False).images, pixels(DIGITS, "test"))


def test_an_npz_that_would_unpack_to_gigabytes_is_refused_before(tmp_path):
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x_test.npy", bytes(50_000_000))
    assert "member x_test.npy of 50000000 bytes; expected at most 16704" in refusal(load_mnist, "test", tmp_path)


@pytest.mark.parametrize("beyond", [0, 1])
def test_an_npz_that_goes_on_behind_what_it_claims_is_read_no_further(tmp_path, beyond):
    array = io.BytesIO()
    np.save(array, np.zeros((10_000, 28, 28), np.uint8))
    content, path = array.getvalue(), tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        add_bomb(archive, "x_test.npy", content, checked=len(content) + beyond)
    call = f"read_npz({str(path)!r}, 'x_test', (10_000, 28, 28))"
    (taken,) = taken_by([call], "from vitnp.data.archives import read_npz")
    said = f"member x_test.npy has more than the {len(content)} bytes that it claims" if beyond else "Bad CRC-32"
    assert f"DataError: {path}: damaged npz archive ({said}" in taken.said
    assert taken.bytes < 4 * len(content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_in_the_npz_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive:
        archive.writestr("x_test.npy", b"")
        archive.writestr("x_test.npy", b"")
    assert "2 members x_test.npy; expected one" in refusal(load_mnist, "test", tmp_path)


# what cannot be loaded


@pytest.mark.parametrize("said", ["{folder}", "no-cache", "MNIST/raw", *FILES, "train_digits.py, which needs no files"])
def test_without_files_the_error_says_where_it_looked_and_what_to_put_there(tmp_path, said):
    assert said.format(folder=tmp_path) in refusal(load_mnist, "train", tmp_path)


def test_an_incomplete_folder_is_named_with_what_it_lacks(tmp_path):
    put(tmp_path / "mnist", {name: DIGITS[name] for name in FILES[1:]})
    assert f"{tmp_path / 'mnist'} lacks {FILES[0]}: put" in refusal(load_mnist, "train", tmp_path)


def test_a_given_folder_that_does_not_exist_is_not_passed_over(tmp_path):
    assert "typo is not a folder; expected the one" in refusal(load_mnist, "train", tmp_path / "typo")


def test_a_damaged_file_is_named_and_not_replaced_by_a_download(tmp_path):
    put(tmp_path, DIGITS)
    path = tmp_path / (FILES[2] + ".gz")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{path}: damaged gzip archive"):
        load_mnist("test", tmp_path, download=True)


def test_a_label_above_9_is_named_by_file_and_position(tmp_path):
    labels = bytearray(DIGITS[FILES[3]])
    labels[8 + 4] = labels[8 + 7] = 10
    put(tmp_path, DIGITS | {FILES[3]: bytes(labels)})
    assert f"{FILES[3]}.gz: label 4 is 10; expected 0 to 9" in refusal(load_mnist, "test", tmp_path)


def test_one_label_too_few_is_refused(tmp_path):
    labels = idx_header((19,)) + DIGITS[FILES[3]][9:]
    put(tmp_path, DIGITS | {FILES[3]: labels})
    assert "give the sizes (19,); expected (20,)" in refusal(load_mnist, "test", tmp_path)


def test_an_unknown_split_is_refused():
    assert refusal(load_mnist, "val") == "split is 'val'; expected 'train' or 'test'"


# downloads


@pytest.fixture
def sent(monkeypatch):
    """A web that has DIGITS; the calls for them."""
    calls = []

    def fetch(urls, target, *, size, sha256):
        calls.append((urls, target, size, sha256))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(DIGITS[target.name.removesuffix(".gz")]))
        return target

    monkeypatch.setattr(module, "fetch", fetch)
    return calls


def test_what_is_not_there_is_downloaded_into_torchvisions_layout(sent, tmp_path):
    np.testing.assert_array_equal(load_mnist("test", tmp_path).images, pixels(DIGITS, "test"))
    assert [call[1] for call in sent] == [tmp_path / "MNIST" / "raw" / f"{name}.gz" for name in FILES]


def test_downloads_are_found_the_next_time(sent, tmp_path):
    load_mnist("test", tmp_path)
    load_mnist("train", tmp_path)
    assert len(sent) == 4


def test_downloads_go_to_the_variable_where_no_folder_is_given(sent, monkeypatch, tmp_path):
    monkeypatch.setenv("VITNP_DATA", str(tmp_path / "elsewhere"))
    load_mnist("test")
    assert sent[0][1].parent == tmp_path / "elsewhere" / "MNIST" / "raw"


def test_a_download_that_fails_mentions_what_was_found_before(monkeypatch, tmp_path):
    def fetch(urls, target, *, size, sha256):
        raise DataError("no network")

    monkeypatch.setattr(module, "fetch", fetch)
    put(tmp_path / "mnist", CLOTHES)
    with pytest.raises(DataError, match=f"^no network; {tmp_path / 'mnist'} holds Fashion-MNIST$"):
        load_mnist("test", tmp_path)


def test_a_given_mirror_is_asked_first(sent, tmp_path):
    load_mnist("test", tmp_path, mirror="http://127.0.0.1:1/copy")
    assert sent[0][0][0] == f"http://127.0.0.1:1/copy/{FILES[0]}.gz"


def test_every_file_has_mirrors_a_size_and_a_digest(sent, tmp_path):
    load_mnist("test", tmp_path)
    assert all(len(urls) > 1 and size > 1000 and len(sha256) == 64 for urls, _, size, sha256 in sent)


# the real files


@needs_mnist
class TestRealFiles:
    @pytest.fixture(autouse=True)
    def small(self):
        """The module as it is."""

    @pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
    def test_there_are_as_many_images_as_the_paper_says(self, split, count):
        assert load_mnist(split, download=False).images.shape == (count, 28, 28, 1)

    def test_the_first_labels_are_the_well_known_ones(self):
        assert load_mnist("train", download=False).labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]

    def test_the_statistics_are_the_well_known_ones(self):
        mean, std = channel_statistics(load_mnist("train", download=False).images)
        assert (round(mean[0], 4), round(std[0], 4)) == (0.1307, 0.3081)

    def test_they_are_not_fashion_mnist(self):
        folder = next(
            path
            for path in (os.path.join(os.environ["VITNP_DATA"], name) for name in ("mnist", "MNIST/raw"))
            if os.path.isdir(path)
        )
        assert f"{folder} holds MNIST" in refusal(load_fashion_mnist, "test", folder)
