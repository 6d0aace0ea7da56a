"""Wordings compete on one part of the sentences, the winner is measured on the other, and only what helps is given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.catalog.packs import ConceptPack, load_packs
from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector.notes import MAX_NOTE
from sae_runtime.evaluation.answers import Question
from sae_runtime.evaluation.items import LETTERS
from sae_runtime.evaluation.notes import CHOOSING, figures, store, try_notes, wordings
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import CATALOG_FILE, artefacts_for

PACK = next(pack for pack in load_packs(["homographs"])["homographs"] if pack.concept == "bat")
GLOSSES = [sense.gloss for sense in PACK.senses.values()]


class Believer:
    """A model that takes the word in the first sense, unless a note with one of ``convincing`` names a gloss."""

    def __init__(self, convincing: tuple[str, ...]) -> None:
        self.convincing = convincing
        self.asked: list[str] = []

    def ask(self, questions: list[Question], title: str) -> list[dict[str, Any]]:
        return [{"scores": self.scores(question.messages[0][1])} for question in questions]

    def scores(self, text: str) -> list[float]:
        self.asked.append(text)
        said, _, _ = text.partition("\n\nIn this message")
        note = said.partition("[Note on the wording above: ")[2]
        if any(words in note for words in self.convincing):
            place = min(range(len(GLOSSES)), key=lambda n: note.find(GLOSSES[n]) % 10_000)
            return [-0.1 if n == place else -3.0 for n in range(len(GLOSSES))]
        return [-0.5 if n == 0 else -2.0 for n in range(len(GLOSSES))] if said != "N/A" else [-1.0] * len(GLOSSES)


def trials(model: Believer) -> dict[str, Any]:
    return {trial.sense: trial for trial in try_notes({"homographs": [PACK]}, model)}  # type: ignore[arg-type]


def test_the_wording_that_convinces_wins_with_a_margin() -> None:
    found = trials(Believer(("means:",)))
    names = list(PACK.senses)
    assert {trial.wording for trial in found.values()} == {"gloss"}
    second = found[names[1]]
    assert second.lift > 1 and second.lift_low > 0 and second.margin > 1
    assert (second.accuracy_lift, second.harm, second.enabled) == (1.0, 0.0, True)
    assert second.trials == len(PACK.senses[names[1]].held_out)


def test_notes_that_change_nothing_are_not_given() -> None:
    found = trials(Believer(()))
    assert not any(trial.enabled for trial in found.values())
    assert figures(list(found.values()))["enabled"] == 0


def test_what_is_measured_did_not_choose() -> None:
    """A wording that convinces only on the sentences that choose is chosen, and found not to help."""
    sense = PACK.senses[list(PACK.senses)[1]]
    chosen = [context.text for context in sense.labelled(held_out=False)[:CHOOSING]]

    class Overfitted(Believer):
        def scores(self, text: str) -> list[float]:
            self.convincing = ("means:",) if any(own in text for own in chosen) else ()
            return super().scores(text)

    found = trials(Overfitted(()))[list(PACK.senses)[1]]
    assert (found.wording, found.lift, found.enabled) == ("gloss", 0.0, False)


@pytest.mark.parametrize("pack", [pack for group in load_packs().values() for pack in group], ids=lambda p: p.concept)
def test_every_shipped_sense_has_competing_wordings_that_fit(pack: ConceptPack) -> None:
    for sense in pack.senses:
        texts = wordings(pack, sense)
        assert len(texts) >= 2
        assert all(len(text) <= MAX_NOTE and text.count("{mention}") == 1 for text in texts.values())
    assert len(pack.senses) <= len(LETTERS)


def test_the_catalog_keeps_what_was_found_and_senses_without_a_note_are_marked(tmp_path: Path) -> None:
    catalog = tmp_path / CATALOG_FILE
    shutil.copy(artefacts_for(SMALL_MODEL) / CATALOG_FILE, catalog)
    found = list(trials(Believer(("means:",))).values())
    refused = found[0].__class__(**{**vars(found[0]), "lift": -0.5})
    store([refused, *found[1:]], catalog)
    concept = next(concept for concept in CatalogView.load(catalog).concepts if concept.slug == "bat")
    assert [sense.noted for sense in concept.senses] == [False] + [True] * (len(found) - 1)
    assert concept.senses[1].note == found[1].text
    assert list(tmp_path.iterdir()) == [catalog]
    assert json.dumps(figures(found))
