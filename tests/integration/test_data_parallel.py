"""One vLLM server with two engines in parallel: readings come from both, with one read-only catalog."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults.making import eventually, put_catalog
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from sae_runtime.catalog.file import CatalogFile
from sae_runtime.catalog.store import changing, seal_catalog
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from sae_runtime.serving import ModelServer, ServerOptions

pytestmark = pytest.mark.server

ENGINES = 2
PROMPTS = [f"Case {number}: the bass was too heavy to carry up the stairs." for number in range(24)]


@pytest.fixture(scope="module")
def artefacts(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(artefacts_for(small_model), tmp_path_factory.mktemp("shared") / "artefacts")


@pytest.fixture(scope="module")
def parallel(small_model: str, artefacts: Path) -> Iterator[ModelServer]:
    options = ServerOptions(port=0, max_model_len=512, artefacts=artefacts, dtype="float32",
                            extra=("--data-parallel-size", str(ENGINES)))  # fmt: skip
    with ModelServer.start(small_model, options) as running:
        yield running


def read(server: ModelServer, prompt: str) -> Any:
    body = {"messages": [{"role": "user", "content": prompt}], "tokens": False}
    return httpx.post(f"{server.url}/v1/sae/inspect", json=body, timeout=120).raise_for_status().json()


def read_all(server: ModelServer) -> list[Any]:
    """Readings of all prompts, eight at a time."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda prompt: read(server, prompt), PROMPTS))


def prompt_tokens(server: ModelServer) -> Counter[str]:
    """Tokens of prompts that each engine has computed or found in its cache."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=60).text):
        for sample in family.samples:
            if sample.name == "vllm:prompt_tokens_total":
                found[sample.labels["engine"]] += int(sample.value)
    return found


def fingerprint(folder: Path) -> str:
    return CatalogFile.of(folder / CATALOG_FILE).fingerprint


def test_both_engines_read_what_this_process_reads(parallel: ModelServer, inspector: Any) -> None:
    before = prompt_tokens(parallel)
    readings = read_all(parallel)
    for prompt, reading in zip(PROMPTS[:4], readings, strict=False):
        here = inspector.inspect([{"role": "user", "content": prompt}], tokens=False)
        (there,), (expected,) = reading["mentions"], here.mentions
        assert (there["text"], there["start"]) == (expected.text, expected.start)
        assert there["reading"] == pytest.approx(expected.reading, abs=0.005)  # batches differ
    worked = prompt_tokens(parallel) - before
    assert len(worked) == ENGINES
    assert all(tokens > 0 for tokens in worked.values())


def test_all_engines_change_over_together(parallel: ModelServer, artefacts: Path, tmp_path: Path) -> None:
    old, second = fingerprint(artefacts), shutil.copytree(artefacts, tmp_path / "second")
    with changing(second / CATALOG_FILE) as connection:
        connection.execute(text("UPDATE concepts SET slug = 'bass_again' WHERE slug = 'bass'"))
    seal_catalog(second / CATALOG_FILE)
    assert {reading["catalog"] for reading in read_all(parallel)} == {old}
    put_catalog(second, artefacts)
    eventually(lambda: read(parallel, PROMPTS[0])["catalog"] == fingerprint(second))
    for reading in read_all(parallel):
        assert reading["catalog"] == fingerprint(second)
        assert {mention["concept"] for mention in reading["mentions"]} == {"bass_again"}
