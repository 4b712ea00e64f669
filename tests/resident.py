"""How much of the machine's memory a call takes, which `tracemalloc` does not see of C libraries, and of lazy pages.

A process keeps its peak for good, and one that starts another hands it on. So every call is a fork of its own, made by
a process that has loaded what the calls need, and nothing else.
"""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that ru_maxrss counts in
PROGRAM = """
import json, os, resource, sys
exec(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for call in sys.argv[2:]:
    if os.fork() == 0:
        before, said = peak(), ""
        try:
            eval(call)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps([said, peak() - before]), flush=True)
        os._exit(0)
    os.wait()
"""


def add_bomb(archive, name, content, megabytes=300, checked=None):
    """Add a member that claims to be this content, by length and checksum, and goes on with zeros.

    The checksum is that of its first `checked` bytes, as many as it claims unless said.
    """
    with archive.open(name, "w") as file:
        file.write(content)
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    member = archive.getinfo(name)
    member.file_size, member.CRC = len(content), zlib.crc32((content + bytes(9))[: checked or len(content)])


class Taken(NamedTuple):
    """What a call said: the error, "" for none; and the bytes of memory by which the process grew at most."""

    said: str
    bytes: int


def taken_by(calls: list[str], imports: str) -> list[Taken]:
    """Return what each of the calls took, after these imports."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", PROGRAM, imports, *calls]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(lines) == len(calls), process.stderr
    return [Taken(said, UNIT * grown) for said, grown in lines]
