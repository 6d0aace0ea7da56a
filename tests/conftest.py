"""Fixtures that cost something, each made at most once per run: the real small model, two vLLM servers, a PostgreSQL cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from postgres_server import PostgresServer, postgres_server

from sae_runtime.detector import Inspector
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.serving import ModelServer, ServerOptions

# Their assertions say what differs, as those in test modules do.
pytest.register_assert_rewrite("asking", "faults", "haproxy", "rolling", "scripted_server", "small_replica")

_CONTEXT = 2048


@pytest.fixture(scope="session")
def context() -> int:
    """Context length of both servers in tokens."""
    return _CONTEXT


@pytest.fixture(scope="session")
def small_model() -> str:
    """The built-in model that tests run on."""
    return SMALL_MODEL


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL cluster of the run's own; starts in about a second."""
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="session")
def inspector(small_model: str) -> Inspector:
    """The real small model with its shipped SAE and catalog, in this process: the oracle of the servers' readings."""
    return Inspector.from_model(small_model)


@pytest.fixture(scope="session")
def server(small_model: str) -> Iterator[ModelServer]:
    """The real vLLM server in eager mode, in float32 on every machine, like the oracle in this process."""
    options = ServerOptions(port=0, max_model_len=_CONTEXT, residual=True, dtype="float32")
    with ModelServer.start(small_model, options) as running:
        yield running


@pytest.fixture(scope="session")
def cramped_server(small_model: str) -> Iterator[ModelServer]:
    """A server under pressure, compiled, in bfloat16: prompts come in chunks of 128 tokens, and the cache holds 2,560."""
    limits = ("--max-num-batched-tokens", "128", "--max-num-seqs", "16", "--block-size", "32",
              "--num-gpu-blocks-override", "80")  # fmt: skip
    options = ServerOptions(
        port=0, max_model_len=_CONTEXT, residual=True, compiled=True, dtype="bfloat16", extra=limits
    )
    with ModelServer.start(small_model, options) as running:
        yield running


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What OpenTelemetry's SDK exports, in memory: as if the program, or vLLM, had set a provider."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """Loggers are the process's: what a command that a test runs here sets, the next test must not find."""
    loggers = [logging.getLogger(name) for name in ("sensecheck", "httpx")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers
