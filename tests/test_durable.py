"""A file is the old one or the new one at any moment, orphans go, and a lock dies with its holder."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from vitnp import durable
from vitnp.durable import Lock, LockedError, remove_orphans, try_lock, write_atomically

HOLD = """
import sys, time, pathlib, vitnp.durable
with vitnp.durable.Lock(pathlib.Path(sys.argv[1]), ""):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    return file


def test_folders_are_made(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


def test_the_target_is_old_until_the_new_one_is_whole_and_on_the_disk(path, monkeypatch):
    flushed, seen = [], []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(os.fstat(handle).st_size), fsync(handle)))

    def replace_and_look(source, target):
        with open(source, "rb") as file:
            seen.append((path.read_bytes(), file.read(), list(flushed)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_and_look)
    write_atomically(path, b"newer")
    assert seen == [(b"old", b"newer", [5])]
    assert len(flushed) == 2  # the folder too, once the name has changed
    assert path.read_bytes() == b"newer"


def test_the_temporary_file_is_beside_the_target(path, monkeypatch):
    folders = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (folders.append(os.path.dirname(names[0])), replace(*names)))
    write_atomically(path, b"new")
    assert folders == [str(path.parent)]


@pytest.mark.parametrize("links", [True, False], ids=["links", "a file system without links"])
def test_the_predecessor_is_kept_at_every_write(path, monkeypatch, links):
    def no_link(*names):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    previous = path.with_name("previous")
    for number in range(3):
        before = path.read_bytes()
        write_atomically(path, b"new %d" % number, previous)
        assert (path.read_bytes(), previous.read_bytes()) == (b"new %d" % number, before)
    assert sorted(os.listdir(path.parent)) == ["file", "previous"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_predecessor_that_is_a_link_stays_one(path, tmp_path):
    previous, kept = path.with_name("previous"), tmp_path / "elsewhere" / "kept"
    kept.parent.mkdir()
    kept.touch()
    previous.symlink_to(kept)
    for number in range(2):
        before = path.read_bytes()
        write_atomically(path, b"new %d" % number, previous)
        assert previous.is_symlink()
        assert kept.read_bytes() == before
    assert os.listdir(kept.parent) == ["kept"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, OSError])
def test_whatever_ends_a_write_leaves_no_temporary_file(path, monkeypatch, kind):
    def end(handle):
        raise kind

    monkeypatch.setattr(os, "fsync", end)
    with pytest.raises(kind):
        write_atomically(path, b"new")
    assert os.listdir(path.parent) == ["file"]


def test_a_first_file_has_no_predecessor(tmp_path):
    write_atomically(tmp_path / "file", b"new", tmp_path / "previous")
    assert os.listdir(tmp_path) == ["file"]


def test_the_predecessor_may_be_the_same_file_as_after_a_kill(path):
    previous = path.with_name("previous")
    os.link(path, previous)
    write_atomically(path, b"new", previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"new", b"old")
    assert sorted(os.listdir(path.parent)) == ["file", "previous"]


def test_what_a_killed_writer_left_of_the_predecessor_is_no_obstacle(path):
    previous = path.with_name("previous")
    os.link(path, path.with_name(".previous.link.tmp"))
    write_atomically(path, b"new", previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"new", b"old")
    assert sorted(os.listdir(path.parent)) == ["file", "previous"]


def test_a_write_that_fails_changes_neither_file(path, monkeypatch):
    previous = path.with_name("previous")
    previous.write_bytes(b"older")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new", previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"old", b"older")
    assert sorted(os.listdir(path.parent)) == ["file", "previous"]


def test_orphans_of_the_same_target_are_removed_and_no_other_file(path):
    others = ["file.tmp", ".file2.x.tmp", ".other.x.tmp", ".file.x.tmp2"]
    for name in [".file.abc.tmp", ".file.link.tmp", *others]:
        path.with_name(name).touch()
    write_atomically(path, b"new")
    assert sorted(os.listdir(path.parent)) == sorted(["file", *others])


def test_what_another_process_is_writing_is_no_orphan(path):
    being_written = path.with_name(".file.abc.tmp")
    with open(being_written, "wb") as file:
        assert try_lock(file)
        remove_orphans(path)
        assert being_written.exists()
    remove_orphans(path)
    assert not being_written.exists()


def test_a_writer_holds_a_lock_on_what_it_writes(path, monkeypatch):
    fsync, left = os.fsync, []

    def look(handle):
        remove_orphans(path)
        left.append([name for name in os.listdir(path.parent) if name.endswith(".tmp")])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, b"new")
    assert len(left[0]) == 1


