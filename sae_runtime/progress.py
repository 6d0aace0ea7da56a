"""Progress bars with throughput and time left, on standard error so that ``--json`` output stays clean."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)
_LINE_SECONDS = 30.0


class Advance(Protocol):
    """Reports ``amount`` more units of finished work, with an optional short status text."""

    def __call__(self, amount: float, status: str = "") -> None:
        """Add ``amount`` to the finished work and show ``status`` behind the bar."""


@contextmanager
def progress(title: str, total: float, *, done: float = 0, as_bytes: bool = False) -> Iterator[Advance]:
    """Show one bar while the block runs; yields the function that advances it.

    Args:
        title: what is being done.
        total: units of work in all.
        done: units finished by an earlier, interrupted run.
        as_bytes: print the amounts as MB and GB instead of a count.
    """
    amounts = DownloadColumn() if as_bytes else MofNCompleteColumn()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        amounts,
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    lines = _Lines(title, total, done)
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=total, completed=int(done), status="")

        def advance(amount: float, status: str = "") -> None:
            bars.update(task, advance=amount, status=status)
            if not console.is_terminal:
                lines.advance(amount, status)

        yield advance


class _Lines:
    """Progress for log files, which show no bars: a line now and then."""

    def __init__(self, title: str, total: float, done: float) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._began = self._printed = time.monotonic()

    def advance(self, amount: float, status: str) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._printed < _LINE_SECONDS or self._done <= self._first:
            return
        self._printed = now
        left = (self._total - self._done) * (now - self._began) / (self._done - self._first)
        console.print(
            f"{self._title} {self._done:.0f}/{self._total:.0f}, about {left / 60:.0f} min left {status}",
            highlight=False,
        )
