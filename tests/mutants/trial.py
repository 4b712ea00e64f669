"""Try mutants: patch a copy of the checkout, and do something with it in a process of its own.

What costs is starting: Python, NumPy and pytest take longer to load than a test takes to fail. So one process loads
them once, and each trial is a fork of it. The package itself is loaded after the fork only, and each fork looks first
where from. The bytecode of a patched file is deleted: Python takes a source of the same size and second for the same.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
COPIED = ("vitnp", "tests", "scripts", "pyproject.toml", "README.md")
SECONDS = 300  # that a trial may take: a loop without end is noticed too
BYTES = 16 << 30  # of address space: so is a shape that has become a power
FAILED = (1, 2)  # pytest's exit status: a test failed; none could be collected


class Edit(NamedTuple):
    """One piece of text, which must be in the file exactly once, and what replaces it."""

    file: str
    old: str
    new: str


class PatchError(Exception):
    """A patch that does not fit the sources as they are."""


class Job(NamedTuple):
    """A trial: the patched sources, by file, and what to do in the copy that has them."""

    name: str
    sources: dict[str, str]
    work: Callable[[Path], str]


def patched(edits: Iterable[Edit], root: Path = ROOT) -> dict[str, str]:
    """Return the sources that the edits change, by file; PatchError unless each piece is there exactly once."""
    sources: dict[str, str] = {}
    for file, old, new in edits:
        source = sources.get(file) or (root / file).read_text("utf-8")
        if old == new:
            raise PatchError(f"{file}: a patch that changes nothing: {old!r}")
        if source.count(old) != 1:
            raise PatchError(f"{file}: expected once, found {source.count(old)} times: {old!r}")
        sources[file] = source.replace(old, new)
    return sources


class Workshop:
    """Copies of the checkout in `folder`: a clean one, and one for each job at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clean = folder, folder / "clean"
        self.clean.mkdir()
        for name in COPIED:
            source = ROOT / name
            shutil.copytree(source, self.clean / name) if source.is_dir() else shutil.copy2(source, self.clean / name)

    def try_clean(self, work: Callable[[Path], str]) -> str:
        """Return the answer of the clean copy, which from then on has its bytecode."""
        pid = _fork(self.clean, work)
        return _answer(self.clean, os.waitpid(pid, 0)[1])

    def run(self, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, str]]:
        """Yield jobs with their answers, in the order in which they end. What a fork dies of is "died: ..."."""
        free = [Path(shutil.copytree(self.clean, self.folder / str(i), dirs_exist_ok=True)) for i in range(workers)]
        running: dict[int, tuple[Job, Path]] = {}
        waiting = list(reversed(jobs))
        try:
            while waiting or running:
                while waiting and free:
                    job, copy = waiting.pop(), free.pop()
                    self._patch(copy, job.sources)
                    running[_fork(copy, job.work, bytecode=False)] = job, copy
                pid, status = os.wait()
                job, copy = running.pop(pid)
                answer = _answer(copy, status)
                for file in job.sources:
                    shutil.copy2(self.clean / file, copy / file)
                free.append(copy)
                yield job, answer
        finally:
            for pid in running:
                os.kill(pid, signal.SIGKILL)

    @staticmethod
    def _patch(copy: Path, sources: dict[str, str]) -> None:
        for file, source in sources.items():
            (copy / file).write_text(source, "utf-8")
            for compiled in (copy / file).parent.glob(f"__pycache__/{Path(file).stem}.*"):
                compiled.unlink()


def _fork(copy: Path, work: Callable[[Path], str], bytecode: bool = True) -> int:
    """Return the process that does the work in the copy and leaves its answer there."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        output = os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)  # for tests that start Python
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = not bytecode
        importlib.invalidate_caches()
        _check_origin(copy)
        answer = work(copy)
    except BaseException as error:
        answer = f"died: {type(error).__name__}: {error}"
        traceback.print_exc()
    (copy / "answer").write_text(answer, "utf-8")
    sys.stdout.flush()
    os._exit(0)


def _check_origin(copy: Path) -> None:
    """Make sure that what will be imported is the copy."""
    spec = importlib.util.find_spec("vitnp")
    if "vitnp" in sys.modules or spec is None or spec.origin != str(copy / "vitnp" / "__init__.py"):
        raise RuntimeError(f"vitnp would be {spec and spec.origin}, not that of {copy}")


def _answer(copy: Path, status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"died: {signal.Signals(os.WTERMSIG(status)).name}"
    answer = (copy / "answer").read_text("utf-8")
    (copy / "answer").unlink()
    return answer


def run_tests(copy: Path, stages: Iterable[Sequence[str]]) -> str:
    """Run stages of test files until a test fails: -> "failed: TEST", or "passed"."""
    import pytest

    for stage in stages:
        start = (copy / "output").stat().st_size
        status = int(pytest.main([*stage, "-x", "-q", "-p", "no:cacheprovider", "--tb=line"]))
        sys.stdout.flush()
        if status in FAILED:
            return f"failed: {_first_failure((copy / 'output').read_bytes()[start:].decode('utf-8', 'replace'))}"
        if status:
            return f"died: pytest ended with status {status} on {' '.join(stage)}"
    return "passed"


def _first_failure(output: str) -> str:
    for line in output.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" ", 1)[1].split(" - ")[0].removeprefix("tests/")
    return "in collecting"
