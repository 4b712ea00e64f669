"""python -m tests.faults: all that must not happen, tried. See the package's docstring."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # of the plugins, random order would make a run unlike another
sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it, so that the modules have one name

import numpy as np
from mutants.trial import Workshop

from faults import broken

NAMES = ("broken", "resumes", "saves", "signals", "flips", "data", "costs")
LONG = ("suite",)


def break_promises() -> bool:
    with tempfile.TemporaryDirectory(prefix="vitnp-faults-") as folder:
        wrong = broken.try_all(Workshop(Path(folder).resolve()), len(os.sched_getaffinity(0)))
    for line in wrong:
        print(f"  {line}")
    print(
        f"broken   {len(broken.CHECKS)} ways to break {len(broken.PROMISES)} promises, {len(wrong)} of them unnoticed"
    )
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "trials",
        nargs="*",
        metavar="TRIAL",
        help=f"some of {', '.join(NAMES)}, which are tried unless said; or {', '.join(LONG)}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the damage")
    options = parser.parse_args()
    if unknown := set(options.trials) - {*NAMES, *LONG}:
        parser.error(f"there is no trial {', '.join(sorted(unknown))}: choose from {', '.join(NAMES + LONG)}")
    chosen = options.trials or NAMES
    # First, for the other trials load the package, and the forks of this process are to load the broken ones.
    right = break_promises() if "broken" in chosen else True
    from faults.trials import TRIALS

    for name in [name for name in chosen if name in TRIALS]:
        with tempfile.TemporaryDirectory(prefix="vitnp-faults-") as folder:
            right = TRIALS[name](Path(folder), np.random.default_rng(options.seed)) and right
        sys.stdout.flush()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
