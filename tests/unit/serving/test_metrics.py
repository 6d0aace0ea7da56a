"""The server's Prometheus metrics: what is counted, under which labels, and that vLLM's own endpoint shows it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sae_runtime.catalog.view import Concept
from sae_runtime.errors import EngineError, InputError
from sae_runtime.serving import metrics
from sae_runtime.serving.service import MAX_CONCURRENT, BusyError

MOUSE = "How often should I clean my mouse?"
CANARY = "zebracanary"


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Moved:
    """How far metrics moved since this was made."""

    def __init__(self) -> None:
        self._before = self._all()

    @staticmethod
    def _all() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        families = text_string_to_metric_families(generate_latest(REGISTRY).decode())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith("sensecheck_")
        }

    def by(self, name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return self._all().get(key, 0.0) - self._before.get(key, 0.0)

    def names(self, prefix: str) -> set[tuple[tuple[str, str], ...]]:
        """Labels of the series that moved."""
        now = self._all()
        return {key[1] for key in now if key[0] == prefix and now[key] != self._before.get(key, 0.0)}


def ask(client: TestClient, text: str = MOUSE, **options: Any) -> Any:
    return client.post("/v1/sae/inspect", json={"messages": [{"role": "user", "content": text}], **options})


def test_an_inspection_is_counted_and_timed(client: TestClient) -> None:
    moved = Moved()
    assert ask(client, domain="biology", tokens=False).json()["misreads"]
    assert ask(client, f"Say {CANARY}.").json()["misreads"] == []
    inspect = {"route": "inspect"}
    assert moved.by("sensecheck_inspections_total", outcome="flagged", **inspect) == 1
    assert moved.by("sensecheck_inspections_total", outcome="clear", **inspect) == 1
    assert moved.by("sensecheck_flags_total", concept="mouse") == 1
    assert moved.by("sensecheck_inspection_duration_seconds_count", **inspect) == 2
    assert moved.by("sensecheck_note_tokens_total") > 5
    assert moved.names("sensecheck_bypasses_total") == set()
    for step, times in {"queue": 2, "plan": 2, "read": 2, "judge": 2, "compile": 0}.items():
        assert moved.by("sensecheck_inspection_step_seconds_count", step=step) == times
    whole = moved.by("sensecheck_inspection_duration_seconds_sum", **inspect)
    assert (
        0 < sum(moved.by("sensecheck_inspection_step_seconds_sum", step=s) for s in ("plan", "read", "judge")) < whole
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [(EngineError("Broken."), "EngineError"), (RuntimeError(CANARY), "other"), (TimeoutError(), "timeout")],
    ids=["ours", "foreign", "timeout"],
)
def test_what_goes_unread_is_counted_by_reason(
    client: TestClient, quiet_reader: Any, error: Exception, reason: str
) -> None:
    quiet_reader.error = error
    moved = Moved()
    assert ask(client).status_code == 500
    assert moved.by("sensecheck_inspections_total", route="inspect", outcome="unread") == 1
    assert moved.names("sensecheck_bypasses_total") == {(("reason", reason), ("route", "inspect"))}
    assert value("sensecheck_inspections_in_flight") == 0


def test_an_empty_prompt_is_counted_as_the_clients_fault(client: TestClient) -> None:
    moved = Moved()
    assert ask(client, picks={CANARY: CANARY}).status_code == 422
    assert moved.names("sensecheck_bypasses_total") == {(("reason", "InputError"), ("route", "inspect"))}


async def test_readings_under_way_are_counted_and_cancelled_ones_leave(tiny_detector: Any) -> None:
    from sae_runtime.serving.service import ReadingService

    class Waiting:
        async def features(self, plan: Any) -> Any:
            await asyncio.Event().wait()

    service = ReadingService(tiny_detector, Waiting())  # type: ignore[arg-type]
    moved = Moved()
    message: Any = [{"role": "user", "content": MOUSE}]
    running = [asyncio.create_task(service.inspect(message)) for _ in range(MAX_CONCURRENT)]
    while value("sensecheck_inspections_in_flight") < MAX_CONCURRENT:
        await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await service.inspect(message)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert value("sensecheck_inspections_in_flight") == 0
    assert moved.by("sensecheck_bypasses_total", route="inspect", reason="BusyError") == 1
    assert moved.by("sensecheck_bypasses_total", route="inspect", reason="cancelled") == MAX_CONCURRENT


def concept(slug: str, *, declared: str | None = None) -> Concept:
    return Concept(
        slug=slug, pack="p", forms=(slug,), site="rest", accuracy=1.0, text_accuracy=None, read_below=0.1,
        intended_above=0.9, senses=(), declared=declared,
    )  # fmt: skip


def test_a_clients_glossary_cannot_make_series(client: TestClient) -> None:
    """Its terms are counted together, and compiling it is counted."""
    moved = Moved()
    term = {"term": "seat", "meaning": "a licence for one named user", "otherwise": ["a thing to sit on"]}
    slug = client.post(
        "/v1/sae/inspect",
        json={"messages": [{"role": "user", "content": "Sell me a seat."}], "glossary": {"terms": [term]}},
    ).json()["mentions"][0]["concept"]
    assert moved.by("sensecheck_glossary_compiles_total", outcome="done") == 1
    assert moved.by("sensecheck_inspection_step_seconds_count", step="compile") == 1
    metrics.count_flag(concept(slug, declared="meant"))
    assert moved.names("sensecheck_flags_total") == {(("concept", "other"),)}


def test_a_glossary_that_cannot_be_compiled_is_counted(client: TestClient, quiet_reader: Any) -> None:
    quiet_reader.error = EngineError("Broken.")
    moved = Moved()
    term = {"term": "seat", "meaning": "a licence", "otherwise": ["a chair"]}
    body = {"messages": [{"role": "user", "content": "Sell me a seat."}], "glossary": {"terms": [term]}}
    assert client.post("/v1/sae/inspect", json=body).status_code == 500
    assert moved.by("sensecheck_glossary_compiles_total", outcome="failed") == 1


def test_the_number_of_series_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_seen", set())
    moved = Moved()
    for number in range(metrics.MAX_CONCEPTS + 50):
        metrics.count_flag(concept(f"concept-{number}"))
    assert len(moved.names("sensecheck_flags_total")) == metrics.MAX_CONCEPTS + 1
    assert moved.by("sensecheck_flags_total", concept="other") == 50
    metrics.count_flag(concept("concept-3"))
    assert moved.by("sensecheck_flags_total", concept="concept-3") == 2


def test_another_catalog_takes_the_place_of_the_old_one() -> None:
    info = metrics.CatalogInfo()
    labels = {"model": "m", "layer": "3", "engine": "vllm", "sae": "s", "weights": "w"}
    info.use(catalog="old", **labels)
    info.use(catalog="new", **labels)
    assert value("sensecheck_catalog_info", catalog="old", **labels) == 0
    assert value("sensecheck_catalog_info", catalog="new", **labels) == 1
    info.use(catalog="new", **labels)
    assert value("sensecheck_catalog_info", catalog="new", **labels) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [(InputError(CANARY), "InputError"), (asyncio.CancelledError(), "cancelled"), (KeyError(CANARY), "other")],
)
def test_reasons_come_from_a_fixed_list(error: BaseException, reason: str) -> None:
    assert metrics.reason_of(error) == reason


def test_names_follow_the_conventions() -> None:
    ours = [f for f in text_string_to_metric_families(generate_latest(REGISTRY).decode()) if "sensecheck" in f.name]
    assert len(ours) >= 9
    for family in ours:
        assert family.documentation
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


_SCRAPE = """
import sys
from sae_runtime.serving import metrics

