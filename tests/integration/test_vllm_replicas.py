"""vLLM servers with one folder of artefacts, and one with two engines: a catalog is replaced; servers hang and die."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from operator import gt
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from faults.making import annotated, eventually
from haproxy import haproxy
from loopback import free_ports
from rolling import FIRST, MOUSE, PATIENCE, SECOND, Traffic, health, inspect, one_call, roll_out

from middleware import SAEAnnotator
from sae_runtime.catalog.store import seal_catalog
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from sae_runtime.serving import ModelServer, ServerOptions

pytestmark = [pytest.mark.server, pytest.mark.proxy]

WORDS: Any = [{"role": "user", "content": "My mouse sat by the seal, and the seal looked at my mouse."}]
PICKS = {"mouse": "animal", "seal": "animal"}  # noted however they are read
TEXT = MOUSE[0]["content"]
LONG = "The mouse sat by the seal and looked at it. " * 40  # some 440 tokens
SHORT = 0.3  # seconds; a deadline that is meant to be missed


class Replica:
    """A vLLM server that is killed and begun again at the same address.

    Attributes:
        url: its root.
        options: with which it is begun.
        server: the one that runs, or ran.
    """

    def __init__(self, model: str, options: ServerOptions) -> None:
        self.url = f"http://{options.host}:{options.port}"
        self.options = self._running = options
        self.server: ModelServer = ModelServer.start(model, options)
        self._model = model

    def begin(self, options: ServerOptions | None = None) -> None:
        """Start it, with other options if there are some, unless it runs so."""
        options = options or self.options
        if self.server.process.poll() is not None or options != self._running:
            self.server.stop()
            self.server, self._running = ModelServer.start(self._model, options), options

    def members(self) -> list[psutil.Process]:
        """All its processes that run; they have a process group of their own."""
        return [process for process, _ in self._members()]

    def worker(self) -> psutil.Process:
        """The process that computes the model."""
        (worker,) = [process for process, title in self._members() if "Worker" in title]
        return worker

    def _members(self) -> list[tuple[psutil.Process, str]]:
        found = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getpgid(process.pid) == self.server.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process, " ".join(process.cmdline())))
        return found


@pytest.fixture(scope="module")
def artefacts(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all replicas share."""
    return worded(small_model, tmp_path_factory.mktemp("shared") / "artefacts", FIRST)


@pytest.fixture(scope="module")
def replicas(small_model: str, artefacts: Path) -> Iterator[dict[str, Replica]]:
    """They start at the same time."""
    options = [ServerOptions(port=port, max_model_len=512, artefacts=artefacts) for port in free_ports(2)]
    with ExitStack() as stack:

        def start(one: ServerOptions) -> Replica:
            replica = Replica(small_model, one)
            stack.callback(lambda: replica.server.stop())
            return replica

        with ThreadPoolExecutor() as pool:
            yield dict(zip(("one", "two"), pool.map(start, options), strict=True))


@pytest.fixture(scope="module")
def two_engines(
    small_model: str, replicas: dict[str, Replica], tmp_path_factory: pytest.TempPathFactory
) -> ServerOptions:
    """At the first replica's address: two engines behind one API server, with a catalog of their own."""
    folder = worded(small_model, tmp_path_factory.mktemp("parallel") / "artefacts", FIRST)
    return replace(replicas["one"].options, artefacts=folder, extra=("--data-parallel-size", "2"))


def worded(model: str, folder: Path, words: str) -> Path:
    """A copy of the model's artefacts in which every note begins with ``words``."""
    shutil.copytree(artefacts_for(model), folder)
    with closing(sqlite3.connect(folder / CATALOG_FILE)) as connection, connection:
        connection.execute("UPDATE notes SET text = ? || ' ' || text", (words,))
    seal_catalog(folder / CATALOG_FILE)
    return folder


