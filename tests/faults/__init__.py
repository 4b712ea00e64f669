"""Trials of what must not happen: runs killed and stopped at random moments, files damaged anywhere, promises broken.

    python -m tests.faults                    everything, some ten minutes on two cores
    python -m tests.faults resumes saves      some of it

    resumes    runs killed with SIGKILL at random moments and resumed end with the bits of one that was never stopped
    saves      a run that saves every step is killed again and again, and its checkpoint always loads
    signals    SIGINT and SIGTERM at random moments: the step is finished, the checkpoint saved, the status 130 or 143
    flips      a checkpoint cut at every byte, and with flipped bits: none of them loads
    data       damaged data files: none of them loads as something else without a word
    costs      what saving and checking cost
    broken     each promise of tests/README.md is broken in the sources, and the tests of its row must fail
    suite      all tests twenty times, each time in another order and with other seeds; an hour: only when it is named

The tests take a few of each; here are all. The last line of a trial says what came out, and the exit status whether all
is as it must be. `--seed` draws other moments and other damage.
"""
