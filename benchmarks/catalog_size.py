"""Whether reading a prompt depends on the size of the catalog: ``python -m benchmarks.catalog_size``.

Catalogs from a hundred concepts and two thousand features to a hundred thousand and a million, made by
:mod:`benchmarks.synthetic_catalog` and kept in the user's cache (6 GB with all sizes; the first run takes a quarter of an
hour, ``--discard`` removes them). Each is opened with the real loader in a process of its own; all stay open, and every round asks each of them
in turn, so that whatever else the machine does hits all alike. Printed are medians, and ratios to the smallest catalog in
the same run:

- ``open``: seconds and private memory, for the catalog (with its detector) and for the dictionary;
- ``prompt``: a prompt with a fixed number of mentions, all flagged, without the model's forward pass: ``find`` the
  mentions, ``plan`` (tokenise, find, collect the latents), ``encode`` those latents on given activations, ``judge``;
  ``detect`` is the sum of the last three. ``first sight``: the same when none of the concepts was mentioned before;
- ``page``: looking up a feature, its nearest neighbours, and searches.

The readings of all sizes must agree, or the program stops.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Annotated, Any

import torch
import typer

from benchmarks.synthetic_catalog import CORE, CUE, WIDTH, Size, discard, latents, make, word
from benchmarks.table import show
from sae_runtime.catalog.search import nearest_features, search_features
from sae_runtime.catalog.view import CatalogView, feature_detail
from sae_runtime.detector import Detector, Reading
from sae_runtime.engines.chat import ChatEncoder, ChatMessage
from sae_runtime.engines.features import encode_prompt
from sae_runtime.models import resolve_model
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import CATALOG_FILE, cache_dir
from sae_runtime.progress import progress
from sae_runtime.sae import load_sae

SIZES = (Size(100, 2_000), Size(1_000, 20_000), Size(10_000, 200_000), Size(100_000, 1_000_000))
_LENGTHS = (64, 512, 4096)
_CONTEXT = 8192
_FILLER = ["please", "take", "your", "time", "and", CUE, "calmly", "since", "nobody", "here", "is", "in", "hurry"]
_TOLERANCE = 2e-3  # between probabilities, which are rounded to 1e-4; kernels differ with the number of columns
Clock = Callable[[], float]
Figures = dict[str, float]
Seen = dict[tuple[Any, ...], list[Figures]]


class Opened:
    """One catalog with its dictionary, in a process of its own."""

    def __init__(self, size: Size, folder: Path, tokenizer: Path, clock: Clock) -> None:
        self._clock = clock
        torch.set_num_threads(1)
        Path("/proc/self/oom_score_adj").write_text(
            "1000", "utf-8"
        )  # if memory runs out, this process goes, not another
        self._size = size
        self._location = folder / CATALOG_FILE
        encoder = ChatEncoder(tokenizer)
        self._detector, view_cost = _watched(
            lambda: Detector(CatalogView.load(self._location, whole=False), encoder, _CONTEXT), clock
        )
        self._sae, sae_cost = _watched(lambda: load_sae(folder, compact=True), clock)
        self.cost = {f"catalog_{name}": value for name, value in view_cost.items()}
        self.cost |= {f"dictionary_{name}": value for name, value in sae_cost.items()}
        self.cost["peak_mb"] = _peak_mb()

    def prompt(self, messages: list[ChatMessage], tokens: int) -> tuple[list[Figures], list[Any]]:
        """Read a prompt twice: at first sight of its concepts, and when they are known. Milliseconds, and the mentions."""
        stream = 5.0 * torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(tokens))
        stream[0] *= 100  # the attention sink
        self._forget()
        figures, reading = [], None
        for _ in range(2):
            reading, found = self._detect(messages, stream)
            figures.append(found)
        assert reading is not None
        return figures, [mention.model_dump() for mention in reading.mentions]

    def _forget(self) -> None:
        """Drop what earlier prompts fetched from the catalog."""
        for part in (self._detector.view.concepts, self._detector.view.features, self._detector._readouts):
            part.forget()

    def _detect(self, messages: list[ChatMessage], stream: torch.Tensor) -> tuple[Reading, Figures]:
        detector, clock = self._detector, self._clock
        marks = [clock()]
        plan = detector.plan(messages, tokens=False)
        marks.append(clock())
        features = encode_prompt(self._sae, stream, plan.latents)
        marks.append(clock())
        reading = detector.reading(plan, features)
        marks.append(clock())
        assert len(plan.chat.token_ids) == len(stream)
        assert len(reading.misreads) == len(reading.mentions)
        plan_s, encode_s, judge_s = (late - early for early, late in pairwise(marks))
        find_s = _seconds(lambda: detector._finder.hits(messages[0]["content"]), clock)
        seconds = {"find": find_s, "plan": plan_s, "encode": encode_s, "judge": judge_s, "detect": marks[3] - marks[0]}
        return reading, {name: value * 1e3 for name, value in seconds.items()}

    def pages(self, seed: int) -> Figures:
        """Milliseconds of what the page of features asks, for a feature and words drawn with ``seed``."""
        rng = random.Random(seed)
        index = int(latents(self._size)[rng.randrange(self._size.features)])
        detail = feature_detail(self._location, index)
        assert detail is not None
        asked: dict[str, Callable[[], object]] = {
            "feature": lambda: feature_detail(self._location, index),
            "nearest features": lambda: nearest_features(self._sae, index),
            "search: index": lambda: search_features(self._location, str(index), 1),
            "search: label": lambda: search_features(self._location, detail.label),
            "search: concept": lambda: search_features(self._location, word(rng.randrange(CORE)), 30),
            "search: in many": lambda: search_features(self._location, "ba"),
            "search: in none": lambda: search_features(self._location, "xyzxyz"),
        }
        return {name: _seconds(call, self._clock) * 1e3 for name, call in asked.items()}


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    began = clock()
    call()
    return clock() - began


def _watched(call: Callable[[], Any], clock: Clock) -> tuple[Any, Figures]:
    """What ``call`` returns, with its seconds and the private memory that it left behind, in megabytes."""
    before, began = _private_mb(), clock()
    result = call()
    return result, {"seconds": clock() - began, "mb": _private_mb() - before}


def _private_mb() -> float:
    """Memory of this process alone, in megabytes; pages of mapped files, which the system may drop, do not count."""
    lines = Path("/proc/self/smaps_rollup").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1e3


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e3


def serve(size: Size, folder: Path, tokenizer: Path, clock: Clock, pipe: Connection) -> None:
    """The child: opens its catalog, then answers ``(method, arguments)`` until None comes."""
    opened = Opened(size, folder, tokenizer, clock)
    pipe.send(opened.cost)
    while (asked := pipe.recv()) is not None:
        method, arguments = asked
        pipe.send(getattr(opened, method)(*arguments))


class Child:
    """The parent's end of one open catalog."""

    def __init__(self, size: Size, folder: Path, tokenizer: Path, clock: Clock, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(size, folder, tokenizer, clock, other), daemon=True)
        self._process.start()
        other.close()
        self.cost: Figures = self._pipe.recv()
        stack.callback(self._end)

    def ask(self, method: str, *arguments: Any) -> Any:
        """The result of a method of :class:`Opened`."""
        self._pipe.send((method, arguments))
        return self._pipe.recv()

    def _end(self) -> None:
        self._pipe.send(None)
        self._process.join(30)


