"""Figures of a load test: what users saw, by arm and number of users, beside plain vLLM in the same rounds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from benchmarks.traffic.histogram import Buckets, quantile, together
from benchmarks.traffic.users import Sample

BASELINE = "plain"
MARKS = (50, 95, 99)
MIB = 2**20
COLOURS = {"plain": "#7d8791", "one call": "#0b6e99", "two calls": "#b4560a"}


class Memory(BaseModel):
    """Resident bytes of a server's processes by role, ``at`` seconds after the load test began."""

    at: float
    roles: dict[str, int]


class Cell(BaseModel):
    """One crowd: some users, one arm, one round.

    ``seconds`` is what it took in all, ``cut`` says that its time was over before its conversations were.
    ``inspections``: of the one-call arm, as its server counted them.
    """

    round: int
    users: int
    arm: str
    server: str
    seconds: float
    cut: bool
    samples: list[Sample]
    memory: list[Memory]
    inspections: Buckets = {}


@dataclass(frozen=True)
class Pool:
    """The cells of one arm and number of users, over all rounds."""

    cells: list[Cell]

    @property
    def samples(self) -> list[Sample]:
        """All requests."""
        return [sample for cell in self.cells for sample in cell.samples]

    def firsts(self) -> list[float]:
        """Seconds to the first token of whole answers."""
        return [s.first for s in self.samples if s.first is not None and s.error is None]

    def speed(self) -> float:
        """Output tokens per second."""
        return sum(s.tokens for s in self.samples) / sum(cell.seconds for cell in self.cells)

    def rounds(self) -> dict[int, Pool]:
        """The same by round."""
        found: defaultdict[int, list[Cell]] = defaultdict(list)
        for cell in self.cells:
            found[cell.round].append(cell)
        return {number: Pool(cells) for number, cells in found.items()}


def pools(cells: Iterable[Cell]) -> dict[tuple[int, str], Pool]:
    """By number of users and arm, in this order; within a number of users the baseline comes first."""
    found: defaultdict[tuple[int, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        found[cell.users, cell.arm].append(cell)
    order = sorted(found, key=lambda key: (key[0], key[1] != BASELINE, key[1]))
    return {key: Pool(found[key]) for key in order}


def percentile(values: Sequence[float], mark: float) -> float | None:
    """The percentile ``mark``, between neighbours in proportion; None without values."""
    return float(np.percentile(values, mark)) if values else None


def answers(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One row per arm and number of users: how many were answered, how many read, how fast."""
    return [_answers(users, arm, pool) for (users, arm), pool in pools(cells).items()]


def _answers(users: int, arm: str, pool: Pool) -> dict[str, Any]:
    samples = pool.samples
    errors = Counter(s.error for s in samples if s.error)
    bypasses = Counter(s.bypass for s in samples if s.bypass)
    return {
        "users": users,
        "arm": arm,
        "requests": len(samples),
        "errors": _shares(errors, len(samples)),
        "bypassed": _shares(bypasses, len(samples)) if arm != BASELINE else "–",
        "flagged": f"{sum(s.flagged for s in samples) / len(samples):.0%}" if samples and arm != BASELINE else "–",
        "inspection ms p50/p95/p99": _inspections(pool),
        "first token ms p50/p95/p99": _marks(pool.firsts()),
        "tokens/s": round(pool.speed(), 1),
    }


def _inspections(pool: Pool) -> str:
    """As the client saw it, where it is a call of its own; else the server's histogram, marked by a tilde.

    A reading that was given up ends at its deadline: it belongs to the waiting time.
    """
    if seen := [s.inspection for s in pool.samples if s.inspection is not None]:
        return _marks(seen)
    counted = together([cell.inspections for cell in pool.cells])
    marks = [quantile(counted, mark / 100) for mark in MARKS]
    return " / ".join(f"~{1e3 * mark:.0f}" for mark in marks if mark is not None) or "–"


def ratios(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One row per number of users and arm other than the baseline: ratios to it, with the range over the rounds."""
    found = pools(cells)
    rows = []
    for (users, arm), pool in found.items():
        base = found.get((users, BASELINE))
        if arm == BASELINE or base is None:
            continue
        row: dict[str, Any] = {"users": users, "arm": arm}
        for mark in MARKS:
            row[f"first token p{mark}"] = _ratio(pool, base, lambda p, m=mark: percentile(p.firsts(), m))
        rows.append({**row, "tokens/s": _ratio(pool, base, Pool.speed)})
    return rows


def _ratio(pool: Pool, base: Pool, figure: Any) -> str:
    """``1.20 (1.10 to 1.31)``: of all rounds together, and the least and largest of a single one."""
    mine, theirs = pool.rounds(), base.rounds()
    whole = _divide(figure(pool), figure(base))
    each = [_divide(figure(mine[n]), figure(theirs[n])) for n in sorted(mine.keys() & theirs.keys())]
    known = [value for value in each if value is not None]
    if whole is None:
        return "–"
    return f"{whole:.2f} ({min(known):.2f} to {max(known):.2f})" if len(known) > 1 else f"{whole:.2f}"


def memory(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One row per server and number of users: resident memory, least and largest, over all rounds."""
    found: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for cell in cells:
        found[cell.server, cell.users] += [sum(memory.roles.values()) for memory in cell.memory]
    return [
        {"server": server, "users": users, "least MiB": round(min(values) / MIB), "largest MiB": round(max(values) / MIB)}
        for (server, users), values in sorted(found.items())
        if values
    ]  # fmt: skip


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Time to the first token by number of users, and each server's memory over time, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "load", "axes.grid": True, "grid.color": "#d5dbe1"}):
        left, right = (figure := Figure(figsize=(10, 4), layout="constrained")).subplots(1, 2)
        found = pools(cells)
        for arm in dict.fromkeys(arm for _, arm in found):
            counts = [users for users, name in found if name == arm]
            for mark, style in ((50, "-"), (95, "--")):
                heights = [percentile(found[users, arm].firsts(), mark) for users in counts]
                left.plot(counts, [h if h else np.nan for h in heights], style, marker="o", color=COLOURS.get(arm),
                          label=f"{arm}, p{mark}")  # fmt: skip
        left.set(xscale="log", yscale="log", xlabel="users at once", ylabel="seconds to the first token")
        left.set_xticks(counts := sorted({users for users, _ in found}), [str(users) for users in counts])
        left.tick_params(axis="x", which="minor", bottom=False)
        largest = 1.0
        for server, colour in (("plain", COLOURS["plain"]), ("ours", COLOURS["one call"])):
            seen = sorted((m.at, sum(m.roles.values()) / MIB) for c in cells if c.server == server for m in c.memory)
            right.plot([at / 60 for at, _ in seen], [size for _, size in seen], ".", color=colour, label=server)
            largest = max([largest, *(size for _, size in seen)])
        right.set(xlabel="minutes", ylabel="memory of the server's processes, MiB")
        right.set_ylim(0, 1.15 * largest)
        for axes in (left, right):
            axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _marks(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return " / ".join(f"{1e3 * float(value):.0f}" for value in np.percentile(values, MARKS))


def _shares(counts: Counter[str], of: int) -> str:
    """``0``, or ``3.1% (timeout 2.0%, circuit open 1.1%)``."""
    if not counts:
        return "0"
    parts = ", ".join(f"{name} {count / of:.1%}" for name, count in counts.most_common())
    return f"{counts.total() / of:.1%} ({parts})"


def _divide(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None
