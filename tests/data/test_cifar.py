"""CIFAR-10 and CIFAR-100 are read in both forms, unpacked or not; the wrong files are refused in one line."""

import gzip
import hashlib
import io
import os
import pickle
import re
import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from vitnp.data import DataError, DataNotice, load_cifar10, load_cifar100
from vitnp.data import cifar as module

COUNT = 20  # images in a file
LOAD = {10: load_cifar10, 100: load_cifar100}
KINDS = [10, 100]
FORMS = ["binary", "python"]


def made(classes):
    """{file of the binary form: (images, fine labels)}."""
    names = {10: [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"], 100: ["train.bin", "test.bin"]}
    rng = np.random.default_rng(classes)
    return {
        name: (rng.integers(0, 256, (COUNT, 32, 32, 3), np.uint8), rng.integers(0, classes, COUNT))
        for name in names[classes]
    }


def binary(images, labels, classes):
    """A file of the binary form: CIFAR-100 has the coarse label first, made 19 here."""
    first = [np.full(len(labels), 19)] if classes == 100 else []
    heads = np.stack([*first, labels], 1).astype(np.uint8)
    return np.hstack([heads, images.transpose(0, 3, 1, 2).reshape(len(images), -1)]).tobytes()


def python(images, labels, classes, /, **replaced):
    """A file of the Python form."""
    batch = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "filenames": ["x.png"] * len(images)}
    batch |= {"fine_labels": labels.tolist(), "coarse_labels": [19] * COUNT} if classes == 100 else {}
    batch |= {"labels": labels.tolist()} if classes == 10 else {}
    return pickle.dumps({key.encode(): value for key, value in (batch | replaced).items()}, 3)


def files(classes, form):
    """All files of a form, by name."""
    build = {"binary": binary, "python": python}[form]
    return {
        name if form == "binary" else name.removesuffix(".bin"): build(images, labels, classes)
        for name, (images, labels) in made(classes).items()
    }


ALL = {(classes, form): files(classes, form) for classes in KINDS for form in FORMS}
FOLDERS = {
    (10, "binary"): "cifar-10-batches-bin",
    (10, "python"): "cifar-10-batches-py",
    (100, "binary"): "cifar-100-binary",
    (100, "python"): "cifar-100-python",
}
ARCHIVES = {(classes, form): f"cifar-{classes}-{form}.tar.gz" for classes in KINDS for form in FORMS}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Sets of 20 images a file, whose digests are known, and no folder but those that a test names."""
    for classes in KINDS:
        kind = getattr(module, f"CIFAR{classes}")
        forms = {}
        for form in FORMS:
            algorithm = hashlib.sha256 if form == "binary" else hashlib.md5
            known = {algorithm(content).hexdigest(): name for name, content in ALL[classes, form].items()}
            whole = getattr(kind, form)
            batches = {split: dict.fromkeys(names, COUNT) for split, names in whole.batches.items()}
            forms[form] = replace(whole, batches=batches, known=known)
        monkeypatch.setattr(module, f"CIFAR{classes}", replace(kind, **forms))
    monkeypatch.setattr(module, "PICKLE_RECORD", 4000)
    for variable in ("VITNP_DATA", "KERAS_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "no-cache"))


def put(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def tar(folder, contents, *more):
    """A tar.gz archive of a folder, as bytes; `more` are further members: (TarInfo, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member, content in more:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def refusal(load, *arguments):
    """The one line that the call says instead of loading."""
    with pytest.raises(DataError) as caught:
        load(*arguments, download=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_is_train(found, classes):
    images, labels = zip(*list(made(classes).values())[:-1], strict=True)
    np.testing.assert_array_equal(found.images, np.concatenate(images))
    np.testing.assert_array_equal(found.labels, np.concatenate(labels))


# where it is found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", KINDS)
def test_an_unpacked_archive_is_found(tmp_path, classes, form):
    put(tmp_path / FOLDERS[classes, form], ALL[classes, form])
    assert_is_train(LOAD[classes]("train", tmp_path), classes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", KINDS)
def test_an_archive_is_found(tmp_path, classes, form):
    put(tmp_path, {ARCHIVES[classes, form]: tar(FOLDERS[classes, form], ALL[classes, form])})
    assert_is_train(LOAD[classes]("train", tmp_path), classes)


@pytest.mark.parametrize("classes", KINDS)
def test_members_may_come_in_any_order(tmp_path, classes):
    backwards = dict(reversed(ALL[classes, "python"].items()))
    put(tmp_path, {ARCHIVES[classes, "python"]: tar(FOLDERS[classes, "python"], backwards)})
    assert_is_train(LOAD[classes]("train", tmp_path), classes)


@pytest.mark.parametrize("protocol", range(6))
def test_a_file_of_the_real_size_that_python_3_pickled_anew_is_read(monkeypatch, tmp_path, protocol):
    monkeypatch.undo()
    monkeypatch.delenv("VITNP_DATA", raising=False)
    planes = np.broadcast_to(np.arange(3072, dtype=np.uint8), (10_000, 3072)).copy()
    batch = {
        b"data": planes,
        b"labels": [7] * 10_000,
        b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * 10_000,
    }
    others = dict.fromkeys(ALL[10, "python"], b"")
    put(tmp_path, others | {"test_batch": pickle.dumps(batch, protocol)})
    with pytest.warns(DataNotice):
        found = load_cifar10("test", tmp_path, download=False)
    assert (found.images[9_999].transpose(2, 0, 1).ravel() == planes[0]).all()


def test_the_folder_itself_may_be_given(tmp_path):
    put(tmp_path, ALL[10, "python"])
    assert_is_train(load_cifar10("train", tmp_path), 10)


@pytest.mark.parametrize(
    "below", ["cifar-10-batches-py", "cifar-10-batches-py-target/cifar-10-batches-py"], ids=["keras 2", "keras 3"]
)
def test_the_folder_of_keras_is_found(monkeypatch, tmp_path, below):
    put(tmp_path / "datasets" / below, ALL[10, "python"])
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert_is_train(load_cifar10("train"), 10)


@pytest.mark.parametrize("name", ["cifar-10-batches-py.tar.gz", "cifar-10-batches-py-target_archive"])
def test_the_archive_of_keras_is_found(monkeypatch, tmp_path, name):
    put(tmp_path / "datasets", {name: tar("cifar-10-batches-py", ALL[10, "python"])})
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert_is_train(load_cifar10("train"), 10)


def test_the_test_split_is_the_last_file(tmp_path):
    put(tmp_path, ALL[10, "binary"])
    images, labels = made(10)["test_batch.bin"]
    found = load_cifar10("test", tmp_path)
    np.testing.assert_array_equal(found.images, images)
    assert (found.labels.tolist(), found.name) == (labels.tolist(), "CIFAR-10 test")


def test_files_of_the_real_size_are_read(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.delenv("VITNP_DATA", raising=False)
    record = np.arange(3073) % 10
    put(tmp_path, dict.fromkeys(ALL[10, "binary"], b"") | {"test_batch.bin": bytes(record.tolist()) * 10_000})
    with pytest.warns(DataNotice):
        found = load_cifar10("test", tmp_path, download=False)
    assert found.images.shape == (10_000, 32, 32, 3)


# names of the classes


@pytest.mark.parametrize(("classes", "first", "last"), [(10, "airplane", "truck"), (100, "apple", "worm")])
def test_classes_have_their_published_names_in_label_order(tmp_path, classes, first, last):
    put(tmp_path, ALL[classes, "binary"])
    names = LOAD[classes]("test", tmp_path).class_names
    assert (len(names), names[0], names[-1]) == (classes, first, last)


def test_the_hundred_names_are_in_alphabetical_order(tmp_path):
    put(tmp_path, ALL[100, "binary"])
    names = load_cifar100("test", tmp_path).class_names
    assert len(set(names)) == 100
    assert names == tuple(sorted(names))


OTHER_NAMES = [f"class {n}" for n in range(100)]


def test_names_are_those_beside_the_pickles(tmp_path):
    put(tmp_path, ALL[100, "python"] | {"meta": pickle.dumps({b"fine_label_names": OTHER_NAMES}, 2)})
    with pytest.warns(DataNotice):
        assert load_cifar100("test", tmp_path).class_names == tuple(OTHER_NAMES)


def test_names_are_those_in_the_archive(tmp_path):
    names = "\n".join(OTHER_NAMES).replace(" ", "_").encode()
    contents = ALL[100, "binary"] | {"fine_label_names.txt": names + b"\n"}
    put(tmp_path, {ARCHIVES[100, "binary"]: tar("cifar-100-binary", contents)})
    with pytest.warns(DataNotice):
        assert load_cifar100("test", tmp_path).class_names[99] == "class_99"


def test_published_names_beside_the_images_need_no_notice(tmp_path):
    put(tmp_path, ALL[10, "binary"] | {"batches.meta.txt": "\n".join(module.CIFAR10.class_names).encode() + b"\n\n"})
    assert load_cifar10("test", tmp_path).class_names == module.CIFAR10.class_names


def test_names_in_another_order_lead_to_a_notice_that_shows_the_first(tmp_path):
    names = "\n".join(reversed(module.CIFAR10.class_names))
    put(tmp_path, ALL[10, "binary"] | {"batches.meta.txt": names.encode()})
    with pytest.warns(DataNotice) as notices:
        load_cifar10("test", tmp_path)
    [notice] = notices
    assert str(notice.message) == (
        f"{tmp_path / 'batches.meta.txt'}: class 0 is called 'truck' and not 'airplane'; "
        "names differ from the published ones, taken as they are"
    )
    assert notice.filename == __file__


@pytest.mark.parametrize("name", ["class 1", "", " ", "a\x1b[31mb", "a\nb"], ids=repr)
def test_names_that_cannot_be_told_apart_or_printed_are_refused(tmp_path, name):
    meta = pickle.dumps({b"fine_label_names": [name, *OTHER_NAMES[1:]]}, 2)
    put(tmp_path, ALL[100, "python"] | {"meta": meta})
    said = refusal(load_cifar100, "test", tmp_path)
    assert said.startswith(f"{tmp_path / 'meta'}: names of the classes: {name!r}; expected 100 different ones")


@pytest.mark.parametrize("names", [OTHER_NAMES[1:], list(range(100)), None], ids=["99", "numbers", "none"])
def test_other_than_a_hundred_names_are_refused(tmp_path, names):
    put(tmp_path, ALL[100, "python"] | {"meta": pickle.dumps({b"fine_label_names": names}, 2)})
    assert f"{tmp_path / 'meta'}: names of the classes: a " in refusal(load_cifar100, "test", tmp_path)


# whose content it is


def test_unknown_content_is_loaded_with_one_notice_for_all_files(tmp_path):
    put(tmp_path, {name: content[:-1] + b"\0" for name, content in ALL[10, "binary"].items()})
    with pytest.warns(DataNotice) as notices:
        load_cifar10("train", tmp_path)
    assert len(notices) == 1
    for number in range(1, 6):
        digest = hashlib.sha256((tmp_path / f"data_batch_{number}.bin").read_bytes()).hexdigest()
        assert f"data_batch_{number}.bin (SHA-256 {digest})" in str(notices[0].message)
    assert notices[0].filename == __file__


@pytest.mark.parametrize("form", FORMS)
def test_exchanged_files_are_an_error(tmp_path, form):
    first, second = list(ALL[10, form])[:2]
    put(tmp_path, ALL[10, form] | {first: ALL[10, form][second]})
    said = refusal(load_cifar10, "train", tmp_path)
    assert said.startswith(f"{tmp_path / first}: has the content of {second}; expected that of {first}")


# damaged and wrong files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file; expected 61460, 20 records of 3073 bytes"),
        (b"<!DOCTYPE html>", "looks like a web page; expected 61460"),
        (ALL[10, "binary"]["test_batch.bin"][:-1], "truncated, 61459 bytes: 19 records and 3072 bytes more"),
        (ALL[10, "binary"]["test_batch.bin"] + b"x", "goes on after byte 61460; expected at most 61460 bytes"),
        (ALL[100, "binary"]["test.bin"], "goes on after byte 61460"),
        (b"\x0a" + ALL[10, "binary"]["test_batch.bin"][1:], "label 0 is 10; expected 0 to 9"),
    ],
    ids=["empty", "web page", "cut", "long", "cifar-100", "label"],
)
def test_a_bad_binary_file_is_refused_by_name(tmp_path, content, said):
    put(tmp_path, ALL[10, "binary"] | {"test_batch.bin": content})
    assert refusal(load_cifar10, "test", tmp_path).startswith(f"{tmp_path / 'test_batch.bin'}: {said}")


def test_records_of_cifar_10_are_no_cifar_100(tmp_path):
    put(tmp_path, ALL[100, "binary"] | {"test.bin": ALL[10, "binary"]["test_batch.bin"]})
    assert "truncated, 61460 bytes: 19 records and 3054 bytes more" in refusal(load_cifar100, "test", tmp_path)


def test_the_fine_label_is_the_second_byte(tmp_path):
    content = bytearray(ALL[100, "binary"]["test.bin"])
    content[3074 + 1] = 100
    put(tmp_path, ALL[100, "binary"] | {"test.bin": bytes(content)})
    assert "label 1 is 100; expected 0 to 99" in refusal(load_cifar100, "test", tmp_path)


IMAGES, LABELS = made(10)["test_batch.bin"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (python(IMAGES, LABELS, 10)[:-1], "refused pickle ("),
        (python(IMAGES, LABELS, 10, extra=Evil()), "refused pickle (it would call "),
        (python(IMAGES, LABELS, 10, data=np.array([None] * 20)), "refused pickle (an array of 'O8', and not of bytes)"),
        (python(IMAGES, LABELS, 10, data=None), "'data' is a NoneType; expected an array (20, 3072) of bytes"),
        (python(IMAGES[1:], LABELS, 10), "'data' is an array (19, 3072); expected an array (20, 3072)"),
        (python(IMAGES, LABELS[1:], 10), "'labels' is a list of 19; expected a list of 20 integers"),
        (python(IMAGES, LABELS, 10, labels=[3, True] * 10), "label 1 is a bool; expected an integer, as all labels"),
        (python(IMAGES, LABELS, 10, labels=[2**70] * 20), "refused pickle (an integer of more than 32 bits at byte"),
        (python(IMAGES, LABELS, 10, labels=[-1] * 20), "label 0 is -1; expected 0 to 9"),
        (ALL[100, "python"]["test"], "'labels' is a NoneType; expected a list of 20"),
    ],
    ids=["cut", "code", "objects", "no data", "19 images", "19 labels", "bools", "huge", "negative", "cifar-100"],
)
def test_a_bad_pickle_is_refused_by_name(tmp_path, monkeypatch, content, said):
    put(tmp_path, ALL[10, "python"] | {"test_batch": content})
    monkeypatch.chdir(tmp_path)
    assert refusal(load_cifar10, "test", tmp_path).startswith(f"{tmp_path / 'test_batch'}: {said}")
    assert not os.path.exists("evil")


# archives


@pytest.fixture
def refused(tmp_path):
    """What is said about an archive of the binary form of CIFAR-10 with this content."""

    def said(content):
        path = tmp_path / "in" / ARCHIVES[10, "binary"]
        put(path.parent, {path.name: content})
        before = sorted(tmp_path.rglob("*"))
        found = refusal(load_cifar10, "train", path.parent)
        assert sorted(tmp_path.rglob("*")) == before
        assert found.startswith(str(path))
        return found.removeprefix(str(path))

    return said


GOOD = tar("cifar-10-batches-bin", ALL[10, "binary"])


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


@pytest.mark.parametrize(
    "member",
    [
        special("cifar-10-batches-bin/data_batch_1.bin", tarfile.SYMTYPE, "/etc/passwd"),
        special("cifar-10-batches-bin/data_batch_1.bin", tarfile.LNKTYPE, "../../x"),
        special("cifar-10-batches-bin/data_batch_1.bin", tarfile.FIFOTYPE),
        special("cifar-10-batches-bin/data_batch_1.bin", tarfile.CHRTYPE),
        special("cifar-10-batches-bin/data_batch_1.bin", tarfile.DIRTYPE),
    ],
    ids=["symlink", "hardlink", "fifo", "device", "folder"],
)
def test_a_special_file_in_place_of_a_batch_is_refused(refused, member):
    others = {name: content for name, content in ALL[10, "binary"].items() if name != "data_batch_1.bin"}
    said = refused(tar("cifar-10-batches-bin", others, member))
    assert "data_batch_1.bin: a link, a device or another special file; expected an ordinary file" in said


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "cifar-10-batches-bin/../../evil"])
def test_names_that_lead_elsewhere_are_not_followed(tmp_path, name):
    content = tar("cifar-10-batches-bin", ALL[10, "binary"], (tarfile.TarInfo(name), b"evil"))
    put(tmp_path / "in", {ARCHIVES[10, "binary"]: content})
    assert_is_train(load_cifar10("train", tmp_path / "in"), 10)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", ARCHIVES[10, "binary"]]


