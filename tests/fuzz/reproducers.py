"""Cases that broke a law, as files: the case as a Python literal, how to run it again, and what it raised."""

from __future__ import annotations

import ast
import hashlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).parents[2]


class Reproducers:
    """The folder ``crashes`` of one target. One file per place that raises; a smaller case replaces a larger one."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder / "crashes"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._running = self._folder / "running"
        self._target = target

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self._folder.glob("*.txt")))

    def running(self, case: Any) -> None:
        """Write down the case that is being checked (None: none), for what ends the process."""
        if case is None:
            self._running.unlink(missing_ok=True)
        else:
            self._running.write_text(repr(case), "utf-8", "surrogatepass")

    def keep(self, case: Any, error: BaseException) -> str:
        """Keep ``case``, which raised ``error``; returns the file's path."""
        place = next(
            (frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if _ours(frame.filename)), None
        )
        where = f"{Path(place.filename).name}:{place.lineno}" if place else "elsewhere"
        reason = "".join(traceback.format_exception(error))
        return self._write(f"{type(error).__name__}-{where}", repr(case), reason)

    def keep_running(self, reason: str) -> str | None:
        """Keep the case in which the process ended, if there was one."""
        if not self._running.exists():
            return None
        case = self._running.read_text("utf-8", "surrogatepass")
        self._running.unlink()
        return self._write(
            f"ended-{hashlib.sha256(case.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}", case, reason
        )

    def _write(self, name: str, case: str, reason: str) -> str:
        path = self._folder / f"{name.replace(':', '-')}.txt"
        if path.exists() and len(repr(read_case(path))) <= len(case):
            return str(path)
        comment = "\n".join(f"# {line}" for line in reason.splitlines())
        head = f"# Run it again: python -m tests.fuzz.run {self._target} --replay {path}"
        path.write_text(f"{head}\n{case}\n{comment}\n", "utf-8", "backslashreplace")
        return str(path)


def read_case(path: Path) -> Any:
    """The case in a reproducer's file."""
    lines = path.read_text("utf-8").splitlines()
    return ast.literal_eval("\n".join(line for line in lines if line and not line.startswith("#")))


def _ours(filename: str) -> bool:
    return filename.startswith(str(_PROJECT)) and ".venv" not in filename
