"""A folder with a sub-folder per class becomes a data set, in one order, or one line says what is wrong with it."""

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from vitnp.data import DataError, find_images, find_splits, load_folder
from vitnp.data.folder import NOT_READ, READ
from vitnp.data.images import FORMATS


def put(root, *names, level=None):
    """Write an image at each of these places; its grey level counts up, so that each can be told."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (10 * i if level is None else level,) * 3).save(path)


@pytest.fixture
def pets(tmp_path):
    root = tmp_path / "pets"
    put(root, "dog/2.png", "dog/1.png", "cat/b.bmp", "cat/a/z.png", "owl/x.gif")
    return root


def names(files):
    return [path.relative_to(files.root).as_posix() for path in files.paths]


def many(root, **counts):
    for name, count in counts.items():
        put(root, *(f"{name}/{i:03}.png" for i in range(count)), level=9)
    return find_images(root)


# finding


def test_classes_and_files_are_in_the_order_of_their_names(pets):
    files = find_images(pets)
    assert files.class_names == ("cat", "dog", "owl")
    assert names(files) == ["cat/a/z.png", "cat/b.bmp", "dog/1.png", "dog/2.png", "owl/x.gif"]
    assert files.labels.tolist() == [0, 0, 1, 1, 2]


def test_the_order_is_not_that_of_the_disk(pets, monkeypatch):
    before = names(find_images(pets))
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: reversed(list(walk(*a, **k))))
    assert names(find_images(pets)) == before


@pytest.mark.parametrize(
    "name", [".DS_Store", "dog/.hidden.png", "dog/.cache/1.png", ".git/x.png", "dog/notes.txt", "README"]
)
def test_hidden_files_and_files_that_are_no_images_are_passed_over(pets, name):
    before = names(find_images(pets))
    (pets / name).parent.mkdir(exist_ok=True)
    (pets / name).write_text("not an image")
    assert names(find_images(pets)) == before


def test_a_suffix_in_capitals_is_the_same(pets):
    (pets / "dog" / "1.png").rename(pets / "dog" / "1.PNG")
    assert len(find_images(pets)) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_class_may_be_a_link_to_a_folder(pets, tmp_path):
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset" / "dog").symlink_to(pets / "dog")
    assert names(find_images(tmp_path / "subset")) == ["dog/1.png", "dog/2.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_images_behind_a_link_deeper_down_are_found(pets, tmp_path):
    put(tmp_path, "elsewhere/1.png", "elsewhere/deep/2.png")
    (pets / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    assert {"cat/more/1.png", "cat/more/deep/2.png"} < set(names(find_images(pets)))


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
@pytest.mark.parametrize("goal", [".", "a", "../cat/a"])
def test_links_in_circles_and_to_what_is_there_add_nothing(pets, goal):
    before = len(find_images(pets))
    (pets / "cat" / "link").symlink_to(goal)
    (pets / "cat" / "a" / "link").symlink_to("../link")
    assert len(find_images(pets)) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
@pytest.mark.parametrize("goal", ["..", "../..", "../dog", "../owl/deep"])
@pytest.mark.parametrize("place", ["cat/link", "cat/a/link"])
def test_a_link_from_one_class_to_another_is_refused(pets, place, goal):
    put(pets, "owl/deep/1.png")
    (pets / place).symlink_to(os.path.join("..", goal) if place.count("/") > 1 else goal)
    with pytest.raises(DataError, match=r"link: a link to .*, so that images of the class (dog|owl) would be of this"):
        find_images(pets)


def linked(how, pets, outside):
    """Make an image that is of two classes, by a link of this kind."""
    cat, dog = pets / "cat" / "new.png", pets / "dog" / "new.png"
    if how == "a link to a file of another class":
        dog.symlink_to("../cat/b.bmp")
    elif how == "a hard link":
        os.link(pets / "cat" / "b.bmp", dog)
    elif how == "two links to a file elsewhere":
        cat.symlink_to(outside / "1.png"), dog.symlink_to(outside / "1.png")
    elif how == "two links to a folder elsewhere":
        (pets / "cat" / "more").symlink_to(outside), (pets / "dog" / "more").symlink_to(outside)
    elif how == "two classes that are one folder":
        (pets / "emu").symlink_to(outside), (pets / "fox").symlink_to(outside)
    else:
        (pets / "emu").symlink_to("cat/a")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
@pytest.mark.parametrize(
    "how",
    [
        "a link to a file of another class",
        "a hard link",
        "two links to a file elsewhere",
        "two links to a folder elsewhere",
        "two classes that are one folder",
        "a class in another",
    ],
)
def test_a_file_that_is_of_two_classes_is_refused(pets, tmp_path, how):
    put(tmp_path, "elsewhere/1.png")
    linked(how, pets, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"the same file as .*of two classes; expected it in one: remove one of them"):
        find_images(pets)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_file_that_is_in_its_class_twice_counts_once(pets):
    before = names(find_images(pets))
    (pets / "cat" / "c.bmp").symlink_to("b.bmp")
    os.link(pets / "dog" / "1.png", pets / "dog" / "3.png")
    assert names(find_images(pets)) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_file_that_is_for_training_and_for_the_test_is_refused(pets, tmp_path):
    shutil.copytree(pets, tmp_path / "both" / "train")
    shutil.copytree(pets, tmp_path / "both" / "test")
    assert [len(part) for part in find_splits(tmp_path / "both")] == [5, 5]
    (tmp_path / "both" / "test" / "owl" / "link.gif").symlink_to("../../train/cat/b.bmp")
    for roots in ([tmp_path / "both"], [pets, pets]):
        with pytest.raises(DataError, match=r"the same file as .*, which is to train on, so that it tests nothing"):
            find_splits(*roots)


def test_a_link_to_nowhere_is_told_by_name(pets):
    (pets / "cat" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"cat/gone\.png"):
        load_folder(pets, 4)


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be there")
def test_names_of_classes_are_one_line_of_plain_characters(tmp_path):
    put(tmp_path, "a\nb/1.png", "c/1.png")
    put(tmp_path, os.fsdecode(b"\xff") + "/1.png")
    assert load_folder(tmp_path, 4).class_names == (r"a\nb", "c", r"\udcff")


def test_every_suffix_that_is_read_belongs_to_a_format_that_is_read():
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in READ} <= {*FORMATS, "MPO"}
    assert not set(READ) & set(NOT_READ)


# reading


def test_images_stand_beside_their_labels(pets):
    dataset = load_folder(pets, size=(4, 6))
    assert dataset.images.shape == (5, 4, 6, 3)
    assert dataset.images[:, 0, 0, 0].tolist() == [30, 20, 10, 0, 40]
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2]
    assert dataset.class_names == ("cat", "dog", "owl")


def test_grey_images_have_one_channel(pets):
    assert load_folder(pets, size=8, channels=1).images.shape == (5, 8, 8, 1)


def test_one_bad_file_is_an_error_that_names_it(pets):
    (pets / "dog" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"dog/3.png: empty file; expected an image: copy it again or leave it out"):
        load_folder(pets, size=8)


def test_a_pipe_gets_no_progress_bar(pets, capsys):
    load_folder(pets, size=8)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_how_far_it_is(pets, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    load_folder(pets, size=8)
    assert "reading pets" in capsys.readouterr().err


# refusals


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: cannot be read \(No such file or directory\); expected a folder"):
        find_images(tmp_path / "nowhere")


def test_a_file_is_no_folder(pets):
    with pytest.raises(DataError, match=r"x.gif: cannot be read \(Not a directory\)"):
        find_images(pets / "owl" / "x.gif")


def test_images_without_sub_folders_are_refused(pets):
    with pytest.raises(DataError, match="owl: has no sub-folders; expected one for each class"):
        find_images(pets / "owl")


def test_classes_without_images_are_all_named(pets):
    (pets / "ant").mkdir()
    (pets / "bee").mkdir()
    with pytest.raises(DataError, match=r"no images in ant, bee; expected files such as .jpg, .jpeg in each class"):
        find_images(pets)


def test_an_image_of_a_kind_that_is_not_read_is_an_error_and_not_missing(pets):
    (pets / "dog" / "photo.HEIC").write_bytes(b"x")
    with pytest.raises(DataError, match=r"photo.HEIC: an image of a kind that is not read; expected .jpg"):
        find_images(pets)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_an_error_and_not_empty(pets):
    (pets / "cat" / "a").chmod(0)
    with pytest.raises(DataError, match="cat/a: cannot be read"):
        find_images(pets)
    (pets / "cat" / "a").chmod(0o700)


def test_a_folder_that_vanishes_while_it_is_listed_is_an_error_and_not_empty(pets, monkeypatch):
    scandir = os.scandir

    def failing(path):
        if os.fspath(path).endswith("a"):
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(DataError, match="a: cannot be read"):
        find_images(pets)


# training and test


def test_a_share_of_each_class_is_held_out(tmp_path):
    rest, held = many(tmp_path, big=50, small=10, tiny=2).hold_out(0.2, seed=0)
    assert np.bincount(held.labels).tolist() == [10, 2, 1]
    assert np.bincount(rest.labels).tolist() == [40, 8, 1]


def test_what_is_held_out_is_not_trained_on_and_nothing_is_lost(tmp_path):
    files = many(tmp_path, a=20, b=30)
    rest, held = files.hold_out(0.3, seed=0)
    assert not set(rest.paths) & set(held.paths)
    assert sorted(rest.paths + held.paths) == list(files.paths)


def test_labels_follow_their_files_into_both_parts(tmp_path):
    for part in many(tmp_path, a=20, b=30).hold_out(0.3, seed=0):
        assert [path.parent.name for path in part.paths] == ["ab"[label] for label in part.labels]


def test_the_seed_alone_decides_what_is_held_out(tmp_path):
    files = many(tmp_path, a=30)
    first, again, other = (names(files.hold_out(0.2, seed)[1]) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_held_out_part_is_not_simply_the_first_or_the_last(tmp_path):
    held = names(many(tmp_path, a=30).hold_out(0.2, seed=0)[1])
    every = names(find_images(tmp_path))
    assert held not in (every[:6], every[-6:])


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_that_cannot_be_is_refused(pets, share):
    with pytest.raises(DataError, match="the test share is"):
        find_images(pets).hold_out(share, seed=0)


@pytest.mark.parametrize("share", [float("nan"), -1.0, 0.0, 1.0])
def test_a_share_that_cannot_be_is_refused_where_it_is_not_used_too(pets, tmp_path, share):
    shutil.copytree(pets, tmp_path / "both" / "train")
    shutil.copytree(pets, tmp_path / "both" / "test")
    for roots in ((tmp_path / "both",), (pets, pets)):
        with pytest.raises(DataError, match=f"the test share is {share}; expected a number between 0 and 1"):
            find_splits(*roots, test_share=share)


def test_a_class_of_one_image_cannot_be_divided(pets):
    with pytest.raises(DataError, match="owl: 1 image; expected at least 2, one to train with and one to test"):
        find_splits(pets)


def test_the_digest_is_of_the_names_and_not_of_the_place(pets, tmp_path):
    before = find_images(pets).digest
    shutil.move(pets, tmp_path / "moved")
    assert find_images(tmp_path / "moved").digest == before
    (tmp_path / "moved" / "dog" / "1.png").rename(tmp_path / "moved" / "dog" / "9.png")
    assert find_images(tmp_path / "moved").digest != before


@pytest.mark.parametrize("test", ["test", "val", "valid", "Validation"])
def test_folders_train_and_test_are_the_two_parts(tmp_path, test):
    put(tmp_path, "train/a/1.png", "train/b/1.png", f"{test}/a/2.png", f"{test}/b/2.png")
    parts = find_splits(tmp_path)
    assert [names(part) for part in parts] == [["a/1.png", "b/1.png"], ["a/2.png", "b/2.png"]]


def test_a_class_may_be_called_train(tmp_path):
    many(tmp_path, bus=4, train=4)
    assert find_splits(tmp_path)[0].class_names == ("bus", "train")


def test_three_parts_are_refused_rather_than_taken_for_classes(tmp_path):
    put(tmp_path, "train/a/1.png", "test/a/1.png", "val/a/1.png")
    with pytest.raises(DataError, match="holds test, train, val; expected train and one of test, val"):
        find_splits(tmp_path)


def test_a_test_folder_of_its_own_is_taken_whole(pets, tmp_path):
    shutil.copytree(pets, tmp_path / "more")
    train, test = find_splits(pets, tmp_path / "more")
    assert (len(train), len(test)) == (5, 5)


def test_different_classes_in_training_and_test_are_shown(pets, tmp_path):
    put(tmp_path / "more", "cat/1.png", "dog/1.png", "yak/1.png")
    with pytest.raises(DataError, match=r"only in .*pets: owl; only in .*more: yak\); expected the same sub-folders"):
        find_splits(pets, tmp_path / "more")
