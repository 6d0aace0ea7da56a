"""One log line per inspection, prompts stored nowhere unless asked for, secrets and prompts in no log."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sae_runtime import logs
from sae_runtime.errors import EngineError
from sae_runtime.serving.observer import Observer
from sae_runtime.serving.prompt_files import VARIABLE
from sae_runtime.serving.prompt_log import PromptLog

CANARY = "zebracanary"
KEY = "keycanary"
PROMPT = f"How often should I clean my mouse, {CANARY}?"
GLOSSARY = {"terms": [{"term": CANARY, "meaning": "a bird of ours", "otherwise": ["a horse"]}]}


class Everything(logging.Handler):
    """All records of all loggers, as text: messages, arguments, fields, tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        # The server writes records of ours with its own formatter, those of libraries as they are.
        formatter = logs.JsonFormatter() if record.name == "sensecheck" else self.formatter
        assert formatter
        self.text += formatter.format(record) + f" {record.args!r}\n"


@pytest.fixture
def everything() -> Iterator[Everything]:
    handler, root = Everything(), logging.getLogger()
    named = logging.getLogger("sensecheck")
    before = root.level, named.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    named.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(before[0])
    named.setLevel(before[1])
    root.removeHandler(handler)


def inspect(client: TestClient, text: str = PROMPT, **options: Any) -> Any:
    return client.post("/v1/sae/inspect", json={"messages": [{"role": "user", "content": text}], **options})


def ask_all_ways(client: TestClient, reader: Any) -> None:
    """Readings that succeed, fail for every kind of reason, or are refused."""
    assert inspect(client, domain="biology").json()["misreads"]
    assert inspect(client, tokens=False).status_code == 200
    assert inspect(client, glossary=GLOSSARY).status_code == 200
    assert inspect(client, picks={"mouse": CANARY}).status_code == 422
    assert inspect(client, role=CANARY, read=CANARY).status_code == 422
    assert client.post("/v1/sae/inspect", content=CANARY.encode()).status_code == 422
    for error in (EngineError("Broken."), RuntimeError(PROMPT), TimeoutError(PROMPT)):
        reader.error = error
        answer = inspect(client)
        assert answer.status_code == 500
        assert CANARY not in answer.text
    reader.error = None


def test_each_inspection_is_one_line(client: TestClient, quiet_reader: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sensecheck"):
        inspect(client, domain="biology", tokens=False)
        inspect(client, "Say hello.", tokens=False)
        quiet_reader.error = EngineError("Broken.")
        inspect(client, tokens=False)
    flagged, clear, unread = (r.__dict__["fields"] for r in caplog.records if r.getMessage() == "inspection")
    assert (flagged["outcome"], flagged["mentions"], flagged["flags"], flagged["notes"]) == ("flagged", 1, 1, 1)
    assert flagged["note_tokens"] > 0 and flagged["tokens"] > 0
    assert flagged["route"] == "inspect" and flagged["messages"] == 1 and flagged["reason"] is None
    steps = {"queue_ms", "plan_ms", "read_ms", "judge_ms"}
    assert steps <= flagged.keys()
    assert flagged["total_ms"] >= max(flagged[step] for step in steps)
    assert (clear["outcome"], clear["mentions"], clear["flags"], clear["note_tokens"]) == ("clear", 0, 0, 0)
    assert (unread["outcome"], unread["reason"], unread["mentions"]) == ("unread", "EngineError", None)
    assert len({line["id"] for line in (flagged, clear, unread)}) == 3


def test_nothing_is_logged_below_the_level_that_is_asked_for(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sensecheck"):
        inspect(client)
    assert [record for record in caplog.records if record.name == "sensecheck"] == []


def test_no_log_holds_a_prompt_or_the_key(
    client: TestClient, quiet_reader: Any, everything: Everything, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At DEBUG level, of every library in the process, also where things go wrong."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    client.headers["Authorization"] = f"Bearer {KEY}"
    ask_all_ways(client, quiet_reader)
    assert everything.text.count('"message": "inspection"') == 7
    assert everything.text.count("inspection failed") == 3
    assert CANARY not in everything.text
    assert KEY not in everything.text
    assert "mouse" not in everything.text  # which word was misread is a word of the prompt


def files_with(words: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and words.encode() in path.read_bytes()]


@pytest.fixture
def confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to which everything that looks for a place to write is led."""
    for name in ("SENSECHECK_HOME", "TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_by_default_no_prompt_is_stored(
    confined: Path, open_client: Callable[..., TestClient], quiet_reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with (confined / "server.log").open("w") as log:  # as `sensecheck serve` has it
        handler = logs.configure("json", "DEBUG", stream=log)
        try:
            ask_all_ways(open_client(Observer(PromptLog.from_environment())), quiet_reader)
        finally:
            logging.getLogger("sensecheck").removeHandler(handler)
            logging.getLogger("sensecheck").propagate = True
    assert (confined / "server.log").stat().st_size > 0
    assert files_with(CANARY, confined) == []


def test_prompts_are_logged_where_they_are_asked_for(
    confined: Path, open_client: Callable[..., TestClient], log_options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, log_options().to_json())
    log = PromptLog.from_environment()
    assert log is not None
    stream = io.StringIO()
    handler = logs.configure("json", stream=stream)
    try:
        client = open_client(Observer(log))
        inspect(client, f"{PROMPT} Mail me: ann@example.org.", domain="biology")
        inspect(client, "Say hello.", picks={"no": "such"})
    finally:
        logging.getLogger("sensecheck").removeHandler(handler)
        logging.getLogger("sensecheck").propagate = True
        log.close()
    path = Path(log_options().path)
    flagged, refused = (json.loads(line) for line in path.read_text().splitlines())
    assert flagged["messages"] == [{"role": "user", "content": f"{PROMPT} Mail me: [email]."}]
    assert (flagged["outcome"], flagged["domain"], flagged["reason"]) == ("flagged", "biology", None)
    (misread,) = flagged["misreads"]
    assert misread.keys() == {"concept", "read_as", "intended", "p_read_as", "p_intended", "note"}
    assert (refused["outcome"], refused["reason"], refused["misreads"]) == ("unread", "InputError", [])
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["id"] for line in lines] == [flagged["id"], refused["id"]]
    assert path.stat().st_mode & 0o777 == 0o600
    assert files_with(CANARY, confined) == [path]


def test_a_full_disk_breaks_no_request(
    open_client: Callable[..., TestClient], log_options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(28, os.strerror(28))

    log = PromptLog(log_options())
    monkeypatch.setattr("sae_runtime.serving.prompt_files.os.write", full)
    client = open_client(Observer(log))
    assert all(inspect(client, domain="biology").json()["misreads"] for _ in range(3))
    log.close()
    assert Path(log_options().path).read_bytes() == b""
