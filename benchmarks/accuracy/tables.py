"""A table of figures, some of them held to limits: how it is filled, which limits it missed, how it reads in Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Figure", "Table", "page"]


@dataclass(frozen=True)
class Figure:
    """A measured number, and the limits it is held to, if any."""

    value: float
    at_most: float | None = None
    at_least: float | None = None
    form: str = ".1e"

    @property
    def good(self) -> bool:
        """Whether the limits hold; a value that is not a number meets none."""
        if self.at_most is None and self.at_least is None:
            return True
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def __str__(self) -> str:
        shown = f"{self.value:{self.form}}"
        if self.at_most is None and self.at_least is None:
            return shown
        if self.at_least is None:
            limit = f"≤ {self.at_most:g}"
        elif self.at_most is None:
            limit = f"≥ {self.at_least:g}"
        else:
            limit = f"{self.at_least:g} to {self.at_most:g}"
        return f"{shown} ({limit})" if self.good else f"**{shown} (limit {limit}: missed)**"


@dataclass
class Table:
    """Rows under column heads; the first cell of a row names what was measured."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)

    def add(self, *cells: Figure | str | int) -> None:
        """One row; limits that its figures miss are remembered."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: a row of {len(cells)} cells under {len(self.columns)} columns; give one for each")
        self.rows.append(tuple(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells))
        for column, cell in zip(self.columns, cells, strict=True):
            if isinstance(cell, Figure) and not cell.good:
                self.misses.append(f"{self.title}: {cells[0]}: {column}: {str(cell).strip('*')}")

    def markdown(self) -> str:
        """The section of this table."""
        escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in (self.columns, *self.rows)]
        head, *body = ("| " + " | ".join(row) + " |" for row in escaped)
        return "\n".join([f"## {self.title}", "", self.text, "", head, "|---" * len(self.columns) + "|", *body])


def page(preface: str, tables: list[Table]) -> str:
    """The whole page."""
    return "\n\n".join([preface, *(table.markdown() for table in tables)]) + "\n"