def test_a_temporary_file_that_was_swept_before_it_was_locked_is_made_anew(path, monkeypatch):
    """Two writers of one file without a lock of their own, as two programs that save one model."""
    tried, made = durable.try_lock, []

    def sweep_first(file):
        made.append(1)
        if len(made) == 1:
            with monkeypatch.context() as other:
                other.setattr(durable, "try_lock", tried)
                remove_orphans(path)
        return tried(file)

    monkeypatch.setattr(durable, "try_lock", sweep_first)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert (len(made), os.listdir(path.parent)) == (2, ["file"])


def test_an_orphan_is_removed_while_it_is_locked(path, monkeypatch):
    """Else a writer could lock it in between, and lose what it believes to be its own."""
    orphan, remove, free = path.with_name(".file.abc.tmp"), os.remove, []
    orphan.touch()

    def look(name):
        with open(name, "r+b") as file:
            free.append(try_lock(file))
        remove(name)

    monkeypatch.setattr(os, "remove", look)
    remove_orphans(path)
    assert (free, orphan.exists()) == ([False], False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_is_refused_with_its_holder_and_dies_with_it(tmp_path, number):
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    refused = pytest.raises(LockedError, match=rf"another process \({holder.pid}\) trains here")
    with refused, Lock(lock, "trains here"):
        pass
    holder.send_signal(number)
    holder.communicate()
    with Lock(lock, "trains here"):
        assert lock.read_text() == str(os.getpid())
    assert not lock.exists()


def test_a_folder_where_no_lock_can_be_is_told(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    refused = pytest.raises(OSError, match=r"\.lock: no lock can be held there \(Permission denied\): make its folder")
    with refused, Lock(tmp_path / ".lock", "trains"):
        pass


def test_a_lock_that_finds_no_room_is_told_with_its_path(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    refused = pytest.raises(
        OSError, match=r"\.lock: no lock can be written there \(No space left on device\): make room"
    )
    with refused, Lock(tmp_path / ".lock", "trains"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
@pytest.mark.parametrize("name", ["file", "previous"])
def test_a_link_that_leads_to_itself_is_told(path, name):
    loop = path.with_name(name)
    loop.unlink(missing_ok=True)
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="a link that leads to itself: remove it") as caught:
        write_atomically(path, b"new", loop) if name == "previous" else write_atomically(loop, b"new")
    assert caught.value.filename == str(loop)


def test_a_lock_that_its_last_holder_removed_is_taken_again(tmp_path, monkeypatch):
    lock, tried, calls = tmp_path / "lock", durable.try_lock, []

    def remove_first(file):
        calls.append(1)
        if len(calls) == 1:
            os.remove(lock)
        return tried(file)

    monkeypatch.setattr(durable, "try_lock", remove_first)
    with Lock(lock, ""):
        assert lock.exists()
    assert len(calls) == 2


def test_where_no_locks_are_known_work_goes_on(tmp_path, monkeypatch):
    def unknown(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable, "try_lock", unknown)
    orphan = tmp_path / ".file.abc.tmp"
    orphan.touch()
    with Lock(tmp_path / "lock", ""):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert orphan.exists()  # it may be another's


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows links when it opens a file")
def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "precious").write_bytes(b"years of work")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(OSError, match=r"\.lock: is no plain file"), Lock(tmp_path / ".lock", "trains"):
        pass
    assert (tmp_path / "precious").read_bytes() == b"years of work"


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows links when it opens a file")
def test_a_lock_that_becomes_a_link_just_then_is_refused_too(tmp_path, monkeypatch):
    (tmp_path / "precious").write_bytes(b"years of work")
    (tmp_path / ".lock").symlink_to("precious")
    monkeypatch.setattr(type(tmp_path), "is_symlink", lambda path: False)
    with pytest.raises(OSError, match=r"\.lock"), Lock(tmp_path / ".lock", "trains"):
        pass
    assert (tmp_path / "precious").read_bytes() == b"years of work"


@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", os.mkdir)], ids=["folder", "FIFO"])
def test_what_is_no_file_under_the_name_of_a_lock_is_told_and_left_alone(tmp_path, make):
    make(tmp_path / ".lock")
    refused = pytest.raises(OSError, match=r"\.lock: is no plain file; expected a lock, or nothing: remove it")
    with refused, Lock(tmp_path / ".lock", "trains"):
        pass
    assert (tmp_path / ".lock").exists()
