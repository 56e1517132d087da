"""Findings: everything that is wrong with one trajectory file, said so that the reader can cure it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from physnode.data.schema import MAX_FINDINGS
from physnode.errors import DataError

Severity = Literal["error", "warning"]


def clean(text: object, limit: int = 120) -> str:
    """Text from a file made safe for a terminal, a log or a message: one line, escapes shown, cut at ``limit``."""
    raw = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in raw[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    ``rule`` is M01 to M10 (structure), D01 to D09 (content) or S01 (the file cannot be opened safely). ``object`` names
    the attribute or variable; ``trajectory`` (its id) and ``row`` (counted within it) say where, as far as known;
    ``value`` is what was found and ``cure`` what to do.
    """

    rule: str
    severity: Severity
    object: str
    message: str
    trajectory: int | None = None
    row: int | None = None
    value: str | None = None
    cure: str = ""

    def __str__(self) -> str:
        place = self.object
        if self.trajectory is not None:
            place += f", trajectory {self.trajectory}"
        if self.row is not None:
            place += f", row {self.row}"
        value = f" (found {self.value})" if self.value is not None else ""
        cure = f"; {self.cure}" if self.cure else ""
        return f"{self.rule} {self.severity}: {place}: {self.message}{value}{cure}"

    def as_dict(self) -> dict[str, str | int | None]:
        """The fields, for JSON."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "object": self.object,
            "message": self.message,
            "trajectory": self.trajectory,
            "row": self.row,
            "value": self.value,
            "cure": self.cure,
        }


@dataclass
class Findings:
    """A list of findings that grows while rules are checked, up to a limit that hostile files cannot pass."""

    items: list[Finding] = field(default_factory=list)

    def add(
        self,
        rule: str,
        where: str,
        message: str,
        *,
        severity: Severity = "error",
        trajectory: int | None = None,
        row: int | None = None,
        value: object = None,
        cure: str = "",
    ) -> None:
        """Note one broken rule; all text is escaped and cut here, once."""
        if len(self.items) < MAX_FINDINGS:
            shown = None if value is None else clean(value)
            self.items.append(
                Finding(rule, severity, clean(where), clean(message, 400), trajectory, row, shown, clean(cure, 600))
            )

    @property
    def errors(self) -> list[Finding]:
        """Those that make the file unusable."""
        return [item for item in self.items if item.severity == "error"]


@dataclass(frozen=True)
class Report:
    """What `validate` found in one file. ``ok`` is true if nothing of severity error was found."""

    path: str
    findings: tuple[Finding, ...]
    quick: bool = False

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make the file unusable."""
        return tuple(item for item in self.findings if item.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that leave the file usable."""
        return tuple(item for item in self.findings if item.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether the file can be used."""
        return not self.errors

    def __str__(self) -> str:
        verdict = "valid" if self.ok else "not valid"
        counts = f"{_count(self.errors, 'error')}, {_count(self.warnings, 'warning')}"
        scope = "; data not read" if self.quick else ""
        return "\n".join([f"{clean(self.path)}: {verdict} ({counts}{scope})", *(f"  {item}" for item in self.findings)])


def refuse(path: str, errors: list[Finding]) -> DataError:
    """The one-line error for a file that broke a rule."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more: physnode data validate lists all)" if len(errors) > 1 else ""
    prefix = "" if first.rule == "S01" else f"{first.rule} "
    text = str(first).removeprefix(f"{first.rule} {first.severity}: ")
    return DataError(f"{clean(path, 400)}: {prefix}{text}{more}")


def _count(items: Iterable[Finding], noun: str) -> str:
    number = len(tuple(items))
    return f"{number} {noun}{'' if number == 1 else 's'}"
