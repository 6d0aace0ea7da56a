"""Many users at once, side by side with plain vLLM in one run: ``python -m benchmarks.load``.

Two servers of the same small model, on the same cores, one with the reading in its worker, one without Sensecheck. Three arms:

- ``plain``: vLLM without Sensecheck (the baseline);
- ``one call``: a chat completion that the server reads, annotates and answers;
- ``two calls``: ``SAEAnnotator`` with its defaults in front of the same server.

In each round, each number of users holds the same conversations in each arm, in an order drawn by the seed. A user says the next
thing as soon as it has been answered, without a pause, so 128 users mean 128 requests in the server at any time. While one
server answers, the other is stopped (SIGSTOP). Arms share no prompt's beginning, so none finds another's cache. Each crowd
has an annotator of its own, with its circuit closed.

What is measured is written after every crowd; the same command goes on where an interrupted run ended. ``--report`` prints the
tables again from the file. The users run on the server's cores, in every arm alike.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, time
from typing import Annotated

import typer
from pydantic import BaseModel

from benchmarks.overhead import Servers, start_servers
from benchmarks.table import show
from benchmarks.traffic import figures
from benchmarks.traffic.chats import Chat, chats
from benchmarks.traffic.figures import Cell, Memory
from benchmarks.traffic.histogram import Buckets, between, inspections
from benchmarks.traffic.processes import memory
from benchmarks.traffic.users import Arm, Line, Messages, Sample, bypasses_unlogged, crowd
from middleware import SAEAnnotator
from sae_runtime.errors import InputError
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.progress import Advance, progress

SERVERS = {"plain": "plain", "one call": "ours", "two calls": "ours"}  # by arm
_USERS = (1, 8, 32, 128)
_LEAST_CHATS = 12  # per crowd, however few users it has
_MEMORY_SECONDS = 2.0
_WARM_UP: Messages = [{"role": "user", "content": "Name a colour."}]


class Settings(BaseModel):
    """What all crowds of a file have in common."""

    model: str
    tokens: int
    compiled: bool
    seed: int


class Record(BaseModel):
    """The file: settings, the clock when the first crowd came, crowds."""

    settings: Settings
    began: float
    cells: list[Cell] = []

    @classmethod
    def open(cls, path: Path, settings: Settings) -> Record:
        """The record at ``path``, or a new one.

        Raises:
            InputError: it was made with other settings.
        """
        if not path.exists():
            return cls(settings=settings, began=time())
        record = cls.model_validate_json(path.read_text("utf-8"))
        if record.settings != settings:
            raise InputError(f"{path} was measured with other settings: {record.settings}.", "Give another --out.")
        return record

    def write(self, path: Path) -> None:
        """Put it in place whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(), "utf-8")
        partial.replace(path)

    def missing(self, rounds: int, users: list[int]) -> list[tuple[int, int, str]]:
        """Round, users and arm of the crowds that are still to come, in their order."""
        done = {(cell.round, cell.users, cell.arm) for cell in self.cells}
        order = []
        for number in range(rounds):
            for count in users:
                rng = random.Random(f"{self.settings.seed} {number} {count}")
                order += [(number, count, arm) for arm in rng.sample(list(SERVERS), len(SERVERS))]
        return [key for key in order if key not in done]


@dataclass(frozen=True)
class Run:
    """A load test under way."""

    record: Record
    servers: Servers
    crowd_seconds: float

    def chats(self, number: int, users: int) -> list[Chat]:
        """The conversations of a round, the same in every arm."""
        return chats(max(users, _LEAST_CHATS), self.record.settings.seed + 1_000 * number + users)

    async def cell(self, number: int, users: int, arm: str, advance: Advance) -> Cell:
        """Let one crowd talk, over connections of its own: the server's close while it is stopped."""
        server, asked = SERVERS[arm], self.chats(number, users)
        memories: list[Memory] = []
        settings = self.record.settings
        async with Line(self.servers.url(server), settings.model, settings.tokens) as line:
            with self.servers.awake(server):
                await line.plain(_WARM_UP, None, Sample())
                before = await inspected(line)
                with watching(self.servers.pid(server), self.record.began, memories):
                    samples, seconds = await crowd(
                        self._arm(arm, line), asked, users, seconds=self.crowd_seconds, name=f"{arm}-{number}-{users}",
                        advance=lambda: advance(1, f"round {number + 1}, {users} users, {arm}"),
                    )  # fmt: skip
                added = between(before, await inspected(line)) if arm == "one call" else {}
        unsaid = _turns(asked) - len(samples)
        advance(max(0, unsaid))
        return Cell(round=number, users=users, arm=arm, server=server, seconds=seconds, samples=samples, memory=memories,
                    cut=unsaid > 0 and seconds > self.crowd_seconds, inspections=added)  # fmt: skip

    def _arm(self, name: str, line: Line) -> Arm:
        if name == "two calls":
            return line.two_calls(SAEAnnotator.from_url(line.url))
        return line.one_call if name == "one call" else line.plain


