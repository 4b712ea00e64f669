"""What a gradient check found: as a table for people, as JSON for programs, as a picture of one tensor's errors."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitnp.backend import Array, to_cpu

WIDTH = 100  # columns of the table
SHOWN = 5  # rows of a table that is not asked for in full
LINES = 15  # of it
NOTE_LINES = 5  # of these, for notes
FRESH = "a fresh model's head is zero, so fill its parameters with random numbers first"
GOOD = ("PASS", "ZERO", "KINK")
# of a whole check: the first of these that a row has
GRAVE = ("NONDETERMINISTIC", "IMPURE", "NOT REENTRANT", "MISSING", "SHAPE", "FAIL", "INCONCLUSIVE")


class GradcheckError(AssertionError):
    """A gradient is wrong, or the check could not be made; the message is the report."""


@dataclass
class Row:
    """What was found for one tensor.

    Attributes:
        name, shape: of the tensor.
        checked: "all 108" coordinates, or how many directions.
        error: relative to the largest entry of the tensor's gradient (directions: to the root mean square).
        index: where analytic and numeric gradient differ most; None where no coordinate was looked at.
        analytic, numeric: the two values there (without an index: along the direction).
        verdict: see `Report.verdict`; also ZERO, where both are zero.
        hint: what the error looks like, where that is certain; else empty.
    """

    name: str
    shape: tuple[int, ...]
    checked: str
    error: float
    index: tuple[int, ...] | None
    analytic: float
    numeric: float
    verdict: str
    hint: str = ""


@dataclass
class Report:
    """The outcome of a gradient check: print it, or ask `ok`, `verdict`, `rows`, `worst`, `to_json()`.

    `rows` are in forward order, the input last; before them stand faults that belong to no array. `method` and `mode`
    are empty where nothing was compared. `evaluations` counts forwards. `errors` holds |analytic − numeric| of those
    tensors whose every coordinate was checked, relative as `Row.error` is.
    """

    title: str
    method: str
    mode: str
    tolerance: float
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    start_here: str = ""
    advice: str = FRESH  # what to do where most gradients are zero
    evaluations: int = 0
    seconds: float = 0.0
    errors: Mapping[str, Array] = field(default_factory=dict, repr=False)

    @property
    def verdict(self) -> str:
        """One word for all rows, of the gravest first.

        NONDETERMINISTIC    two forwards of the same input differ
        IMPURE              forward or backward wrote into an array that is not its own
        NOT REENTRANT       a second backward of the same pass gives something else
        MISSING, SHAPE      a gradient is not there, or of another shape than its tensor
        FAIL                a gradient is wrong
        INCONCLUSIVE        the numeric derivative's own error bar is too wide to tell
        VACUOUS             most gradients are zero, which proves nothing
        KINK                right, but for places where there is no derivative, only one from each side
        PASS                right
        """
        verdicts = {row.verdict for row in self.rows}
        for verdict in GRAVE:
            if verdict in verdicts:
                return verdict
        if verdicts - {*GOOD}:
            return "INCONCLUSIVE"  # what nobody knows is not ok
        if 2 * sum(row.verdict == "ZERO" for row in self.rows) > len(self.rows):
            return "VACUOUS"
        return "KINK" if "KINK" in verdicts else "PASS"

    @property
    def ok(self) -> bool:
        """True for PASS and KINK, and for nothing else."""
        return self.verdict in ("PASS", "KINK")

    @property
    def worst(self) -> Row:
        """The row of the largest error; of rows with a grave verdict the first."""
        return self._sorted()[0]

    def raise_if_failed(self) -> None:
        """Raise GradcheckError with the table unless the check is `ok`."""
        if not self.ok:
            raise GradcheckError(f"\n{self}")

    def __str__(self) -> str:
        return self.table(SHOWN)

    def table(self, shown: int | None = None) -> str:
        """Return a table of at most 100 columns, worst row first; `shown` is the number of rows, all of them if None.

        Rows that pass are folded into one line unless all are shown. With `shown` there are 15 lines at most.
        """
        rows = self._sorted()
        top = rows if shown is None else self._top(rows, shown)
        notes = self._note_lines(None if shown is None else NOTE_LINES)
        lines = self._lines(rows, top, notes)
        while shown is not None and len(top) > 1 and len(lines) > LINES:
            top = top[:-1]
            lines = self._lines(rows, top, notes)
        return "\n".join(lines)

    def _lines(self, rows: list[Row], top: list[Row], notes: list[str]) -> list[str]:
        name = min(max([6, *(len(row.name) for row in top)]), 28)
        how = f": {self.method}, {self.mode}, tolerance {self.tolerance:.0e}" if self.method else ""
        how += f", {self.seconds:.2f} s"
        lines = [f"{_cut(self.title, WIDTH - 18 - len(how))}{how}  {self.verdict}"]
        lines.append(
            f"{'tensor':{name}} {'checked':>11} {'error':>7} {'worst index':>14} {'analytic':>11} {'numeric':>11}"
        )
        for row in top:
            lines += [_line(row, name), *_wrapped(f"  {row.hint}" if row.hint else "")]
        lines += self._folded([row for row in rows if row not in top])
        if self.start_here:
            lines.append(_cut(f"start here: {self.start_here}", WIDTH))
        return lines + notes

    def _note_lines(self, most: int | None) -> list[str]:
        """The notes, two lines each at most; of more lines than `most` the rest is counted."""
        lines, notes = list[str](), self._all_notes()
        for i, note in enumerate(notes):
            wrapped = _wrapped(f"note: {note}")
            if most is not None and len(lines) + len(wrapped) > most:
                return [*lines, f"note: {len(notes) - i} more in report.notes"]
            lines += wrapped
        return lines

    def _top(self, rows: list[Row], shown: int) -> list[Row]:
        """The worst rows, among them those that are explained: the cause may be elsewhere than the largest error."""
        bad = [row for row in rows if row.verdict not in GOOD]
        chosen = sorted(bad, key=lambda row: not row.hint)[:shown]
        return [row for row in bad if row in chosen] or rows[:1]

    def _sorted(self) -> list[Row]:
        rank = {verdict: place for place, verdict in enumerate(GRAVE)}
        return sorted(self.rows, key=lambda row: (rank.get(row.verdict, len(rank)), -row.error))

    def _folded(self, rows: list[Row]) -> list[str]:
        bad = sum(row.verdict not in GOOD for row in rows)
        good = [row for row in rows if row.verdict in GOOD]
        parts = [f"{bad} more"] if bad else []
        if good:
            worst = max(good, key=lambda row: row.error)
            zeros = sum(row.verdict == "ZERO" for row in good)
            parts.append(
                f"{len(good)} right (largest error {worst.error:.0e}, {worst.name}{f'; {zeros} zero' if zeros else ''})"
            )
        return [_cut(f"... {' · '.join(parts)}", WIDTH)] if parts else []

    def _all_notes(self) -> list[str]:
        if self.verdict != "VACUOUS":
            return self.notes
        zeros = sum(row.verdict == "ZERO" for row in self.rows)
        return [
            *self.notes,
            f"{zeros} of {len(self.rows)} gradients are zero, and a zero proves nothing: {self.advice}",
        ]

    def to_json(self) -> str:
        """Return everything but `errors` as JSON; infinite and missing numbers are null."""
        rows = [{k: _finite(v) for k, v in dataclasses.asdict(row).items()} for row in self.rows]
        whole = {"title": self.title, "verdict": self.verdict, "ok": self.ok, "method": self.method, "mode": self.mode}
        whole |= {"tolerance": self.tolerance, "evaluations": self.evaluations, "seconds": self.seconds}
        return json.dumps({**whole, "start_here": self.start_here, "notes": self._all_notes(), "rows": rows})

    def heatmap(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write a PNG of a tensor's relative errors, a square an element: white 1e-16 and less, yellow, red, black 1.

        A tensor of more than two axes is laid out with its last axis across. Raises ValueError for a tensor of which
        not every coordinate was checked, FileExistsError rather than write over a file.
        """
        if name not in self.errors:
            there = ", ".join(self.errors) or "none"
            raise ValueError(f"{name} was not checked in every coordinate (these were: {there}): use mode='full'")
        _draw_errors(to_cpu(self.errors[name]), f"{name}, {self.title}", path)


