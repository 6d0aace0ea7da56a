"""Traffic while a catalog is replaced: what is asked, what each answer must be, and the replacement itself.

Tests import this module by name: pytest puts the folder of ``tests/conftest.py`` on the import path.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import eq, gt
from pathlib import Path
from typing import Any

import httpx
from faults.making import eventually, put_catalog

from sae_runtime.catalog.file import CatalogFile
from sae_runtime.paths import CATALOG_FILE

FIRST, SECOND = "First.", "Second."
ENOUGH = 25  # answers, over both replicas
PATIENCE = 120.0  # seconds; only a broken product waits that long
MOUSE: Any = [{"role": "user", "content": "How often should I clean my mouse?"}]


@dataclass(frozen=True)
class Answer:
    """One answer: the catalog that it names, its notes, and what went wrong."""

    catalog: str | None = None
    notes: tuple[str, ...] = ()
    bypassed: str | None = None
    error: str | None = None


Ask = Callable[[httpx.Client], Answer]


class Traffic:
    """Clients that ask one after the other, all the time, in threads of their own.

    Args:
        again: ask a second time where the connection was closed without an answer, as the annotator and OpenAI's client do. HAProxy
            closes it when a replica that ends resets a request which it has not taken up.
    """

    def __init__(self, url: str, *asks: Ask, again: bool = False) -> None:
        self.answers: list[Answer] = []
        self._url, self._again, self._end = url, again, threading.Event()
        clients = [ask for ask in asks for _ in range(2)]
        self._finished = [0] * len(clients)
        self._threads = [threading.Thread(target=self._run, args=client) for client in enumerate(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = ENOUGH) -> list[Answer]:
        """The next ``count`` answers or more; every request that is under way now has ended by then, and is among them."""
        known, finished, end = len(self.answers), list(self._finished), time.monotonic() + PATIENCE
        while len(self.answers) < known + count or any(map(eq, self._finished, finished)):
            assert time.monotonic() < end, f"only {len(self.answers) - known} answers came"
            time.sleep(0.02)
        return self.answers[known:]

    def _run(self, number: int, ask: Ask) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE) as client:
            while not self._end.is_set():
                try:
                    self.answers.append(self._ask(client, ask))
                except Exception as error:
                    self.answers.append(Answer(error=f"{type(error).__name__}: {error}"))
                self._finished[number] += 1

    def _ask(self, client: httpx.Client, ask: Ask) -> Answer:
        try:
            return ask(client)
        except httpx.RemoteProtocolError:
            if not self._again:
                raise
            return ask(client)


def inspect(messages: Any, **options: Any) -> Ask:
    def ask(client: httpx.Client) -> Answer:
        response = client.post("/v1/sae/inspect", json={"messages": messages, "tokens": False, **options})
        reading = response.raise_for_status().json()
        return Answer(reading["catalog"], tuple(misread["note"] for misread in reading["misreads"]))

    return ask


def one_call(model: str) -> Ask:
    """A streamed chat completion that is annotated; its report is the last chunk."""
    body = {"model": model, "messages": MOUSE, "max_tokens": 4, "stream": True,
            "sensecheck": {"annotate": True, "domain": "biology"}}  # fmt: skip

    def ask(client: httpx.Client) -> Answer:
        response = client.post("/v1/chat/completions", json=body).raise_for_status()
        *chunks, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert done == "[DONE]"
        report = json.loads(chunks[-1])["sensecheck"]
        return Answer(report["catalog"], tuple(report["notes"]), report["bypassed"])

    return ask


def fingerprint(artefacts: Path) -> str:
    return CatalogFile.of(artefacts / CATALOG_FILE).fingerprint


def health(url: str) -> Any:
    return httpx.get(f"{url}/v1/sae/health", timeout=PATIENCE).raise_for_status().json()


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Names, sizes and times of writing of all files but the catalog."""
    found = {path.name: path.stat() for path in folder.iterdir() if path.name != CATALOG_FILE}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def check(answers: list[Answer], notes: dict[str, str]) -> Counter[str | None]:
    """No request failed; each names a catalog of ``notes``, and what is in all its notes; returns how many named which.

    What was answered unread because its mentions were not found in time names none.
    """
    assert not [answer for answer in answers if answer.error]
    answers = [answer for answer in answers if answer.catalog or not answer.bypassed]
    for answer in answers:
        assert answer.catalog in notes
        assert answer.notes or answer.bypassed
        assert all(notes[answer.catalog] in note for note in answer.notes)
    return Counter(answer.catalog for answer in answers)


def roll_out(urls: dict[str, str], artefacts: Path, second: Path, traffic: Traffic) -> None:
    """Rename the catalog of ``second`` into place under traffic, and see what happens."""
    old, new = fingerprint(artefacts), fingerprint(second)
    notes, before = {old: FIRST, new: SECOND}, files(artefacts)
    assert set(check(traffic.more(), notes)) == {old}
    put_catalog(second, artefacts)
    for url in urls.values():
        eventually(lambda url=url: health(url)["catalog"]["replaced"] == 1)
        assert health(url)["catalog"] == {"fingerprint": new, "replaced": 1, "refused": None}
    check(traffic.more(), notes)  # those that had begun
    assert set(check(traffic.more(), notes)) == {new}
    assert set(check(traffic.answers, notes)) == {old, new}
    both_take_part(urls)
    assert files(artefacts) == before  # serving writes nothing there
    assert fingerprint(artefacts) == new


def both_take_part(urls: dict[str, str]) -> None:
    """Wait until each replica has read something from now on; the fewer connections one has, the sooner it is asked."""

    def inspected() -> list[int]:
        return [health(url)["counters"].get("inspected", 0) for url in urls.values()]

    before = inspected()
    eventually(lambda: all(map(gt, inspected(), before)))