def test_a_missing_member_is_named(refused):
    others = {name: content for name, content in ALL[10, "binary"].items() if name != "data_batch_3.bin"}
    assert ": lacks cifar-10-batches-bin/data_batch_3.bin; expected" in refused(tar("cifar-10-batches-bin", others))


def test_a_member_that_is_there_twice_is_refused(refused):
    again = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin"), ALL[10, "binary"]["data_batch_1.bin"]
    assert "data_batch_1.bin: is there twice" in refused(tar("cifar-10-batches-bin", ALL[10, "binary"], again))


def test_a_member_that_is_too_long_is_refused_before_it_is_read(refused):
    member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    member.size = 2**40
    said = refused(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(512)))
    assert "data_batch_1.bin: 1099511627776 bytes; expected at most 61460" in said


@pytest.mark.parametrize("size", [10**15, -1])
def test_a_member_that_claims_what_is_not_there_does_not_keep_us(refused, size):
    member = tarfile.TarInfo("other")
    member.size = size
    said = refused(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
    assert re.match(r": damaged tar.gz archive \(it ends \d+ bytes early\)|, member other: -1 bytes; expected at", said)


def test_a_link_has_no_content_whatever_its_size(tmp_path):
    member = tarfile.TarInfo("link")
    member.type, member.size = tarfile.SYMTYPE, 1000
    content = gzip.compress(member.tobuf() + gzip.decompress(tar("cifar-10-batches-bin", ALL[10, "binary"])))
    put(tmp_path, {ARCHIVES[10, "binary"]: content})
    assert_is_train(load_cifar10("train", tmp_path), 10)


def test_an_archive_with_an_extension_before_each_member_is_read(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive:
        for name, content in ALL[10, "binary"].items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size, member.mtime = len(content), 0.5  # which needs one
            archive.addfile(member, io.BytesIO(content))
    put(tmp_path, {ARCHIVES[10, "binary"]: file.getvalue()})
    assert_is_train(load_cifar10("train", tmp_path), 10)


def test_extensions_are_not_kept_in_memory(refused):
    long = tarfile.TarInfo("pax")
    long.type, long.size = tarfile.XGLTYPE, 12_000_000
    keys = b"10 k=vvvv\n" * (long.size // 10)
    content = gzip.compress(long.tobuf() + keys.ljust(-(-len(keys) // 512) * 512, b"\0"), compresslevel=1)
    tracemalloc.start()
    try:
        assert ": lacks " in refused(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_an_archive_of_very_many_members_is_refused(refused):
    content = gzip.compress(tarfile.TarInfo("x").tobuf() * 2000)
    assert refused(content).startswith(": more than 1000 members; expected those of the published archive")


def test_the_name_of_a_member_is_one_line(refused):
    member = tarfile.TarInfo("a\n\x1b[31m")
    member.size = -1
    assert refused(gzip.compress(member.tobuf(tarfile.GNU_FORMAT))).startswith(", member a\\n\\x1b[31m: -1 bytes")


def test_more_memory_than_there_is_is_one_line(refused, monkeypatch):
    monkeypatch.setattr("vitnp.data.archives._headers", lambda *arguments: [bytes(2**62)])
    assert refused(GOOD).startswith(": needs more memory than there is; expected a file that fits into it")


def test_an_archive_cut_anywhere_is_refused(refused):
    for length in np.linspace(0, len(GOOD) - 1, 40).astype(int):
        assert re.match(": (damaged tar.gz archive|empty file|begins with|lacks)", refused(GOOD[:length]))


def test_a_flipped_bit_behind_the_batches_is_found_by_the_checksum(refused):
    archive = bytearray(GOOD)
    archive[-6] ^= 1
    assert ": damaged tar.gz archive (CRC check failed" in refused(bytes(archive))


def test_a_web_page_in_place_of_the_archive_is_recognised(refused):
    assert refused(b"<html>").startswith(": looks like a web page; expected a tar.gz archive")


def test_a_plain_tar_is_told_by_its_first_bytes(refused):
    assert refused(gzip.decompress(GOOD)).startswith(": begins with 63 69 66 61; expected 1f 8b")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_an_archive_that_unpacks_without_end_is_given_up(refused, monkeypatch, kind):
    monkeypatch.setattr(module, "ARCHIVE_LIMIT", 1_000_000)
    bomb = tarfile.TarInfo("bomb")
    bomb.size, bomb.type = 2**32, kind
    content = gzip.compress(bomb.tobuf() + bytes(50_000_000), compresslevel=1)
    tracemalloc.start()
    try:
        said = refused(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said.startswith(": goes on and on; expected at most 1000000 bytes unpacked")
    assert peak < 4_000_000


# nothing there


@pytest.mark.parametrize("said", ["{folder}", "no-cache", "cifar-100-python.tar.gz", "train_digits.py"])
def test_without_files_the_error_says_where_it_looked_and_what_to_put_there(tmp_path, said):
    assert said.format(folder=tmp_path) in refusal(load_cifar100, "train", tmp_path)


def test_an_incomplete_folder_is_named_with_what_it_lacks(tmp_path):
    others = {name: content for name, content in ALL[10, "binary"].items() if name != "data_batch_3.bin"}
    put(tmp_path / "cifar-10-batches-bin", others)
    assert f"{tmp_path / 'cifar-10-batches-bin'} lacks data_batch_3.bin: put" in refusal(load_cifar10, "test", tmp_path)


def test_an_unknown_split_is_refused():
    assert refusal(load_cifar10, "val") == "split is 'val'; expected 'train' or 'test'"


def test_a_download_that_fails_mentions_what_was_found_before(monkeypatch, tmp_path):
    def fetch(urls, target, *, size, sha256):
        raise DataError("no network")

    monkeypatch.setattr(module, "fetch", fetch)
    put(tmp_path, {"test_batch": b""})
    with pytest.raises(DataError, match=f"^no network; {tmp_path} lacks data_batch_1, "):
        load_cifar10("test", tmp_path)


def test_what_is_not_there_is_downloaded_and_read_from_the_archive(monkeypatch, tmp_path):
    calls = []

    def fetch(urls, target, *, size, sha256):
        calls.append((urls, target, size, sha256))
        target.write_bytes(tar("cifar-100-python", ALL[100, "python"]))
        return target

    monkeypatch.setattr(module, "fetch", fetch)
    assert_is_train(load_cifar100("train", tmp_path, mirror="https://example.org/"), 100)
    [(urls, target, size, sha256)] = calls
    assert urls[0] == "https://example.org/cifar-100-python.tar.gz"
    assert len(urls) > 2
    assert target == tmp_path / "cifar-100-python.tar.gz"
    assert (size, sha256[:8]) == (169_001_437, "85cd44d0")
