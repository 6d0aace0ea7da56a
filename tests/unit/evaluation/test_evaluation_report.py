"""Arms and figures: who gets which note, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_runtime.errors import InputError
from sae_runtime.evaluation.arms import check_arms, drawn_at_random, noted, placebo, said
from sae_runtime.evaluation.figures import across_models, answers, comparisons, failures, flags, readings
from sae_runtime.evaluation.items import Item
from sae_runtime.evaluation.report import load_results, markdown, summary, write_page
from sae_runtime.evaluation.run import save
from sae_runtime.evaluation.tasks import task_named

TABLE = task_named("table", {})


def items(count: int = 4) -> list[Item]:
    return [Item(f"i{n}", "test", f"g{n}", "p", {}, "no", ("yes", "no"), "B", mention="bank") for n in range(count)]


def test_unsure_readings_get_no_note() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.05, 0.95], [0.5, 0.5]])
    labels = said(items(), probabilities, 0.9)
    assert labels == ["yes", None, "no", None]
    assert noted(TABLE, "means", items(), labels).texts[:2] == ['Here "bank" means: yes.', ""]


def test_a_placebo_has_as_many_words_and_says_nothing_of_the_label() -> None:
    real = noted(TABLE, "means", items(), ["yes", None, "no", "no"])
    neutral = placebo(real)
    assert [len(text.split()) for text in neutral.texts] == [len(text.split()) for text in real.texts]
    assert neutral.labels == [None] * 4
    assert not any("bank" in text or "means" in text for text in neutral.texts)


def test_random_senses_fall_where_flags_are_and_stay_the_same() -> None:
    flagged = ["yes"] * 40 + [None] * 10
    labels = drawn_at_random(items(50), flagged)
    assert labels == drawn_at_random(items(50), flagged)
    assert {label is None for label in labels[40:]} == {True}
    assert {"yes", "no"} == set(labels[:40])


def test_arms_are_put_in_order_and_plain_is_always_among_them() -> None:
    assert check_arms(["oracle", "flagged"]) == ["plain", "flagged", "oracle"]
    with pytest.raises(InputError, match="no arm 'magic'"):
        check_arms(["magic"])


def results() -> dict[str, Any]:
    """Ten dev and twenty test items; without notes half are right, with flags all but one."""
    split, label = ["dev"] * 10 + ["test"] * 20, [0, 1] * 15
    plain = [1.0 if n % 4 < 2 else -1.0 for n in range(30)]
    flagged = [1.0 if value == 0 else -1.0 for value in label]
    flagged[-2] = -1.0

    def arm(margin: list[float], part: slice, note: int) -> dict[str, Any]:
        right = [int((m > 0) == (lab == 0)) for m, lab in zip(margin[part], label[part], strict=True)]
        return {"note": [note] * len(right), "right": right, "loglik": [-0.5] * len(right), "margin": margin[part]}

    arms = {
        name: {"plain": arm(plain, part, -1), "flagged": arm(flagged, part, 0)}
        for name, part in (("dev", slice(0, 10)), ("test", slice(10, 30)))
    }
    reading = {"label": label, "probability": [0.9] * 30, "chosen": {}}
    return {
        "task": "table",
        "model": "m<b>",
        "items": {"id": [f"i{n}" for n in range(30)], "split": split, "group": list(range(30)), "label": label,
                  "reader": [""] * 30},
        "readings": dict.fromkeys(("sae", "dense", "diffmean"), reading),
        "wording": "means",
        "wordings": {"means": {"accuracy_lift": 0.5, "accuracy_interval": [0.1, 0.8]}},
        "thresholds": {"flagged": 0.5},
        "arms": arms,
    }  # fmt: skip


def test_lift_and_harm_are_paired_with_the_plain_answers() -> None:
    plain, flagged = answers(results())
    assert (plain["tuned"], plain["lift"], plain["harm"], plain["noted"]) == (0.5, 0.0, 0.0, 0.0)
    assert (flagged["tuned"], flagged["noted"], flagged["items"]) == (0.95, 1.0, 20)
    assert flagged["lift"] == pytest.approx(0.45)
    assert flagged["interval"][0] < 0.45 < flagged["interval"][1]
    assert flagged["harm"] == pytest.approx(1 / 20)
    assert flagged["calibrated_lift"] == pytest.approx(flagged["accuracy"] - plain["accuracy"])
    low, high = flagged["calibrated_interval"]
    assert low < flagged["calibrated_lift"] < high
    assert comparisons(results())[0]["difference"] == pytest.approx(0.45)
    assert readings(results())[0]["calibration_error"] == pytest.approx(0.1)


def test_a_model_with_notes_is_compared_with_another_on_the_items_that_both_were_asked() -> None:
    small, large = results(), {**results(), "model": "large"}
    assert across_models([small, {**small, "task": "other"}]) == []
    rows = {(row["model"], row["arm"]): row for row in across_models([small, large])}
    assert rows["large", "plain"]["difference"] == 0.0
    assert rows["m<b>", "flagged"]["difference"] == pytest.approx(0.45)
    assert rows["m<b>", "flagged"]["against_plain"] == "large"
    items = large["items"]
    fewer = {**items, "id": [name if int(name[1:]) % 2 else "another" for name in items["id"]]}
    rows = {(row["model"], row["arm"]): row for row in across_models([small, {**large, "items": fewer}])}
    assert rows["m<b>", "flagged"]["items"] == 10


def planted() -> dict[str, Any]:
    return {
        "set": "test",
        "model": "m",
        "id": list("abcdef"),
        "kind": ["domain"] * 3 + ["plain"] * 3,
        "concept": list("abcdef"),
        "intended": [0, 0, 0, 1, 1, 1],
        "reading": [[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.1, 0.9], None, [0.4, 0.6]],
        "early": [None, None, None, None, None, [0.4, 0.6]],
        "source": [[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3,
        "flag": [0, None, None, None, None, 0],
        "elsewhere": [0] * 6,
        "arms": {"plain": {"right": [0, 0, 1, 1, 1, 1]}, "flagged": {"right": [1, 0, 1, 1, 1, 1]}},
    }


def test_flags_are_counted_by_kind_and_false_ones_cost_precision() -> None:
    rows = {row["kind"]: row for row in flags(planted())}
    assert (rows["domain"]["precision"], rows["domain"]["recall"]) == (1.0, pytest.approx(1 / 3, abs=1e-4))
    assert rows["domain"]["recall_of_misreads"] == 0.5
    assert rows["plain"]["flagged"] == pytest.approx(1 / 3, abs=1e-4)
    assert rows["planted"]["precision"] == 0.5


def test_models_are_compared_on_planted_prompts_too_all_and_by_kind() -> None:
    large = {**planted(), "model": "large", "id": list("abcdex")}
    rows = {(row["task"], row["model"], row["arm"]): row for row in across_models([planted(), large])}
    whole = rows["planted test", "m", "flagged"]
    assert (whole["items"], whole["accuracy"], whole["its_accuracy"]) == (5, 0.8, 0.6)
    assert rows["planted test domain", "m", "flagged"]["difference"] == pytest.approx(1 / 3, abs=1e-4)
    assert rows["planted test plain", "large", "plain"]["items"] == 2


def test_failures_are_compared_where_flagged_and_elsewhere() -> None:
    plain, flagged, planted_plain, _ = failures(planted())
    assert planted_plain["right_elsewhere"] == 0.5
    assert (plain["right_where_flagged"], plain["right_elsewhere"]) == (0.5, 0.75)
    assert flagged["lift_where_flagged"] == 0.5
    assert (flagged["right"], flagged["lift"], flagged["harm"]) == (
        pytest.approx(5 / 6, abs=1e-4),
        pytest.approx(1 / 6, abs=1e-4),
        0,
    )


def test_the_report_holds_every_table_and_escapes_what_it_shows(tmp_path: Path) -> None:
    save(results(), tmp_path / "one" / "results.json")
    save(planted(), tmp_path / "two" / "flags.json")
    figures = summary(load_results(tmp_path))
    assert json.loads((tmp_path / "one" / "results.json").read_text("utf-8"))["task"] == "table"
    text, page = markdown(figures), write_page(figures, tmp_path).read_text("utf-8")
    for title in ("What notes do to answers", "Flags on prompts with planted senses", "What can be read"):
        assert title in text
        assert title in page
    assert "m&lt;b&gt;" in page
    assert "m<b>" not in page
    assert page.count("<svg") == 1


def test_kinds_of_mistake_and_foresight_are_reported() -> None:
    feature = {"index": 7, "fires_with": 0.5, "fires_without": 0.1, "p_found": 1e-5, "p_confirmed": 0.01}
    concept = {"kind": "reversed", "note": "n", "cases": 20, "found": 3, "confirmed": 1, "features": [feature]}
    row = {"auc": 0.7, "problems": 50, "wrong_in_lowest_quarter": 0.3, "wrong_in_highest_quarter": 0.8}
    found = summary(
        [{"task": "svamp", "model": "m", "problems": 100, "wrong": 60, "concepts": [concept], "foreseen": {"sae": row}}]
    )
    assert found["mistakes"][0]["strongest"] == "7"
    assert found["foreseen"] == [{"task": "svamp", "model": "m", "readout": "sae", **row}]
    assert found["readings"] == []
    assert "reversed" in markdown(found)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results below"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match="is damaged"):
        load_results(tmp_path)
