"""Kinds of mistakes, and the features that go with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from sae_runtime.evaluation.answers import Question
from sae_runtime.evaluation.capture import Captured
from sae_runtime.evaluation.failures import NOTES, failure_concepts, failure_results, mistake
from sae_runtime.evaluation.figures import trials
from sae_runtime.evaluation.items import Item


def problem(text: str, label: str, gold: str) -> Item:
    return Item("x", "fit", "x", text, {"text": (0, len(text))}, label, (label,), gold)


ONE_STEP = problem("Of 30 pens in 5 boxes Ann lost 12.", "subtraction", "18")


@pytest.mark.parametrize(
    ("item", "answer", "kind"),
    [
        (ONE_STEP, "The answer is 18.", None),
        (ONE_STEP, "The answer is 18.0", None),
        (ONE_STEP, "The answer is 42", "operation"),
        (ONE_STEP, "12 - 30 = -18. The answer is -18", "reversed"),
        (problem("7 of 21", "division", "3"), "The answer is 0.33333", "reversed"),
        (ONE_STEP, "The answer is 150", "unused quantity"),
        (ONE_STEP, "The answer is 47", "unused quantity"),
        (ONE_STEP, "The answer is 1000", "other"),
        (ONE_STEP, "I do not know", "other"),
        (problem("2 bags of 3 and 4 more", "several", "10"), "The answer is 6", "unfinished"),
        (problem("2 bags of 3 and 4 more", "several", "10"), "The answer is 99", "other"),
    ],
)
def test_wrong_answers_are_sorted_by_arithmetic(item: Item, answer: str, kind: str | None) -> None:
    assert mistake(item, answer) == kind
    assert kind is None or kind in NOTES


def made(*, told: bool) -> tuple[csr_array, list[str | None]]:
    rng = np.random.default_rng(0)
    kinds: list[str | None] = ["operation" if n % 4 == 0 else None for n in range(400)]
    x = rng.random((400, 200)) * (rng.random((400, 200)) < 0.3)
    if told:
        x[:, 17] = [rng.random() + 1 if kind and rng.random() < 0.7 else 0 for kind in kinds]
    return csr_array(x), kinds


def test_a_feature_that_goes_before_a_mistake_is_found_and_confirmed() -> None:
    x, kinds = made(told=True)
    (concept,) = failure_concepts(x, kinds, range(1000, 1200))
    assert (concept.kind, concept.cases) == ("operation", 100)
    assert concept.features[0].index == 1017
    assert concept.features[0].fires_with > 0.5 > concept.features[0].fires_without
    assert concept.confirmed <= 3


def test_chance_is_not_confirmed() -> None:
    x, kinds = made(told=False)
    (concept,) = failure_concepts(x, kinds, range(200))
    assert concept.confirmed == 0


def test_rare_kinds_are_no_concept() -> None:
    x, kinds = made(told=True)
    few = [kind if n < 40 else None for n, kind in enumerate(kinds)]
    assert failure_concepts(x, few, range(200)) == []


class Hasty:
    """A model that stops after the first step of problems about boxes, unless the note tells it not to."""

    def ask(self, questions: list[Question], title: str) -> list[dict[str, Any]]:
        return [{"text": self.answer(question.messages[0][1])} for question in questions]

    @staticmethod
    def answer(text: str) -> str:
        stops = "boxes" in text and NOTES["unfinished"] not in text
        return "The answer is 6" if stops else "The answer is 10"


def test_a_concepts_note_is_tried_against_a_neutral_one_on_problems_that_fitted_nothing() -> None:
    texts = [f"{'2 boxes' if n % 2 else '2 bags'} of 3 and 4 more" for n in range(120)]
    items = [problem(text, "several", "10") for text in texts]
    x = np.array([[float(n % 2), 1.0] for n in range(120)])
    read = Captured({"text": csr_array(x)}, {"text": x.astype(np.float32)})
    results = failure_results(items, 40, read, Hasty(), {})  # type: ignore[arg-type]
    table = {(row["note"], row["where"]): row for row in trials({"task": "t", "model": "m", **results})}
    own, neutral = table["its own", "where flagged"], table["neutral", "where flagged"]
    assert (own["right_before"], own["lift"], own["harm"]) == (0.0, 1.0, 0.0)
    assert neutral["lift"] == 0.0
    assert table["its own", "everywhere"]["problems"] < 120
    assert 0.3 < table["its own", "everywhere"]["lift"] < 0.7
