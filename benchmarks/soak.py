"""Half an hour of steady traffic, and whether the server holds more and more: ``python -m benchmarks.soak``.

One server of the small model, read in its worker, gets requests of every kind at a steady rate: annotated in one call and in two,
plain, with all tokens as the chat page wants them, pages of features; some of the users leave while they are read or
answered. Every ten seconds all its processes are looked at: resident memory, file descriptors, threads, sockets, and the
entries in /dev/shm and in its own folder for temporary files.

After a warm-up at a higher rate, in which caches fill, each of these series must not grow by more than its bound per hour
(:mod:`benchmarks.traffic.growth`), and every request must have been answered. ``--report`` judges a file again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import httpx
import typer
from pydantic import BaseModel

from benchmarks.table import show
from benchmarks.traffic.figures import MIB
from benchmarks.traffic.growth import Growth, judge
from benchmarks.traffic.processes import SHARED_MEMORY, Held, contents, look
from benchmarks.traffic.steady import Asked, Pace, Traffic, by_kind
from benchmarks.traffic.users import Line, bypasses_unlogged
from middleware import SAEAnnotator
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.progress import Advance, progress
from sae_runtime.serving import ModelServer, ServerOptions

_EVERY = 10.0  # seconds between two looks
_WRITE_EVERY = 6  # looks
_WARM_UP = 1 / 3  # of the time
# oneDNN keeps compiled matrix products, several for each number of tokens that a step has had, by default up to 1,024; vLLM's worker
# grows by half a megabyte with each such number, also without Sensecheck. With fewer products the cache is full before the warm-up
# ends, and what still grows is a leak.
_PRIMITIVES = 64


class Look(BaseModel):
    """What the server held ``at`` seconds after the first request.

    ``shared`` and ``files``: entries and bytes in /dev/shm that were not there before, and in its temporary folder.
    ``waiting``: readings that the server expects from its worker.
    """

    at: float
    roles: dict[str, Held]
    shared: tuple[int, int]
    files: tuple[int, int]
    waiting: int


class Record(BaseModel):
    """The file: what was asked for, what was seen."""

    model: str
    rate: float
    warm_up_rate: float
    tokens: int
    seconds: float
    looks: list[Look] = []
    asked: list[Asked] = []

    def write(self, path: Path) -> None:
        """Put it in place whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(), "utf-8")
        partial.replace(path)


class Measure(NamedTuple):
    """A series, and by how much it may grow in an hour."""

    of: Callable[[Look], float]
    bound: float


def _held(field: str) -> Callable[[Look], float]:
    return lambda look: sum(getattr(held, field) for held in look.roles.values())


# At one request a second 20 MiB an hour are 6 KB a request. Counts of things that are opened and closed waver; one that
# leaks with every hundredth request grows by 36 an hour.
MEASURES = {
    "memory, MiB": Measure(lambda look: sum(held.rss for held in look.roles.values()) / MIB, 20.0),
    "file descriptors": Measure(_held("descriptors"), 12.0),
    "threads": Measure(_held("threads"), 12.0),
    "sockets": Measure(_held("sockets"), 12.0),
    "shared memory, entries": Measure(lambda look: look.shared[0], 3.0),
    "shared memory, MiB": Measure(lambda look: look.shared[1] / MIB, 3.0),
    "temporary files, entries": Measure(lambda look: look.files[0], 3.0),
    "temporary files, MiB": Measure(lambda look: look.files[1] / MIB, 3.0),
    "readings waited for": Measure(lambda look: look.waiting, 3.0),
}


def measure(record: Record, out: Path, *, compiled: bool, primitives: int) -> None:
    """Serve, send, look."""
    before = frozenset(SHARED_MEMORY.rglob("*"))
    features = _catalogued(record.model)
    with bypasses_unlogged(), tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        environment = {"TMPDIR": temporary, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(primitives)}
        options = ServerOptions(port=0, max_model_len=2048, compiled=compiled, environment=environment)
        with ModelServer.start(record.model, options) as server, progress("soak", record.seconds) as advance:
            watch = Watch(record, out, server.process.pid, Path(temporary), before, advance)
            asyncio.run(_soak(record, server, watch, features))


def _catalogued(model: str) -> list[int]:
    """Indices of the features in the shipped catalog."""
    return sorted(Artefacts.open(model).view.features)


