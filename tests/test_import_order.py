"""Imports go downhill only, so that any part can be read, tested and replaced without the parts above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import physnode

PACKAGE = Path(physnode.__file__).parent

# From the bottom to the top. A module imports from lines below its own, and from its own line where that line says so.
ORDER = [
    # modules of the line                   may they import each other?
    ({"errors", "torch_internals", "live_bytes", "calling", "fields", "signals", "states"}, True),
    ({"nn", "engine", "methods"}, True),
    ({"native"}, False),
    ({"gradients"}, False),
    ({"checks", "drivers", "solution", "solve", "transforms", "ways"}, True),
    ({"systems", "data", "diagnostics"}, False),
    ({"fitting"}, False),
    ({"compat", "cli"}, False),
]
LEVEL = {name: level for level, (names, _) in enumerate(ORDER) for name in names}
FACE = {"__init__", "__main__"}  # the public face imports from everywhere, and nothing imports it

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in FACE)


def owner(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level module of physnode) for every import in the file, wherever it stands; "" is physnode itself."""
    package = ("physnode", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = list(package[: len(package) - node.level + 1]) if node.level else []
            stem += (node.module or "").split(".") if node.module else []
            names = [".".join([*stem, alias.name]) for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "physnode":
                yield node.lineno, rest[0] if rest else ""


def violations(path: Path) -> list[str]:
    mine = owner(path)
    found = []
    for line, other in imported(path):
        if other == mine:
            continue
        if other not in LEVEL:
            found.append(f"line {line}: imports {other or 'the package itself'!r}, which has no place in the order")
        elif LEVEL[other] > LEVEL[mine]:
            found.append(f"line {line}: {mine} imports {other}, which is above it")
        elif LEVEL[other] == LEVEL[mine] and not ORDER[LEVEL[mine]][1]:
            found.append(f"line {line}: {mine} imports {other}, its neighbour")
    return found


def test_every_top_level_module_has_a_place() -> None:
    unknown = {owner(path) for path in FILES} - set(LEVEL)
    assert not unknown, f"give {sorted(unknown)} a line in ORDER"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downhill(path: Path) -> None:
    if owner(path) in LEVEL:
        assert not violations(path)


def test_an_uphill_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "engine" / "families").mkdir(parents=True)
    inside = tmp_path / "engine" / "families" / "new.py"
    inside.write_text("def f():\n    from physnode.solve import solve\n    from ... import gradients\n    import physnode\n")
    assert [entry.split(":")[0] for entry in violations(inside)] == ["line 2", "line 3", "line 4"]
    (tmp_path / "data").mkdir()
    neighbour = tmp_path / "data" / "new.py"
    neighbour.write_text("from physnode.errors import DataError\nfrom physnode.systems import Pendulum\n")
    assert [entry.split(":")[0] for entry in violations(neighbour)] == ["line 2"]
