"""The shipped small model's catalog on a real PostgreSQL server: what is read with it is what is read with the file."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from postgres_server import PASSWORD, PostgresServer
from sqlalchemy import URL
from typer.testing import CliRunner

from middleware import CatalogSource
from sae_runtime.catalog.copying import copy_catalog
from sae_runtime.catalog.location import full_text
from sae_runtime.detector import Inspector
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.errors import CatalogError, InputError
from sae_runtime.evaluation.prompts import calibration_prompts
from sae_runtime.models import resolve_model
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from sae_runtime.serving import ServerOptions
from sae_runtime.serving.plugin import SensecheckEndpoint
from sae_runtime.serving.server import _environment, _Reading
from ui.cli.app import app

pytestmark = [pytest.mark.model, pytest.mark.postgres]
_OTHER = {"timings_ms", "catalog"}  # the latter is the fingerprint of a file
TEXT = "The bass was too heavy to carry up the stairs."


@pytest.fixture(scope="module")
def catalog(postgres: PostgresServer, small_model: str) -> Iterator[URL]:
    """A copy of the shipped catalog, over loopback and with a password."""
    name = postgres.new_database().database
    assert name
    url = postgres.tcp_url(name)
    copy_catalog(artefacts_for(small_model) / CATALOG_FILE, url)
    yield url
    postgres.drop(name)


def sensecheck(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ui", *arguments],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_plans_and_readings_are_identical(catalog: URL, inspector: Inspector, small_model: str) -> None:
    ours = Inspector.from_model(small_model, catalog=catalog, fetch=False)
    assert list(ours.view.concepts) == list(inspector.view.concepts)
    assert dict(ours.view.features) == dict(inspector.view.features)
    seen = flagged = 0
    for prompt in calibration_prompts()[:60]:
        messages = [{"role": "user", "content": prompt.prompt}]
        options = {"domain": prompt.domain}
        assert ours.detector.plan(messages, **options) == inspector.detector.plan(messages, **options)
        mine, theirs = ours.inspect(messages, **options), inspector.inspect(messages, **options)
        assert mine.model_dump(exclude=_OTHER) == theirs.model_dump(exclude=_OTHER)
        seen += len(theirs.mentions)
        flagged += len(theirs.misreads)
    assert seen >= 60
    assert flagged > 5


def test_the_command_reads_with_a_catalog_by_url(catalog: URL, small_model: str) -> None:
    ask = ("ask", "--no-answer", "--json", "-m", small_model, TEXT)
    bare = URL.create("postgresql", catalog.username, None, catalog.host, catalog.port, catalog.database)
    reports = []
    for run in (
        sensecheck(*ask),
        sensecheck(*ask, SENSECHECK_CATALOG=str(bare), PGPASSWORD=PASSWORD),
    ):
        assert run.returncode == 0, run.stderr
        assert PASSWORD not in run.stdout + run.stderr
        reports.append(json.loads(run.stdout))
        for name in _OTHER:
            reports[-1].pop(name, None)
    assert reports[0]["mentions"]
    assert reports[1] == reports[0]


def test_a_catalog_goes_to_a_server_and_back_by_command(
    postgres: PostgresServer, small_model: str, tmp_path: Path
) -> None:
    file, back = str(artefacts_for(small_model) / CATALOG_FILE), str(tmp_path / "back.sqlite")
    url = full_text(postgres.tcp_url(postgres.new_database().database or ""))
    outputs = [
        command("db", "upgrade", url),
        command("db", "copy", file, url),
        command("db", "check", url),
        command("db", "copy", "--replace", file, url),
        command("db", "copy", url, back),
    ]
    assert "is up to date" in outputs[0]
    assert "90 concepts" in outputs[1]
    assert outputs[1] == outputs[3]
    assert command("db", "check", back).split(": ", 1)[1] == outputs[2].split(": ", 1)[1]
    assert all("***" in output for output in outputs[:4])
    assert PASSWORD not in "".join(outputs)
    with pytest.raises(CatalogError, match=r"holds a catalog already of smollm2") as caught:
        command("db", "copy", file, url)
    assert "--replace" in caught.value.remedy
    assert PASSWORD not in str(caught.value)


def command(*arguments: str) -> str:
    """What ``sensecheck`` prints, in this process; its errors are raised."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (("db", "check"), "postgresql://u:hunt@er2@h/db"),
        (
            ("ask", "--no-answer", "Hi", "-m", "smollm2-135m-instruct", "--catalog"),
            "postgresql://u:hunter2@127.0.0.1:1/db",
        ),
    ],
)
def test_a_wrong_url_is_a_message_without_its_password(arguments: tuple[str, ...], url: str) -> None:
    run = sensecheck(*arguments, url)
    assert run.returncode == 2
    assert "What to do" in run.stderr
    assert "Traceback" not in run.stderr
    assert "hunt" not in run.stdout + run.stderr
    assert "er2" not in run.stdout + run.stderr


def test_the_server_is_told_by_its_environment_and_reads_with_it(
    catalog: URL, inspector: Inspector, small_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but vLLM itself: what `sensecheck serve` hands on, and what the plugin opens and answers with."""
    options = ServerOptions(catalog=catalog, engine="transformers")
    reading = _Reading.of(resolve_model(small_model, fetch=False), options)
    assert PASSWORD not in repr(reading) + repr(options) + " ".join(reading.arguments)
    for name, value in _environment(options, reading).items():
        if name.startswith("SENSECHECK_"):
            monkeypatch.setenv(name, value)
    endpoint, app = SensecheckEndpoint(), FastAPI()
    endpoint.attach_reading_routes(app)
    engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=2048))
    with TestClient(app) as client:
        client.portal.call(endpoint.init_state, engine, app.state, Namespace())  # type: ignore[union-attr]
        messages = [{"role": "user", "content": TEXT}]
        answer = client.post("/v1/sae/inspect", json={"messages": messages}).json()
        expected = inspector.inspect(messages).model_dump(mode="json")
        assert answer["mentions"] == expected["mentions"]
        assert answer["tokens"] == expected["tokens"]
        index = next(iter(inspector.view.features))
        assert client.get(f"/v1/sae/features/{index}").json()["label"] == inspector.view.features[index].label
        health = client.get("/v1/sae/health").json()
        assert health["fingerprints"] == inspector.view.fingerprints
        assert PASSWORD not in json.dumps(health)


def test_a_missing_folder_or_database_is_refused(catalog: URL, small_model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no artefacts"):  # the dictionary is a file in any case
        Artefacts.open(small_model, folder=tmp_path / "none", catalog=catalog, fetch=False)
    with pytest.raises(CatalogError, match="database"):
        Artefacts.open(small_model, catalog=catalog.set(database="none_here"), fetch=False)


def test_a_source_opens_its_catalog_again_where_it_is_unpickled(catalog: URL, small_model: str) -> None:
    source = CatalogSource.open(small_model, catalog=full_text(catalog))
    assert PASSWORD not in repr(source)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert again.inspector.opened.catalog == catalog
    assert again.catalog is None  # a server's is not watched