async def _soak(record: Record, server: ModelServer, watch: Watch, features: list[int]) -> None:
    annotator = SAEAnnotator.from_url(server.url)
    async with Line(server.url, record.model, record.tokens) as line:
        pace = Pace(record.rate, record.seconds * _WARM_UP, record.warm_up_rate)
        traffic = Traffic(line, annotator, features, pace, seed=0)
        record.asked = traffic.asked
        looking = asyncio.create_task(watch.run(line.http))
        try:
            sending = asyncio.create_task(traffic.run(record.seconds))
            await asyncio.wait({looking, sending}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():  # it goes on for ever, so the server has ended
                sending.cancel()
                looking.result()
            await sending
        finally:
            looking.cancel()
            record.write(watch.out)


class Watch:
    """Looks at a server every ten seconds and writes the record now and then."""

    def __init__(
        self, record: Record, out: Path, pid: int, temporary: Path, before: frozenset[Path], advance: Advance
    ) -> None:
        self.record, self.out = record, out
        self._pid, self._temporary, self._before, self._advance = pid, temporary, before, advance

    async def run(self, http: httpx.AsyncClient) -> None:
        """Look until cancelled.

        Raises:
            psutil.NoSuchProcess: the server has ended.
        """
        began = perf_counter()
        while True:
            at = perf_counter() - began
            health = (await http.get("/v1/sae/health")).raise_for_status().json()
            self.record.looks.append(await asyncio.to_thread(self._look, at, health["waiting"]))
            if len(self.record.looks) % _WRITE_EVERY == 0:
                self.record.write(self.out)
            await asyncio.sleep(_EVERY * len(self.record.looks) - (perf_counter() - began))
            memory = MEASURES["memory, MiB"].of(self.record.looks[-1])
            self._advance(_EVERY, f"{memory:.0f} MiB, {len(self.record.asked)} requests")

    def _look(self, at: float, waiting: int) -> Look:
        return Look(
            at=at,
            roles=look(self._pid),
            shared=contents(SHARED_MEMORY, without=self._before),
            files=contents(self._temporary),
            waiting=waiting,
        )


def growths(record: Record) -> dict[str, Growth]:
    """The verdict on each measure.

    Raises:
        ValueError: the record is too short.
    """
    times = [look.at for look in record.looks]
    return {
        name: judge(times, [found.of(look) for look in record.looks], warm_up=record.seconds * _WARM_UP, bound=found.bound)
        for name, found in MEASURES.items()
    }  # fmt: skip


def rows(found: dict[str, Growth]) -> list[dict[str, Any]]:
    """One row per measure."""
    return [
        {
            "held": name, "after the warm-up": round(g.begin, 1), "at the end": round(g.end, 1),
            "growth per hour (95 %)": f"{g.slope:+.1f} ({g.low:+.1f} to {g.high:+.1f})", "bound": g.bound,
            "verdict": g.verdict,
        }
        for name, g in found.items()
    ]  # fmt: skip


def plot(record: Record, path: Path) -> None:
    """All series over time as SVG; the warm-up is grey."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    minutes = [look.at / 60 for look in record.looks]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "soak", "axes.grid": True, "grid.color": "#d5dbe1"}):
        figure = Figure(figsize=(10, 8), layout="constrained")
        for axes, (name, found) in zip(figure.subplots(3, 3, sharex=True).flat, MEASURES.items(), strict=True):
            axes.plot(minutes, [found.of(look) for look in record.looks], color="#0b6e99", label="all")
            if name == "memory, MiB":
                for role in record.looks[-1].roles:
                    sizes = [look.roles[role].rss / MIB if role in look.roles else 0 for look in record.looks]
                    axes.plot(minutes, sizes, linewidth=0.8, label=role)
                axes.legend(frameon=False, fontsize=7)
            axes.axvspan(0, record.seconds * _WARM_UP / 60, color="#7d8791", alpha=0.12, linewidth=0)
            axes.set_title(name, fontsize=10)
            axes.set_ylim(0, 1.15 * max(found.of(look) for look in record.looks) or 1.0)
        figure.supxlabel("minutes")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def report(record: Record, svg: Path | None) -> bool:
    """Print the tables and write the plot; whether all is well."""
    show(by_kind(record.asked), as_json=False)
    if svg:
        plot(record, svg)
    try:
        found = growths(record)
    except ValueError as error:
        print(f"\nNo verdict: {error}")
        return False
    print()
    show(rows(found), as_json=False)
    unanswered = sum(one.error is not None for one in record.asked)
    failed = [name for name, growth in found.items() if growth.verdict == "fail"]
    undecided = [name for name, growth in found.items() if growth.verdict == "undecided"]
    spent = record.looks[-1].at
    print(f"\n{len(record.asked)} requests in {spent / 60:.0f} minutes, {unanswered} unanswered. "
          f"Too much growth: {', '.join(failed) or 'none'}. Undecided: {', '.join(undecided) or 'none'}.")  # fmt: skip
    return not (unanswered or failed or undecided)


def main(
    model: Annotated[str, typer.Option(help="Built-in model.")] = SMALL_MODEL,
    minutes: Annotated[float, typer.Option(help="How long; a third is warm-up.")] = 30.0,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 1.0,
    warm_up_rate: Annotated[
        float, typer.Option(help="The same in the warm-up: caches fill with requests, not with time.")
    ] = 3.0,
    tokens: Annotated[int, typer.Option(help="Output tokens per answer.")] = 32,
    compiled: Annotated[bool, typer.Option(help="Compile the model.")] = True,
    primitives: Annotated[
        int, typer.Option(help="Compiled matrix products that the worker keeps; oneDNN's default is 1024.")
    ] = _PRIMITIVES,
    out: Annotated[Path, typer.Option(help="Where the measurements are kept.")] = Path("results/soak.json"),
    svg: Annotated[Path | None, typer.Option(help="Write a plot there.")] = None,
    only_report: Annotated[bool, typer.Option("--report", help="Measure nothing: judge what the file holds.")] = False,
) -> None:
    """Serve, send, look, judge; ends with code 1 unless everything passes."""
    if only_report:
        record = Record.model_validate_json(out.read_text("utf-8"))
    else:
        record = Record(model=model, rate=rate, warm_up_rate=warm_up_rate, tokens=tokens, seconds=60 * minutes)
        measure(record, out, compiled=compiled, primitives=primitives)
    if not report(record, svg):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
