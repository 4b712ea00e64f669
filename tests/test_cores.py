import os

import pytest

from vitnp import cores
from vitnp.cores import usable_cores


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine of six processors, of which this process may use five, and that tells nothing else."""
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", {0: {0, 1, 2, 3, 5}}.get, raising=False)
    monkeypatch.setattr(cores, "SYSTEM", tmp_path)
    for name in cores.LIMITS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cores_are_those_that_this_process_may_use():
    assert usable_cores() == 5


def test_cores_are_all_where_a_system_does_not_tell(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 6


def test_there_is_one_where_nothing_is_known(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_hyper_threads_of_a_core_count_once(machine):
    for cpu in range(6):  # 0 and 3 share a core, 1 and 4, 2 and 5; this process may not use 4
        path = machine / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        write(path, f"{cpu % 3},{cpu % 3 + 3}\n")
    assert usable_cores() == 3


@pytest.mark.parametrize(
    ("limit", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("900000 100000", 5)]
)
def test_a_container_may_grant_fewer(machine, limit, expected):
    write(machine / "fs/cgroup/cpu.max", limit + "\n")
    assert usable_cores() == expected


@pytest.mark.parametrize("limit", ["max 100000", "", "nonsense"])
def test_a_container_may_grant_all(machine, limit):
    write(machine / "fs/cgroup/cpu.max", limit)
    assert usable_cores() == 5


@pytest.mark.parametrize("name", cores.LIMITS)
@pytest.mark.parametrize(("value", "expected"), [("1", 1), (" 3 ", 3), ("2,4", 2), ("64", 5)])
def test_threads_that_the_user_has_set_are_the_most(monkeypatch, name, value, expected):
    monkeypatch.setenv(name, value)
    assert usable_cores() == expected


@pytest.mark.parametrize("value", ["", "0", "-1", "many"])
def test_a_variable_that_sets_nothing_changes_nothing(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert usable_cores() == 5


def test_the_lowest_of_the_variables_counts(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert usable_cores() == 2