def prompt(encoder: ChatEncoder, tokens: int, mentions: int, rng: random.Random) -> list[ChatMessage]:
    """A message of exactly ``tokens`` tokens that mentions ``mentions`` concepts of the core, with a cue behind them."""
    numbers = rng.sample(range(CORE), mentions)
    words = [word(number) for number in numbers]
    gap = 1
    while gap:
        messages: list[ChatMessage] = [{"role": "user", "content": " ".join([*words, CUE])}]
        gap = tokens - len(encoder.encode(messages).token_ids)
        if gap < 0 and len(words) <= mentions:
            raise SystemExit(f"{mentions} mentions do not fit {tokens} tokens.")
        for _ in range(max(1, gap // 2) if gap > 0 else 0):
            words.insert(rng.randrange(len(words) + 1), rng.choice(_FILLER))
        for _ in range(-gap if gap < 0 else 0):
            words.remove(next(one for one in words if one in _FILLER))
    return messages


def measure(
    children: dict[Size, Child], encoder: ChatEncoder, lengths: list[int], mentions: int, rounds: int, pages: int
) -> Seen:
    """Figures of every round, by kind, what was asked, and size."""
    rng = random.Random(0)
    seen: Seen = defaultdict(list)
    with progress("rounds", len(children) * ((rounds + 1) * len(lengths) + pages)) as advance:
        for turn in range(rounds + 1):
            for length in lengths:
                messages = prompt(encoder, length, mentions, rng)
                readings = {}
                for size, child in children.items():
                    both, readings[size] = child.ask("prompt", messages, length)
                    if turn:  # the first round warms up
                        seen["first sight", length, size].append(both[0])
                        seen["known", length, size].append(both[1])
                    advance(1, f"{length} tokens, {size}")
                _same(readings)
        for turn in range(pages):
            for size, child in children.items():
                seen["page", size].append(child.ask("pages", turn))
                advance(1, f"pages, {size}")
    return seen


def _same(readings: dict[Size, list[Any]]) -> None:
    """Stop unless all catalogs read the prompt alike."""
    first = next(iter(readings.values()))
    for size, mentions in readings.items():
        places = [[(m["concept"], m["start"], m["end"]) for m in some] for some in (first, mentions)]
        far = [
            abs(a["reading"][s] - b["reading"][s]) for a, b in zip(first, mentions, strict=False) for s in a["reading"]
        ]
        if places[0] != places[1] or max(far, default=0.0) > _TOLERANCE:
            raise SystemExit(f"The catalog with {size} reads a prompt otherwise than the smallest one.")


def tables(children: dict[Size, Child], seen: Seen, lengths: list[int]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table."""
    smallest = next(iter(children))

    def middle(*key: Any, name: str) -> float:
        return median(figures[name] for figures in seen[key])

    opened = [
        {"concepts": size.concepts, "features": size.features, **{n: round(v, 2) for n, v in child.cost.items()}}
        for size, child in children.items()
    ]
    prompts = [
        {
            "tokens": length, "concepts": size.concepts, "features": size.features,
            **{f"{step}_ms": round(middle("known", length, size, name=step), 2) for step in ("find", "plan", "encode", "judge", "detect")},
            "ratio": round(middle("known", length, size, name="detect") / middle("known", length, smallest, name="detect"), 2),
            "first_sight_ms": round(middle("first sight", length, size, name="detect"), 2),
            "first_sight_ratio": round(middle("first sight", length, size, name="detect") / middle("first sight", length, smallest, name="detect"), 2),
        }
        for length in lengths
        for size in children
    ]  # fmt: skip
    asked = list(seen["page", smallest][0]) if seen["page", smallest] else []
    pages = [
        {"asked": name, **{f"{size.features:,}_ms": round(middle("page", size, name=name), 2) for size in children},
         "ratio": round(middle("page", list(children)[-1], name=name) / middle("page", smallest, name=name), 2)}
        for name in asked
    ]  # fmt: skip
    return {"open": opened, "prompt": prompts, "page": pages}


def main(
    sizes: Annotated[int, typer.Option(help="How many of the four sizes, from the smallest.", min=1, max=4)] = 4,
    length: Annotated[list[int] | None, typer.Option(help="Prompt tokens; may be repeated.")] = None,
    mentions: Annotated[int, typer.Option(help="Mentions in each prompt.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds that count; one more warms up.")] = 15,
    pages: Annotated[
        int, typer.Option(help="Rounds of look-ups and searches; the largest catalog is read whole by some.")
    ] = 3,
    cpu_time: Annotated[
        bool, typer.Option(help="Count the processor's time, which others on the machine hardly change.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Where catalogs are kept; else in the user's cache.")] = None,
    discard_first: Annotated[bool, typer.Option("--discard", help="Remove the kept catalogs and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Make what is missing, measure, print."""
    kept = folder or cache_dir() / "benchmarks" / "catalog-size"
    if discard_first:
        discard(kept)
        return
    tokenizer = resolve_model(SMALL_MODEL).path
    lengths = length or list(_LENGTHS)
    clock = process_time if cpu_time else perf_counter
    with ExitStack() as stack:
        children = {size: Child(size, make(size, kept), tokenizer, clock, stack) for size in SIZES[:sizes]}
        seen = measure(children, ChatEncoder(tokenizer), lengths, mentions, rounds, pages)
        found = tables(children, seen, lengths)
    if as_json:
        print(json.dumps({**found, "load": os.getloadavg()}, indent=1))
        return
    for name, rows in found.items():
        if rows:
            print(f"\n{name}:\n")
            show(rows, as_json=False)
    print(
        f"\n{'processor' if cpu_time else 'wall'} time; load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    typer.run(main)