def test_vllm_replicas_take_over_a_new_catalog(
    replicas: dict[str, Replica], artefacts: Path, small_model: str, tmp_path: Path
) -> None:
    second = worded(small_model, tmp_path / "second", SECOND)
    urls = {name: replica.url for name, replica in replicas.items()}
    with haproxy(urls) as proxy, Traffic(proxy.url, inspect(WORDS, picks=PICKS), one_call(small_model)) as traffic:
        roll_out(urls, artefacts, second, traffic)
    assert sum(not answer.bypassed for answer in traffic.answers) > len(traffic.answers) / 2
    assert {len(answer.notes) for answer in traffic.answers if not answer.bypassed} > {1}


def annotator(replica: Replica, deadline: float = PATIENCE) -> SAEAnnotator:
    return SAEAnnotator.from_url(replica.url, picks=PICKS, deadline=deadline, grace=None)


def noted(annotator: SAEAnnotator, text: str = TEXT) -> bool:
    """Whether the prompt was annotated."""
    return annotated(annotator, text) != text


@pytest.fixture
def one(replicas: dict[str, Replica]) -> Replica:
    """The first replica; it runs, whatever the test before did to it."""
    replicas["one"].begin()
    return replicas["one"]


@pytest.fixture
def two(replicas: dict[str, Replica]) -> Replica:
    """The second one, likewise."""
    replicas["two"].begin()
    return replicas["two"]


def test_a_server_that_hangs_and_wakes_up(one: Replica) -> None:
    assert noted(annotator(one))
    impatient = annotator(one, SHORT)
    one.server.process.send_signal(signal.SIGSTOP)
    try:
        assert not noted(impatient)
        assert set(impatient.stats.bypassed) == {"timeout"}
    finally:
        one.server.process.send_signal(signal.SIGCONT)
    patient = annotator(one)
    eventually(lambda: noted(patient))


def test_a_worker_that_is_killed_while_it_reads(two: Replica) -> None:
    """Every reading ends soon, its chain answers, and the server ends with its worker: nobody waits for the dead."""
    same = annotator(two)
    assert noted(same)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: results.append(noted(same, f"{n}. {LONG}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: health(two.url)["waiting"] > 0)
    two.worker().kill()
    died = time.monotonic()
    for thread in threads:
        thread.join(PATIENCE)
    assert time.monotonic() - died < PATIENCE / 2  # on no machine does a deadline end them
    assert len(results) == len(threads)
    assert False in results
    assert "timeout" not in same.stats.bypassed
    eventually(lambda: two.members() == [])
    fresh = annotator(two)
    assert not noted(fresh)
    assert set(fresh.stats.bypassed) == {"UnavailableError"}


def test_an_api_server_that_is_killed_and_started_again(one: Replica, two_engines: ServerOptions) -> None:
    """The chain answers all the time, no process of the dead stays, and the same annotator annotates again."""
    same = annotator(one)
    assert noted(same)
    one.server.process.kill()
    one.server.process.wait()
    assert not noted(same)
    assert set(same.stats.bypassed) == {"UnavailableError"}
    one.server.stop()
    eventually(lambda: one.members() == [])
    one.begin(two_engines)  # which the next test needs; a start takes long
    eventually(lambda: noted(same))


def test_engines_in_parallel_are_read_with_one_catalog(
    replicas: dict[str, Replica], two_engines: ServerOptions, small_model: str, tmp_path: Path
) -> None:
    """Two engines behind one API server: both read for it, before and after the catalog is replaced."""
    assert two_engines.artefacts
    replicas["two"].server.stop()  # three engines at once are too many for two cores
    replicas["one"].begin(two_engines)
    url, second = replicas["one"].url, worded(small_model, tmp_path / "second", SECOND)
    with Traffic(url, inspect(WORDS, picks=PICKS), one_call(small_model)) as traffic:
        traffic.more()
        before = prompt_tokens(url)
        assert [tokens > 0 for tokens in before] == [True, True]
        roll_out({"both": url}, two_engines.artefacts, second, traffic)
        eventually(lambda: all(map(gt, prompt_tokens(url), before)))


def prompt_tokens(url: str) -> list[float]:
    """What each engine of a server has computed, in tokens of prompts."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:prompt_tokens_total{")]
