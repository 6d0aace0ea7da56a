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
        server: the one that runs, or ran.
    """

    def __init__(self, model: str, options: ServerOptions) -> None:
        self.url = f"http://{options.host}:{options.port}"
        self.server: ModelServer = ModelServer.start(model, options)
        self._model, self._options = model, options

    def begin(self) -> None:
        """Start it unless it runs."""
        if self.server.process.poll() is not None:
            self.server.stop()
            self.server = ModelServer.start(self._model, self._options)

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
    folder = tmp_path_factory.mktemp("shared") / "artefacts"
    shutil.copytree(artefacts_for(small_model), folder)
    reword(folder, FIRST)
    return folder


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


def reword(artefacts: Path, words: str) -> None:
    """Let every note of a catalog begin with ``words``."""
    with closing(sqlite3.connect(artefacts / CATALOG_FILE)) as connection, connection:
        connection.execute("UPDATE notes SET text = ? || ' ' || text", (words,))
    seal_catalog(artefacts / CATALOG_FILE)


def test_vllm_replicas_take_over_a_new_catalog(
    replicas: dict[str, Replica], artefacts: Path, small_model: str, tmp_path: Path
) -> None:
    second = shutil.copytree(artefacts_for(small_model), tmp_path / "second")
    reword(second, SECOND)
    urls = {name: replica.url for name, replica in replicas.items()}
    with haproxy(urls) as proxy, Traffic(proxy.url, inspect(WORDS, picks=PICKS), one_call(small_model)) as traffic:
        roll_out(urls, artefacts, second, traffic)
    assert sum(not answer.bypassed for answer in traffic.answers) > len(traffic.answers) / 2
    assert {len(answer.notes) for answer in traffic.answers if not answer.bypassed} > {1}


def test_engines_in_parallel_are_read_with_one_catalog(small_model: str, tmp_path: Path) -> None:
    """Two engines behind one API server: both read for it, before and after the catalog is replaced."""
    folder, second = (shutil.copytree(artefacts_for(small_model), tmp_path / name) for name in ("served", "second"))
    reword(folder, FIRST)
    reword(second, SECOND)
    options = ServerOptions(port=0, max_model_len=512, artefacts=folder, extra=("--data-parallel-size", "2"))
    with (
        ModelServer.start(small_model, options) as server,
        Traffic(server.url, inspect(WORDS, picks=PICKS), one_call(small_model)) as traffic,
    ):
        traffic.more()
        before = prompt_tokens(server.url)
        assert [tokens > 0 for tokens in before] == [True, True]
        roll_out({"both": server.url}, folder, second, traffic)
        eventually(lambda: all(map(gt, prompt_tokens(server.url), before)))


def prompt_tokens(url: str) -> list[float]:
    """What each engine of a server has computed, in tokens of prompts."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:prompt_tokens_total{")]


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


def test_an_api_server_that_is_killed_and_started_again(one: Replica) -> None:
    """The chain answers all the time, no process of the dead stays, and the same annotator annotates again."""
    same = annotator(one)
    assert noted(same)
    one.server.process.kill()
    one.server.process.wait()
    assert not noted(same)
    assert set(same.stats.bypassed) == {"UnavailableError"}
    one.server.stop()
    eventually(lambda: one.members() == [])
    one.begin()
    eventually(lambda: noted(same))


def test_a_worker_that_is_killed_while_it_reads(one: Replica) -> None:
    """Every reading ends soon, its chain answers, and the server ends with its worker: nobody waits for the dead."""
    same = annotator(one)
    assert noted(same)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: results.append(noted(same, f"{n}. {LONG}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: health(one.url)["waiting"] > 0)
    one.worker().kill()
    died = time.monotonic()
    for thread in threads:
        thread.join(PATIENCE)
    assert time.monotonic() - died < PATIENCE / 2  # on no machine does a deadline end them
    assert len(results) == len(threads)
    assert False in results
    assert "timeout" not in same.stats.bypassed
    eventually(lambda: one.members() == [])
    fresh = annotator(one)
    assert not noted(fresh)
    assert set(fresh.stats.bypassed) == {"UnavailableError"}
