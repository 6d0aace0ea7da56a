"""How the server process is told what to log, and who can read it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sae_runtime.errors import InputError
from sae_runtime.logs import FORMAT_VARIABLE
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.models.resolve import ResolvedModel
from sae_runtime.serving.prompt_files import VARIABLE, PromptLogOptions
from sae_runtime.serving.server import ModelServer, ServerOptions, _arguments, _environment, _open_log, _Reading
from ui.cli.app import app

READS = _Reading([], {"SENSECHECK_SERVE_MODEL": "m"})


@pytest.fixture
def model(tmp_path: Path) -> ResolvedModel:
    return ResolvedModel(name=SMALL_MODEL, path=tmp_path)


@pytest.mark.parametrize(
    ("log_format", "extra", "expected"),
    [
        ("text", (), False),
        ("json", (), True),
        ("json", ("--logging-config.formatter", "text"), False),
        ("json", ("--log-config-file=mine.json",), False),
    ],
)
def test_vllm_is_asked_for_json_unless_the_deployer_has_a_format(
    model: ResolvedModel, log_format: Any, extra: tuple[str, ...], expected: bool
) -> None:
    arguments = _arguments(model, ServerOptions(log_format=log_format, dtype="float32", extra=extra), 1, READS)
    assert (arguments[-2 - len(extra) :][:2] == ["--logging-config.formatter", "json"]) is expected


def test_the_server_process_is_told_by_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "left over")
    prompt_log = PromptLogOptions(str(tmp_path / "prompts"), files=3)
    told = _environment(ServerOptions(log_format="json", prompt_log=prompt_log), READS)
    assert told[FORMAT_VARIABLE] == "json"
    assert PromptLogOptions.from_json(told[VARIABLE]) == prompt_log
    assert VARIABLE not in _environment(ServerOptions(), READS)  # only an option switches it on


def test_only_the_owner_can_read_the_servers_log(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("of an earlier server")
    path.chmod(0o644)
    before = os.umask(0)
    try:
        with _open_log(path) as log:
            log.write(b"hello")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_servers_log_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "server.log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        _open_log(tmp_path / "server.log")
    assert victim.read_text() == "untouched"


def test_prompts_that_nobody_reads_cannot_be_logged(
    tmp_path: Path, model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_runtime.serving.server.resolve_model", lambda name: model)
    options = ServerOptions(engine="none", prompt_log=PromptLogOptions(str(tmp_path / "prompts")))
    with pytest.raises(InputError, match="No prompt will be read"):
        ModelServer.start(SMALL_MODEL, options)
    assert not (tmp_path / "prompts").exists()


def test_the_command_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ServerOptions] = []
    monkeypatch.setattr("ui.cli.serve.run_serve", lambda model, options: given.append(options))
    monkeypatch.chdir(tmp_path)
    words = ["--log-format", "json", "--log-prompts", "p.jsonl", "--log-prompts-mb", "0.5", "--log-prompts-files", "2",
             "--log-prompts-days", "7"]  # fmt: skip
    assert CliRunner().invoke(app, ["serve", *words]).exit_code == 0
    assert CliRunner().invoke(app, ["serve"], env={FORMAT_VARIABLE: "json"}).exit_code == 0
    assert CliRunner().invoke(app, ["serve"]).exit_code == 0
    assert given[0].prompt_log == PromptLogOptions(str(tmp_path / "p.jsonl"), 500_000, 2, 7.0)
    assert [options.log_format for options in given] == ["json", "json", "text"]
    assert given[1].prompt_log is given[2].prompt_log is None  # by default no prompt is stored
