"""The command as its users run it: exit codes, messages, JSON. No server is needed here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from sae_runtime.models import resolve_model
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from ui.cli.app import main

pytestmark = pytest.mark.model


def sensecheck(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "ui", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command in this process: importing everything anew takes seconds."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["sensecheck", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), written.out, written.err)

    return run


def test_help_names_every_command():
    run = sensecheck("--help")
    assert run.returncode == 0
    for command in ("ask", "serve", "chat", "build", "card", "eval", "model", "db"):
        assert command in run.stdout


def test_ask_without_answer_prints_only_the_reading(small_model):
    run = sensecheck(
        "ask", "--json", "--no-answer", "-m", small_model, "The bass was too heavy to carry up the stairs."
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["answer"] is report["plain_answer"] is None
    assert report["mentions"][0]["concept"] == "bass"
    assert report["timings_ms"]["total"] > 0


def test_ask_for_people_shows_mentions(small_model, here):
    run = here("ask", "--no-answer", "-m", small_model, "Is the [bold]bank[/bold] of the river steep?")
    assert run.returncode == 0, run.stderr
    assert "[bold]bank[/bold]" in run.stdout
    assert "river" in run.stdout


def test_card_has_every_documented_key(small_model, here):
    card = json.loads(here("card", "--json", "-m", small_model).stdout)
    keys = "model layer d_in d_sae fvu l0_mean l0_fraction ce_recovered dead_fraction tokens_trained concepts senses fingerprint"
    assert all(card[key] is not None for key in keys.split())
    assert card["features_validated_fraction"] is not None or card["features_validated_reason"]
    assert card["l0_fraction"] <= 0.01


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ask", "--no-answer", ""), "empty"),
        (("ask", "--no-answer", "-m", "unknown-model", "Hi"), "Unknown model"),
        (("ask", "--no-answer", "--placement", "nowhere", "Hi"), "placement"),
        (("ask", "-m", "smollm2-135m-instruct", "--url", "http://127.0.0.1:9", "Hi"), "does not answer"),
        (("card", "--artefacts", "/nowhere"), "cannot be read"),
        (("db", "check", "/nowhere.sqlite"), "no catalog"),
        (("build", "no-such-config"), "no build configuration"),
        (("build", "smollm2-135m-instruct", "--corpus", "/nowhere"), "no file like"),
        (("build", "smollm2-135m-instruct", "--to", "nonsense"), "no stage"),
    ],
)
def test_bad_input_is_a_message_with_remedy_and_exit_code_2(arguments, expected, small_model, here):
    if arguments[:2] == ("ask", "--no-answer") and "-m" not in arguments:
        arguments = (*arguments[:2], "-m", small_model, *arguments[2:])
    run = here(*arguments)
    assert run.returncode == 2, run.stderr
    assert expected in run.stderr.replace("\n", " ")
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_a_dry_run_names_every_step_and_writes_nothing(tmp_path, small_model, here, monkeypatch):
    (tmp_path / "text.txt").write_text("The crane lifted a beam over the river.\n\n" * 50)
    config, model = tmp_path / "build.yaml", resolve_model(small_model).path
    source = "{kind: text, name: words, licence: ours, paths: [text.txt]}"
    config.write_text(
        f"model: {model}\nlayer: 3\n"
        f"corpus: {{root: {tmp_path}, train_tokens: 500, sources: [{source}]}}\n"
        "train: {width: 1000, k: 8}\n"
    )
    home = tmp_path / "home"
    monkeypatch.setenv("SENSECHECK_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "120")
    run = here("build", str(config), "--dry-run")
    assert run.returncode == 0, run.stderr
    for step in ("corpus", "harvest", "train", "measure", "again", "control-train", "validate", "contexts"):
        assert step in run.stdout
    assert "to be written" in run.stdout and " free." in run.stdout
    assert not any(path.is_file() for path in (home / "builds").rglob("*"))
    assert "Builds in" in here("build", "status").stdout
    refused = here("build", str(config), "--from", "nonsense")
    assert refused.returncode == 2 and "no stage" in refused.stderr


def test_db_check_and_upgrade(tmp_path, small_model, here):
    assert "concepts" in here("db", "check", "-m", small_model).stdout
    fresh = tmp_path / "new.sqlite"
    assert here("db", "upgrade", str(fresh)).returncode == 0
    run = here("db", "check", str(fresh))
    assert run.returncode == 2 and "empty" in run.stderr


def test_a_catalog_of_a_newer_schema_is_refused(tmp_path, small_model, here):
    import sqlite3

    folder = shutil.copytree(artefacts_for(small_model), tmp_path / "artefacts")
    with sqlite3.connect(folder / CATALOG_FILE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("PRAGMA user_version = 0")  # no seal: another program wrote it
    connection.close()
    run = here("ask", "--no-answer", "-m", small_model, "--artefacts", str(folder), "Hello bank")
    assert run.returncode == 2
    assert "9999" in run.stderr and "Update sensecheck" in run.stderr
