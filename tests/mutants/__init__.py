"""The tests, tested: mistakes put into the sources on purpose, each of which some test must notice.

    seeded.py       mistakes that were made in networks written by hand, as patches
    automatic.py    one small change after another in every backward and in the optimizer's step
    equivalent.py   those of the small changes that change nothing, and why
    trial.py        the package copied, patched, and its tests run on it
    gradients.py    whether the gradient check alone sees a mistake, and where it says it is

    python -m tests.mutants                 all of the first two; status 1 unless every one is noticed
    python -m tests.mutants --gradcheck     the wrong gradients by the gradient check alone

Run from the root of the repository; needs os.fork. The checkout itself is never changed.
"""