if "count" in sys.argv:
    metrics.INSPECTIONS.labels("inspect", "flagged").inc(2)
    metrics.IN_FLIGHT.inc(3)
    metrics.CatalogInfo().use(model="m", layer="3", engine="vllm", catalog="c", sae="s", weights="w")
    metrics.DURATION.labels("inspect").observe(0.02)
if "scrape" in sys.argv:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from vllm.entrypoints.serve.instrumentator.metrics import attach_router

    app = FastAPI()
    attach_router(app)
    print(TestClient(app).get("/metrics").text)
if "wait" in sys.argv:
    print("ready", flush=True)
    sys.stdin.read()
"""


def _samples(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.value and sample.name.startswith("sensecheck") and not sample.name.endswith("_created"):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def _run(*words: str, **environment: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", _SCRAPE, *words]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout


def test_vllms_endpoint_shows_them() -> None:
    """vLLM's own code mounts the endpoint, in a process of its own."""
    found = _samples(_run("count", "scrape"))
    assert found["sensecheck_inspections_total"] == 2
    assert found["sensecheck_inspections_in_flight"] == 3
    assert found["sensecheck_catalog_info"] == 1
    assert found["sensecheck_inspection_duration_seconds_count"] == 1


def test_vllms_endpoint_shows_those_of_all_its_processes(tmp_path: Path) -> None:
    """With several API servers each has its own numbers; any of them shows the sum."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-W", "ignore", "-c", _SCRAPE, "count", "wait"]
    with subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout and other.stdin
        assert other.stdout.readline().strip() == "ready"
        found = _samples(_run("count", "scrape", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))
        other.stdin.close()
    assert found["sensecheck_inspections_total"] == 4
    assert found["sensecheck_inspections_in_flight"] == 6
    assert found["sensecheck_catalog_info"] == 1
    assert found["sensecheck_inspection_duration_seconds_count"] == 2


def test_a_program_that_only_asks_the_server_registers_nothing() -> None:
    """The middleware's users have registries of their own."""
    code = (
        "import sys, middleware; assert not [m for m in sys.modules if m.startswith('prometheus_client')], sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)
