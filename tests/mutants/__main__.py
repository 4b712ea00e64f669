"""python -m tests.mutants: every mutant must be noticed by the tests. See the package's docstring."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # of the plugins, random order would make a run unlike another
sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it, so that the modules have one name

from mutants import automatic, gradients, seeded
from mutants.equivalent import EQUIVALENT
from mutants.trial import Job, PatchError, Workshop, patched, run_tests

for slow in ("hypothesis.strategies", "numpy", "PIL.Image", "pytest", "threadpoolctl"):  # once, before the forks
    importlib.import_module(slow)

# what notices most mistakes in a file, tried before everything else
NEAREST = {
    "vitnp/context.py": ("layers/test_linear.py", "layers/test_layer_norm.py", "test_context.py", "test_parallel.py"),
    "vitnp/inspection/outlines.py": ("inspection/test_outlines.py", "inspection/test_summary.py"),
    "vitnp/inspection/summary.py": ("inspection/test_summary.py",),
    "vitnp/kernels/cpu.py": ("kernels/test_cpu.py", "layers/test_layer_norm.py", "layers/test_gelu.py"),
    "vitnp/few_shot.py": ("test_few_shot.py",),
    "vitnp/layers/bottleneck.py": ("layers/test_resnet.py",),
    "vitnp/layers/windows.py": ("layers/test_conv.py", "layers/test_max_pool.py"),
    "vitnp/layers/patch_embed.py": ("layers/test_patch_embed.py",),
    "vitnp/losses.py": ("test_losses.py",),
    "vitnp/moving_average.py": ("test_moving_average.py",),
    "vitnp/masked.py": ("test_masked.py",),
    "vitnp/optim.py": ("test_optim.py",),
    "vitnp/parallel.py": ("test_moving_average.py", "test_parallel.py"),
    "vitnp/vit.py": (
        "test_vit.py::test_every_gradient_of_the_model_is_the_derivative_of_the_loss",
        "test_vit.py::test_every_gradient_of_another_architecture_is_the_derivative",
    ),
}
# everything that runs in seconds, the quickest first, but the tests of the gradient check itself
EVERYTHING = (
    "test_context.py",
    "test_losses.py",
    "kernels",
    "test_golden.py",
    "test_strict_cupy.py",
    "test_layer.py",
    "test_robustness.py",
    "test_optim.py",
    "test_few_shot.py",
    "test_masked.py",
    "test_moving_average.py",
    "inspection/test_summary.py",
    "test_parallel.py",
    "test_backend.py",
    "test_traps.py",
    "layers",
    "test_vit.py",
)
Part = tuple[int, int]  # K and N: every Nth, from the Kth on


def nearest(files: Iterable[str]) -> list[str]:
    """Return the tests that are tried first on mistakes in these files."""
    found = [name for file in files for name in NEAREST.get(file, (f"layers/test_{Path(file).stem}.py",))]
    return [f"tests/{name}" for name in dict.fromkeys([*found, "kernels/test_cpu.py", "test_golden.py"])]


def job(name: str, sources: dict[str, str], everything: bool = True) -> Job:
    """A trial of the tests; `everything` that is quick, if the nearest notice nothing."""
    stages = [nearest(sources)]
    if everything:
        stages.append([f"tests/{file}" for file in EVERYTHING])
    return Job(name, sources, partial(run_tests, stages=stages))


def try_all(workshop: Workshop, jobs: list[Job], workers: int) -> dict[str, str]:
    """Return the answer to each job, by its name; a line for each that was not noticed."""
    answers: dict[str, str] = {}
    for done, answer in workshop.run(jobs, workers):
        answers[done.name] = answer
        if not answer.startswith("failed") and done.name not in EQUIVALENT:
            print(f"  {answer:8} {done.name}", flush=True)
    return answers


def noticed(answer: str) -> bool:
    """A test failed, or the fork did not come to an end: by time, by memory, by a crash."""
    return answer.startswith(("failed", "died: SIG"))


def report_seeded(answers: dict[str, str]) -> bool:
    """Print how many of each kind were noticed; return whether all were."""
    right = True
    for kind in dict.fromkeys(mutant.kind for mutant in seeded.MUTANTS):
        of_kind = [answers[mutant.name] for mutant in seeded.MUTANTS if mutant.kind == kind]
        caught = sum(map(noticed, of_kind))
        right &= caught == len(of_kind)
        print(f"{kind:10} {caught:4} of {len(of_kind)}")
    return right


def report_automatic(answers: dict[str, str], whole: bool) -> bool:
    """Print how many changes were noticed; return whether all others are known to change nothing.

    `whole` says that all changes were tried, so that one which is listed and was not is gone.
    """
    caught = {key for key, answer in answers.items() if noticed(answer)}
    broken = [key for key, answer in answers.items() if answer.startswith("died") and key not in caught]
    unknown = [key for key in answers if key not in caught and key not in EQUIVALENT]
    stale = [key for key in EQUIVALENT if key in caught or (whole and key not in answers)]
    changes = len(answers) - sum(key in answers for key in EQUIVALENT)
    print(f"automatic  {len(caught):4} of {len(answers)} ({100 * len(caught) / len(answers):.1f} %)", end="")
    print(f", and {len(answers) - changes} that change nothing")
    for text, keys in (("not noticed", unknown), ("listed as equivalent, but is not, or is gone", stale)):
        for key in keys:
            print(f"  {text}: {key}")
    return not (broken or unknown or stale)


def part_of_changes(text: str) -> Part:
    """ "2/3" -> (2, 3)"""
    first, step = map(int, text.split("/"))
    if not 1 <= first <= step:
        raise ValueError(f"--part is {text}; expected K/N with K from 1 to N")
    return first, step


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--gradcheck", action="store_true", help="the wrong gradients by the gradient check alone")
    parser.add_argument("--only", metavar="TEXT", default="", help="mutants whose name has this text")
    parser.add_argument(
        "--part",
        type=part_of_changes,
        default="1/1",
        metavar="K/N",
        help="of the small changes, or the wrong gradients, every Nth from the Kth on",
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="trials at a time")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vitnp-mutants-") as folder:
        try:
            workshop = Workshop(Path(folder).resolve())
            if options.gradcheck:
                right = gradients.check_all(workshop, options.workers, options.only, options.part)
            else:
                right = run(workshop, options.workers, options.only, options.part)
        except PatchError as error:
            print(error)
            right = False
    print(f"{time.perf_counter() - start:.0f} s")
    return 0 if right else 1


def run(workshop: Workshop, workers: int, only: str, part: Part) -> bool:
    """Try the clean package, all patches, and all small changes; return whether all is as it must be."""
    first = [job(mutant.name, patched(mutant.edits)) for mutant in seeded.MUTANTS if only in mutant.name]
    changes = [change for change in automatic.changes() if only in change.key][part[0] - 1 :: part[1]]
    if not first and not changes:
        print(f"there is no mutant with {only!r} in its name")
        return False
    everything = [f"tests/{file}" for file in EVERYTHING]
    answer = workshop.try_clean(partial(run_tests, stages=[everything]))
    if answer != "passed":
        print(f"the package as it is: {answer}: mutants tell nothing before its tests pass")
        return False
    second = [job(key, {file: source}, key not in EQUIVALENT) for key, file, source in changes]
    answers = try_all(workshop, [*first, *second], workers)
    if only:
        for name, answer in answers.items():
            print(f"{answer:60} {name}")
        return all(noticed(answer) or name in EQUIVALENT for name, answer in answers.items())
    right = report_seeded({one.name: answers[one.name] for one in first})
    return report_automatic({one.name: answers[one.name] for one in second}, whole=part[1] == 1) and right


if __name__ == "__main__":
    sys.exit(main())
