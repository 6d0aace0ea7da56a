"""An evaluation from a table of one's own to its report, on the real model and the real server."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sae_runtime.catalog.packs import load_packs, parse_context
from sae_runtime.evaluation.report import load_results, markdown, summary, write_page
from sae_runtime.serving import ModelServer
from ui.cli.evaluation_run import run_planted, run_task

pytestmark = [pytest.mark.model, pytest.mark.server]
ARMS = ["plain", "flagged", "careful", "always", "placebo", "random-sense", "dense-probe", "self-rewrite", "oracle"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences with "bank" from its pack: ten per sense for the fit, five for choices, five to be scored."""
    pack = next(pack for pack in load_packs(["homographs"])["homographs"] if pack.concept == "bank")
    path = tmp_path_factory.mktemp("table") / "bank.csv"
    senses = list(pack.senses.items())[:2]
    labels = ";".join(sense.gloss for _, sense in senses)
    with path.open("w", encoding="utf-8", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["split", "prompt", "mention", "labels", "label"])
        for _, sense in senses:
            for number, marked in enumerate([*sense.contexts[:15], *sense.held_out[:5]]):
                context = parse_context(marked)
                split = "fit" if number < 10 else "dev" if number < 15 else "test"
                rows.writerow([split, context.text, context.mention, labels, sense.gloss])
    return path


def run(table: Path, out: Path, small_model: str, server: ModelServer) -> dict:
    run_task("table", small_model, table, out, ARMS, {}, sae=None, url=server.url, artefacts=None, ask=True)
    return json.loads((out / f"table-{small_model}" / "results.json").read_text("utf-8"))


def test_a_table_is_read_asked_and_reported_and_a_second_run_asks_nothing(table, tmp_path, small_model, server):
    found = run(table, tmp_path, small_model, server)
    test = found["arms"]["test"]
    assert set(test) == set(ARMS)
    assert [len(test[arm]["right"]) for arm in ARMS] == [10] * len(ARMS)
    read = [a == b for a, b, s in zip(found["readings"]["sae"]["label"], found["items"]["label"], found["items"]["split"],
                                      strict=True) if s == "test"]  # fmt: skip
    assert sum(read) >= 8  # the small model tells these banks apart
    assert set(test["plain"]["note"]) == {-1}
    assert set(test["self-rewrite"]["note"]) == {-2}
    assert test["oracle"]["note"] == [label for label, split in zip(found["items"]["label"], found["items"]["split"], strict=True) if split == "test"]  # fmt: skip
    cache = tmp_path / "cache" / "answers.jsonl"
    asked = cache.read_text("utf-8")
    assert run(table, tmp_path, small_model, server) == found
    assert cache.read_text("utf-8") == asked
    results = (tmp_path / f"table-{small_model}" / "results.json").read_text("utf-8")
    with table.open(encoding="utf-8", newline="") as lines:
        assert not any(row["prompt"] in results for row in csv.DictReader(lines))  # no text of the data

    figures = summary(load_results(tmp_path))
    assert {row["arm"] for row in figures["answers"]} == set(ARMS)
    assert "What notes do to answers" in markdown(figures)
    assert "<svg" in write_page(figures, tmp_path).read_text("utf-8")


def test_planted_prompts_are_flagged_and_asked(tmp_path, small_model, server):
    run_planted("examples", small_model, tmp_path, url=server.url, artefacts=None, ask=True)
    figures = summary(load_results(tmp_path))
    planted = next(row for row in figures["flags"] if row["kind"] == "planted")
    assert planted["prompts"] == 25
    assert planted["precision"] is None or planted["precision"] >= 0.8
    assert {row["arm"] for row in figures["failures"]} == {
        "plain",
        "flagged",
        "placebo",
        "random-sense",
        "always",
        "oracle",
    }
