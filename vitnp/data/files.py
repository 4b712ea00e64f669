"""What all readers of data files share: where files are looked for, bounded reading, and whose content it is.

Names prove nothing: Fashion-MNIST uses those of MNIST, and archives are compressed anew. The digest of the
uncompressed content decides, where it is a published one. Other content of the right structure is loaded too,
as a copy that somebody changed is still data, but a DataNotice says so and gives its digest.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vitnp.data.dataset import DataError, PathLike, data_roots

Split: TypeAlias = Literal["train", "test"]


class DataNotice(UserWarning):
    """Files are built as they should be, but their content is not the published one."""


def one_line(text: str) -> str:
    """The text on one line of plain characters: others, that a file's name or a server may hold, as \\n or \\x1b."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def data_error(message: str) -> DataError:
    """The error that says so, in one line."""
    return DataError(one_line(message))


def unusable(path: PathLike, found: str, expected: str, advice: str = "remove it and download it again") -> DataError:
    """The error about one file, in one line."""
    return data_error(f"{os.fspath(path)}: {found}; expected {expected}: {advice}")


def unreadable(path: PathLike, error: OSError) -> DataError:
    """The error about a file that the system does not let us read."""
    return unusable(path, f"cannot be read ({error.strerror or error})", "a readable file", "check its permissions")


def out_of_memory(path: PathLike, advice: str = "remove it and download it again") -> DataError:
    """The error about a file that the machine cannot hold, as damaged ones may ask for any amount."""
    return unusable(path, "needs more memory than there is", "a file that fits into it", advice)


def search_roots(root: PathLike | None, title: str) -> list[Path]:
    """Folders to look in, first to last: `root`, $VITNP_DATA, the user's cache, and where Keras keeps its files.

    A `root` that is no folder is an error: it is more often a typing mistake than a wish.
    """
    if root is not None and not os.path.isdir(os.path.expanduser(root)):
        expected = f"the one with the files of {title}, or to download them to"
        raise data_error(f"{os.fspath(root)} is not a folder; expected {expected}: correct its name, or make it first")
    keras = os.environ.get("KERAS_HOME") or os.path.join("~", ".keras")
    return list(dict.fromkeys([*data_roots(root), Path(os.path.expanduser(keras)) / "datasets"]))


def not_found(title: str, roots: Iterable[Path], passed_over: Iterable[str], advice: str) -> DataError:
    """The error where no set of files can be used: where it was looked, what was passed over and why."""
    found = "".join(f"; {mention}" for mention in passed_over)
    return data_error(
        f"no complete {title} in or below {', '.join(map(str, roots))}{found}: {advice}, let it be downloaded, or run "
        "train_digits.py, which needs no files"
    )


@contextmanager
def mentioning(passed_over: Sequence[str]) -> Iterator[None]:
    """Add to a DataError what was found before and passed over."""
    try:
        yield
    except DataError as error:
        raise DataError("; ".join([str(error), *passed_over])) from error


def read_content(path: PathLike, size: int) -> bytes:
    """The content of a plain or gzip file (its first bytes decide), up to one byte beyond `size`.

    That is enough to see that a file is too long, whatever it would unpack to, and asking for that byte also
    takes gzip to the end of the archive, which is where it compares checksums.
    """
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not compressed:
                return file.read(size + 1)
            with gzip.open(file) as archive:
                return archive.read(size + 1)
    except MemoryError as error:
        raise out_of_memory(path) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise unusable(path, f"damaged gzip archive ({error})", f"one of {size} bytes unpacked") from error
    except OSError as error:
        raise unreadable(path, error) from error


def is_web_page(content: bytes) -> bool:
    """Whether this is what servers send in place of a file: no data file begins with `<`."""
    return content[:256].lstrip().startswith(b"<")


def recognise(known: Mapping[str, tuple[str, str]], *parts: Any) -> tuple[tuple[str, str] | None, str]:
    """(what `known` says of these bytes, None if nothing; their SHA-256).

    `known` has SHA-256 and MD5 digests as keys, whichever was published. MD5 is enough to recognise a file: two
    files of one digest can be made, but not another file with the digest of a given one.
    """
    digests = {}
    for algorithm in ("sha256", "md5"):
        hasher = hashlib.new(algorithm, usedforsecurity=False)
        for part in parts:
            hasher.update(part)
        digests[algorithm] = hasher.hexdigest()
        if digests[algorithm] in known:
            return known[digests[algorithm]], digests["sha256"]
    return None, digests["sha256"]


def notice_unknown(where: PathLike, title: str, unknown: Mapping[str, str]) -> None:
    """Say once which files of a split, {name: SHA-256}, have another content than the published one."""
    if unknown:
        listed = ", ".join(f"{name} (SHA-256 {digest})" for name, digest in unknown.items())
        text = f"{os.fspath(where)}: content differs from the published {title}, loaded as it is: {listed}"
        warnings.warn(one_line(text), DataNotice, stacklevel=5)  # who called load_...
