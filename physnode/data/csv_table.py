"""One text table as columns of strings, with the line each came from, so that every error can name its place."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physnode.data.findings import clean
from physnode.data.table import Array
from physnode.errors import DataError

MISSING = frozenset({"", "nan", "na", "n/a", "null", "none", "-", "--"})
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Text:
    """A table: columns by name, in order, and the line number of each row."""

    path: str
    columns: dict[str, list[str]]
    lines: list[int]

    def numbers(self, column: str) -> Array:
        """One column as float64, missing entries as NaN; raises DataError that names the line."""
        cells = self.columns[column]
        try:
            return np.array([np.nan if cell.lower() in MISSING else float(cell) for cell in cells], dtype=np.float64)
        except ValueError:
            for line, cell in zip(self.lines, cells, strict=True):
                if cell.lower() not in MISSING and not _is_number(cell):
                    raise self.fault(line, f"column '{clean(column)}' holds '{clean(cell, 40)}', which is no number") from None
            raise

    def fault(self, line: int, message: str) -> DataError:
        """An error that names file and line."""
        return DataError(f"{clean(self.path, 400)}, line {line}: {message}")


def read_text(
    path: str | os.PathLike[str], *, names: Sequence[str] | None = None, skip: int = 0, delimiter: str | None = None
) -> Text:
    """Read a table whose first line (after ``skip`` lines and comments that begin with #) names its columns.

    ``names`` replaces a missing header. The delimiter is found from the first line (comma, semicolon, tab, else blanks)
    unless given. Raises DataError for a file that is missing, empty, not text, or has rows of unequal length.
    """
    name = os.fspath(path)
    shown = clean(name, 400)
    if not Path(name).exists():
        raise DataError(f"{shown}: no such file")
    if not Path(name).is_file():
        raise DataError(f"{shown}: is not a regular file; give a table of text")
    try:
        content = Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{shown}: is not text in UTF-8; save the table as CSV") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from None
    numbered = [
        (number, line)
        for number, line in enumerate(content.splitlines(), start=1)
        if number > skip and line.strip() and not line.lstrip().startswith("#")
    ]
    if not numbered:
        raise DataError(f"{shown}: holds no table (no line with values)")
    mark = delimiter or next((item for item in _DELIMITERS if item in numbered[0][1]), None)
    cells = [(number, _split(line, mark)) for number, line in numbered]
    header = list(names) if names is not None else cells[0][1]
    rows = cells if names is not None else cells[1:]
    if not rows:
        raise DataError(f"{shown}: has a header but no rows")
    if len(set(header)) < len(header):
        raise DataError(f"{shown}: a column name is used twice: {clean(', '.join(header))}")
    if names is None and all(_is_number(cell) for cell in header):
        raise DataError(f"{shown}: the first line holds numbers, not column names; pass names=[...]")
    for number, row in rows:
        if len(row) != len(header):
            raise DataError(f"{shown}, line {number}: {len(row)} values, but there are {len(header)} columns")
    columns = {column: [row[index] for _, row in rows] for index, column in enumerate(header)}
    return Text(name, columns, [number for number, _ in rows])


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None or (delimiter.isspace() and delimiter != "\t"):
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
