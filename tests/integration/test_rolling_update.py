"""A catalog is replaced behind a proxy while clients ask all the time: nobody is turned away, no reading is a mixture."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults.making import eventually, make_artefacts, put_catalog
from haproxy import haproxy
from loopback import free_ports
from small_replica import SmallReplica
from tiny_models import make_model

from sae_runtime.catalog.file import CatalogFile
from sae_runtime.catalog.store import seal_catalog
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from sae_runtime.serving import ModelServer, ServerOptions

pytestmark = pytest.mark.proxy

NAMES = ("one", "two")
FIRST, SECOND, THIRD = "First.", "Second.", "Third."
ENOUGH = 25  # answers, over both replicas
PATIENCE = 120.0  # seconds; only a broken product waits that long
BANKS: Any = [{"role": "user", "content": "We sat on the bank of the river, and then on the other bank."}]
WORDS: Any = [{"role": "user", "content": "My mouse sat by the seal, and the seal looked at my mouse."}]
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
    """Clients that ask one after the other, all the time, in threads of their own."""

    def __init__(self, url: str, *asks: Ask) -> None:
        self.answers: list[Answer] = []
        self._url, self._asks, self._end = url, asks, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(ask,)) for ask in asks for _ in range(2)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = ENOUGH) -> list[Answer]:
        """The next ``count`` answers and those that came with them; requests under way now are among them."""
        known, end = len(self.answers), time.monotonic() + PATIENCE
        while len(self.answers) < known + count:
            assert time.monotonic() < end, f"only {len(self.answers) - known} answers came"
            time.sleep(0.02)
        return self.answers[known:]

    def _run(self, ask: Ask) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE) as client:
            while not self._end.is_set():
                try:
                    self.answers.append(ask(client))
                except Exception as error:
                    self.answers.append(Answer(error=f"{type(error).__name__}: {error}"))


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
    """No request failed; each names a catalog of ``notes``, and what is in all its notes; returns how many named which."""
    assert not [answer for answer in answers if answer.error]
    for answer in answers:
        assert answer.catalog in notes
        assert answer.notes or answer.bypassed
        assert all(notes[answer.catalog] in note for note in answer.notes)
    return Counter(answer.catalog for answer in answers)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture
def artefacts(tiny: Path, tmp_path: Path) -> Path:
    """The folder that all replicas share."""
    return make_artefacts(tmp_path / "artefacts", tiny, note=FIRST)


@pytest.fixture
def replicas(tiny: Path, artefacts: Path) -> Iterator[dict[str, SmallReplica]]:
    found = {name: SmallReplica(tiny, artefacts, port) for name, port in zip(NAMES, free_ports(2), strict=True)}
    for replica in found.values():
        replica.wait_healthy()
    yield found
    for replica in found.values():
        replica.stop()


def test_replicas_take_over_a_new_catalog_and_restart_for_a_new_dictionary(
    tiny: Path, artefacts: Path, replicas: dict[str, SmallReplica], tmp_path: Path
) -> None:
    second = make_artefacts(tmp_path / "second", tiny, note=SECOND)
    other = make_artefacts(tmp_path / "other", tiny, note=THIRD, sae_seed=1)
    notes = {fingerprint(second): SECOND, fingerprint(other): THIRD}
    urls = {name: replica.url for name, replica in replicas.items()}
    with haproxy(urls) as proxy:
        with Traffic(proxy.url, inspect(BANKS), inspect(BANKS, domain="river")) as traffic:
            roll_out(urls, artefacts, second, traffic)
        with Traffic(proxy.url, inspect(BANKS), inspect(BANKS, domain="river")) as traffic:
            traffic.more()
            proxy.drain("one")
            eventually(lambda: proxy.sessions("one") == 0)
            restart(replicas, "one", tiny, other)
            proxy.ready("one")
            eventually(lambda: proxy.up("one"))
            traffic.more()
            restart(replicas, "two", tiny, other)  # nobody told the proxy
            traffic.more()  # those that had begun
            assert set(check(traffic.more(), notes)) == {fingerprint(other)}
            eventually(lambda: proxy.up("two"))
            both_take_part(urls)
        assert set(check(traffic.answers, notes)) == set(notes)


def restart(replicas: dict[str, SmallReplica], name: str, model: Path, artefacts: Path) -> None:
    """Stop a replica and start it with other artefacts at the same address."""
    old = replicas[name]
    old.stop()
    replicas[name] = SmallReplica(model, artefacts, int(old.url.rpartition(":")[2]))
    replicas[name].wait_healthy()


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


def both_take_part(urls: dict[str, str]) -> None:
    """Wait until each replica has read something; the fewer connections one has, the sooner it is asked."""
    eventually(lambda: all(health(url)["counters"].get("inspected", 0) > 0 for url in urls.values()))


@pytest.fixture
def vllm_replicas(small_model: str, tmp_path: Path) -> Iterator[tuple[Path, dict[str, ModelServer]]]:
    """Two vLLM servers with one folder of artefacts; they start at the same time."""
    folder = shutil.copytree(artefacts_for(small_model), tmp_path / "artefacts")
    reword(folder, FIRST)

    def start(port: int) -> ModelServer:
        options = ServerOptions(port=port, max_model_len=512, artefacts=folder)
        return stack.enter_context(ModelServer.start(small_model, options))

    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        yield folder, dict(zip(NAMES, pool.map(start, free_ports(2)), strict=True))


def reword(artefacts: Path, words: str) -> None:
    """Let every note of a catalog begin with ``words``."""
    with closing(sqlite3.connect(artefacts / CATALOG_FILE)) as connection, connection:
        connection.execute("UPDATE notes SET text = ? || ' ' || text", (words,))
    seal_catalog(artefacts / CATALOG_FILE)


@pytest.mark.server
def test_vllm_replicas_take_over_a_new_catalog(
    vllm_replicas: tuple[Path, dict[str, ModelServer]], small_model: str, tmp_path: Path
) -> None:
    folder, servers = vllm_replicas
    second = shutil.copytree(artefacts_for(small_model), tmp_path / "second")
    reword(second, SECOND)
    urls = {name: server.url for name, server in servers.items()}
    picks = {"mouse": "animal", "seal": "animal"}  # noted however they are read
    with haproxy(urls) as proxy, Traffic(proxy.url, inspect(WORDS, picks=picks), one_call(small_model)) as traffic:
        roll_out(urls, folder, second, traffic)
    assert sum(not answer.bypassed for answer in traffic.answers) > len(traffic.answers) / 2
    assert {len(answer.notes) for answer in traffic.answers if not answer.bypassed} > {1}