def grave(name: str, verdict: str, text: str) -> Row:
    """The row of what makes a comparison impossible."""
    return Row(name, (), "", math.inf, None, math.nan, math.nan, verdict, text)


def _line(row: Row, name: int) -> str:
    index = "" if row.index is None else str(row.index)
    numbers = f"{row.error:7.0e} {_cut(index, 14):>14} {_number(row.analytic)} {_number(row.numeric)}"
    if not row.checked:  # nothing was compared
        return f"{_cut(row.name, name):{name}} {row.verdict}"
    return f"{_cut(row.name, name):{name}} {_cut(row.checked, 11):>11} {numbers} {row.verdict}"


def _number(value: float) -> str:
    """In eleven columns, with a digit less where the exponent has three."""
    text = f"{value:11.4e}"
    return text if len(text) <= 11 else f"{value:11.3e}"


def _wrapped(text: str) -> list[str]:
    """The text in one line or two."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="      ", max_lines=2, placeholder=" ...", drop_whitespace=True)


def _cut(text: str, width: int) -> str:
    """The text, its middle left out where it is too long."""
    if len(text) <= width:
        return text
    tail = (width - 3) // 2
    return f"{text[: width - 3 - tail]}...{text[len(text) - tail :]}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw_errors(errors: np.ndarray, title: str, path: str | os.PathLike[str]) -> None:
    from PIL import Image, ImageDraw, ImageFont

    grid = errors.reshape(-1, errors.shape[-1]) if errors.ndim > 1 else errors.reshape(1, -1)
    level = np.clip((np.log10(np.maximum(grid, 1e-16)) + 16) / 16, 0, 1)
    level[~np.isfinite(grid)] = 1
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(level, stops, channel) for channel in np.array(_COLOURS).T], -1)
    side = max(1, min(24, 960 // max(grid.shape)))
    squares = Image.fromarray(colours.astype(np.uint8)).resize((side * grid.shape[1], side * grid.shape[0]), 0)
    margin, bar = 16, 14
    sheet = Image.new("RGB", (max(squares.width, 480) + 2 * margin, squares.height + 5 * margin + bar + 24), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    draw.text((margin, margin // 2), title, fill="#1f2328", font=font)
    sheet.paste(squares, (margin, 2 * margin))
    top = squares.height + 3 * margin
    for x in range(448):
        colour = tuple(int(np.interp(x / 447, stops, channel)) for channel in np.array(_COLOURS).T)
        draw.line([(margin + x, top), (margin + x, top + bar)], fill=colour)
    for x, text in ((0, "1e-16"), (224, "1e-8"), (448, "1")):
        anchor = "la" if x == 0 else "ra" if x == 448 else "ma"
        draw.text((margin + x, top + bar + 4), text, fill="#1f2328", font=font, anchor=anchor)
    with open(path, "xb") as file:  # x: never over a file
        sheet.save(file, "PNG")


_COLOURS = [(255, 255, 255), (254, 240, 180), (250, 190, 80), (220, 60, 40), (30, 0, 10)]
