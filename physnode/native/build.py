"""C++ to a library in this process: one compilation for each source, kept on disk for the next process."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path

from physnode.native.expressions import Unsupported

__all__ = ["COUNTS", "cache_folder", "library"]

COUNTS: Counter[str] = Counter()
"""What this process has done: "traced" fields, "compiled" sources, libraries "loaded" from the cache."""

_FLAGS = ("-O2", "-std=c++17", "-march=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-w")
_loaded: dict[str, ctypes.CDLL] = {}


def cache_folder() -> Path:
    """Where libraries are kept: ``$PHYSNODE_CACHE``, else a folder ``physnode`` in the user's cache."""
    named = os.environ.get("PHYSNODE_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "physnode"


@lru_cache(maxsize=1)
def _compiler() -> tuple[str, ...]:
    """The compiler's command, and what tells its code apart from that of others.

    Raises:
        Unsupported: there is none.
    """
    command = os.environ.get("CXX") or "g++"
    path = shutil.which(command)
    if path is None:
        raise Unsupported(f"there is no C++ compiler here ({command!r} was not found; CXX may name one)")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    target = subprocess.run([path, "-march=native", "-Q", "--help=target"], capture_output=True, text=True, check=False).stdout
    return path, version, target, platform.machine(), sys.platform


def _wide() -> tuple[str, ...]:
    return ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()


def library(source: str) -> ctypes.CDLL:
    """The library made from ``source``: of this process, from the cache, or compiled now.

    Raises:
        Unsupported: there is no compiler, it fails, or its result cannot be kept.
    """
    here = Path(__file__).parent
    headers = "".join(
        (here / name).read_text(encoding="utf-8")
        for name in ("runtime.hpp", "layout.hpp", "forward.hpp", "backward.hpp", "interface.hpp")
    )
    compiler = _compiler()
    key = hashlib.sha256("\0".join((source, headers, *compiler, *_FLAGS)).encode()).hexdigest()[:32]
    if key not in _loaded:
        path = cache_folder() / f"{key}.so"
        if path.exists():
            COUNTS["loaded"] += 1
        else:
            try:
                _compile(compiler[0], source, path, here)
            except OSError as problem:
                raise Unsupported(
                    f"its code cannot be kept in {path.parent} ({problem}); PHYSNODE_CACHE names another folder"
                ) from problem
            COUNTS["compiled"] += 1
        try:
            _loaded[key] = ctypes.CDLL(str(path))
        except OSError as problem:
            raise Unsupported(
                f"its code cannot be loaded from {path} ({problem}); PHYSNODE_CACHE names another folder"
            ) from problem
    return _loaded[key]


def _compile(compiler: str, source: str, path: Path, headers: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, made = Path(folder) / "code.cpp", Path(folder) / "code.so"
        code.write_text(source, encoding="utf-8")
        command = [compiler, *_FLAGS, *_wide(), f"-I{headers}", str(code), "-o", str(made)]
        command += ["-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unsupported(f"the C++ compiler failed: {done.stderr.strip()[:400]}")
        os.replace(made, path)  # whole or not at all, also where two processes compile at once
