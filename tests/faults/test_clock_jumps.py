"""The wall clock jumps by days, as when a laptop wakes up or a time server corrects it: nothing here is measured by it."""

from __future__ import annotations

import ast
import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.making import MESSAGES, PATIENCE, TEXT, eventually, hold, make_artefacts, put_catalog
from langchain_core.messages import HumanMessage

import middleware
import migrations
import sae_runtime
import ui
from middleware import CatalogSource, InspectionRequest, SAEAnnotator
from middleware.testing import FakeInspector
from sae_runtime.errors import EngineError, InspectionTimeout

DAY = 86_400.0
BOOM = EngineError("Broken.")
ALLOWED = {
    "sae_runtime/build/publish.py": "the date of a build, for people",
    "sae_runtime/build/report/card.py": "the same",
    "sae_runtime/serving/observer.py": "the date of a logged prompt, for people",
    "middleware/policy.py": "tells purgatory, which asks the wall clock, how long its circuit has been open",
}


class Clock:
    """The wall clock; ``jump`` sets it forward, or back when negative."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.offset = 0.0

    def __call__(self) -> float:
        return self._now() + self.offset

    def jump(self, seconds: float) -> None:
        self.offset += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """``time.time`` and ``time.time_ns`` of the whole process."""
    clock = Clock(time.time)
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(time, "time_ns", lambda: int(clock() * 1e9))
    yield clock


def test_a_jump_neither_opens_nor_holds_the_circuit(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five failures suspend readings for 30 s by a clock that cannot jump."""
    elapsed = 0.0
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + elapsed)
    annotator = SAEAnnotator(source=FakeInspector(outcomes=[BOOM] * 5))

    def bypass() -> str | None:
        return annotator.annotate(TEXT).bypass

    assert [bypass() for _ in range(6)] == [*["EngineError"] * 5, "circuit open"]
    clock.jump(DAY)
    assert bypass() == "circuit open"  # a day later by the wall clock, no time later in fact
    clock.jump(-2 * DAY)
    assert bypass() == "circuit open"
    elapsed = 31.0
    assert bypass() is None  # 31 s later in fact, two days earlier by the wall clock
    assert bypass() is None


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])
def test_a_jump_neither_shortens_nor_lengthens_a_deadline(
    clock: Clock, tiny: Path, artefacts: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    source = CatalogSource.open(str(tiny), artefacts=artefacts)
    begun, release = hold(source.inspector.engine, monkeypatch)
    results: list[Any] = []
    request = InspectionRequest(MESSAGES, [0])
    thread = threading.Thread(target=lambda: results.append(source.inspect(request, deadline=PATIENCE)))
    thread.start()
    assert begun.wait(PATIENCE)
    clock.jump(jump)
    thread.join(0.2)
    assert thread.is_alive()  # the deadline has not passed
    release.set()
    thread.join(PATIENCE)
    assert results[0].misreads
    release.clear()
    for call in (source.inspect, lambda *args, **options: asyncio.run(source.ainspect(*args, **options))):
        with pytest.raises(InspectionTimeout):
            call(request, deadline=0.05)
    release.set()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])
def test_a_new_catalog_is_noticed_whatever_its_date(
    clock: Clock, tiny: Path, artefacts: Path, tmp_path: Path, jump: float
) -> None:
    """A file that looks older than the one in service is another one all the same."""
    annotator = SAEAnnotator.from_catalog(str(tiny), artefacts=artefacts)
    second = make_artefacts(tmp_path / "second", tiny, note="Second.")
    when = time.time() + jump
    os.utime(second / "catalog.sqlite", (when, when))
    clock.jump(jump)
    put_catalog(second, artefacts)
    eventually(lambda: "Second." in annotator.invoke([HumanMessage(TEXT)])[0].content)


def wall_clock_calls(tree: ast.AST) -> list[str]:
    """Calls that ask the wall clock."""
    asked = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [".".join(ast.unparse(call).split(".")[-2:]) for call in calls]
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
    ]
    return [name for name in names if name in asked] + [name for name in imported if name in ("time", "time_ns")]


def test_no_module_measures_time_by_the_wall_clock() -> None:
    root = Path(middleware.__file__).parents[1]
    found = {}
    for package in (middleware, sae_runtime, ui, migrations):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            if calls := wall_clock_calls(ast.parse(path.read_text("utf-8"))):
                found[str(path.relative_to(root))] = calls
    assert found.keys() <= ALLOWED.keys(), found
    assert wall_clock_calls(ast.parse("import time\nfrom time import time_ns\ntime.time()\ndatetime.datetime.now()"))