async def inspected(line: Line) -> Buckets:
    """The one-call inspections of a server so far; empty for one that reads nothing."""
    return inspections((await line.http.get("/metrics")).raise_for_status().text, "one_call")


@contextmanager
def watching(pid: int, began: float, into: list[Memory]) -> Iterator[None]:
    """Look at the memory of a server's processes now and then, in the running event loop."""

    async def look() -> None:
        while True:
            into.append(Memory(at=round(time() - began, 1), roles=memory(pid)))
            await asyncio.sleep(_MEMORY_SECONDS)

    task = asyncio.get_running_loop().create_task(look())
    try:
        yield
    finally:
        task.cancel()


def measure(
    record: Record, out: Path, todo: list[tuple[int, int, str]], *, minutes: float, crowd_seconds: float
) -> None:
    """Let the crowds of ``todo`` talk until the time is over; the record grows."""
    settings, end = record.settings, perf_counter() + 60 * minutes
    with bypasses_unlogged(), ExitStack() as stack:
        servers = Servers()
        start_servers(settings.model, servers, {SERVERS[arm] for _, _, arm in todo}, stack,
                      compiled=settings.compiled, extra=())  # fmt: skip

        async def run() -> None:
            under_way = Run(record, servers, crowd_seconds)
            turns = sum(_turns(under_way.chats(number, users)) for number, users, _ in todo)
            with progress("load", turns) as advance:
                for number, users, arm in todo:
                    if perf_counter() > end:
                        break
                    record.cells.append(await under_way.cell(number, users, arm, advance))
                    record.write(out)

        asyncio.run(run())


def report(record: Record, svg: Path | None) -> None:
    """Print the tables, and write the plot."""
    for rows in (figures.answers(record.cells), figures.ratios(record.cells), figures.memory(record.cells)):
        if rows:
            show(rows, as_json=False)
            print()
    if cut := sum(cell.cut for cell in record.cells):
        print(f"{cut} of {len(record.cells)} crowds were cut short.")
    if svg and record.cells:
        figures.plot(record.cells, svg)


def _turns(some: list[Chat]) -> int:
    return sum(len(chat.turns) for chat in some)


def main(
    model: Annotated[str, typer.Option(help="Built-in model.")] = SMALL_MODEL,
    users: Annotated[list[int] | None, typer.Option(help="Users at once; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each crowd comes.")] = 2,
    tokens: Annotated[int, typer.Option(help="Output tokens per answer.")] = 32,
    compiled: Annotated[bool, typer.Option(help="Compile the models.")] = True,
    minutes: Annotated[float, typer.Option(help="After which no further crowd is let in.")] = 22.0,
    crowd_seconds: Annotated[float, typer.Option(help="After which nobody in a crowd says anything more.")] = 90.0,
    out: Annotated[Path, typer.Option(help="Where the measurements are kept.")] = Path("results/load.json"),
    svg: Annotated[Path | None, typer.Option(help="Write the plot there.")] = None,
    only_report: Annotated[bool, typer.Option("--report", help="Measure nothing: print what the file holds.")] = False,
    seed: int = 0,
) -> None:
    """Start the servers, let the crowds talk, print."""
    if only_report:
        report(Record.model_validate_json(out.read_text("utf-8")), svg)
        return
    record = Record.open(out, Settings(model=model, tokens=tokens, compiled=compiled, seed=seed))
    wanted = users or list(_USERS)
    if todo := record.missing(rounds, wanted):
        measure(record, out, todo, minutes=minutes, crowd_seconds=crowd_seconds)
    report(record, svg)
    if left := len(record.missing(rounds, wanted)):
        print(f"{left} crowds are still to come: give the same command again.")


if __name__ == "__main__":
    typer.run(main)
