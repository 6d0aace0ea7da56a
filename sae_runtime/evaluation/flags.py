"""Flags on prompts with planted senses: are they right, and does a flag predict that the model gets the word wrong?

Every prompt is read with the shipped artefacts and their thresholds. Then the served model is asked, of the same prompt,
what the planted word means there (:mod:`sae_runtime.evaluation.meaning`), without a note, with the note of a flag, with a
neutral note in its place, and with the right note on every planted prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_runtime.detector import Inspector, Misread
from sae_runtime.detector.notes import joined_notes, render_note
from sae_runtime.evaluation.answers import Answers, Question
from sae_runtime.evaluation.arms import Notes, placebo
from sae_runtime.evaluation.items import Item, letter
from sae_runtime.evaluation.meaning import meaning_blank, meaning_question
from sae_runtime.evaluation.planted import read_planted
from sae_runtime.evaluation.prompts import PlantedPrompt, glossaries
from sae_runtime.evaluation.scoring import score

FLAGS = "flags.json"
ARMS = ("plain", "flagged", "placebo", "oracle")


@dataclass(frozen=True)
class FlagRow:
    """One prompt: its planted mention's probabilities by sense (None: not read), and the flag on it, if any.

    ``glosses`` and ``notes``: by sense of its concept. ``elsewhere``: flags on other words of the prompt.
    """

    prompt: PlantedPrompt
    reading: dict[str, float] | None
    intended: dict[str, float] | None
    flag: Misread | None
    elsewhere: int
    glosses: dict[str, str]
    notes: dict[str, str]

    def question(self, note: str) -> Question:
        """What is asked about the prompt, with ``note`` ("" for none) where the product would put it."""
        said = self.prompt.prompt + (joined_notes([note]) if note else "")
        return meaning_question(said, self.prompt.mention, list(self.glosses.values()))

    @property
    def blank(self) -> Question:
        """The same question about nothing."""
        return meaning_blank(self.prompt.mention, list(self.glosses.values()))

    @property
    def item(self) -> Item:
        """The question as an item of an evaluation."""
        labels = tuple(self.glosses.values())
        gold = self.glosses[self.prompt.intended]
        return Item(
            self.prompt.id, "test", self.prompt.concept, self.prompt.prompt, {}, gold, labels, letter(labels, gold)
        )


def flag_rows(inspector: Inspector, prompts: Sequence[PlantedPrompt]) -> list[FlagRow]:
    """Read ``prompts`` and flag them as the product would; prompts whose word the catalog does not know are left out.

    Raises:
        SensecheckError: a prompt cannot be read.
    """
    rows = []
    for prompt, reading, mention in read_planted(inspector, prompts, "reading"):
        detector = inspector.detector_for(glossaries()[prompt.glossary] if prompt.glossary else None)
        slug = f"glossary:{prompt.concept}" if prompt.glossary else prompt.concept
        concept = next((concept for concept in detector.view.concepts if concept.slug == slug), None)
        if concept is None:
            continue
        own = [flag for flag in reading.misreads if mention and flag.start == mention.start]
        rows.append(
            FlagRow(
                prompt=prompt,
                reading=mention.reading if mention else None,
                intended=mention.intended if mention else None,
                flag=own[0] if own else None,
                elsewhere=len(reading.misreads) - len(own),
                glosses={sense.slug: sense.gloss for sense in concept.senses},
                notes={sense.slug: render_note(sense.note, prompt.mention) for sense in concept.senses},
            )
        )
    return rows


def flag_results(rows: Sequence[FlagRow], answers: Answers | None) -> dict[str, Any]:
    """What ``flags.json`` holds: per prompt its probabilities and flag, and the answers of all arms.

    Raises:
        ServerError: the model cannot be asked.
    """
    senses = [list(row.glosses) for row in rows]
    out: dict[str, Any] = {
        "id": [row.prompt.id for row in rows],
        "kind": [row.prompt.kind for row in rows],
        "concept": [row.prompt.concept for row in rows],
        "intended": [names.index(row.prompt.intended) for row, names in zip(rows, senses, strict=True)],
        "reading": [row.reading and list(row.reading.values()) for row in rows],
        "source": [row.intended and list(row.intended.values()) for row in rows],
        "flag": [names.index(row.flag.intended) if row.flag else None for row, names in zip(rows, senses, strict=True)],
        "elsewhere": [row.elsewhere for row in rows],
    }
    if answers is not None:
        out["arms"] = _asked(rows, answers)
    return out


def _asked(rows: Sequence[FlagRow], answers: Answers) -> dict[str, Any]:
    flagged = [row.flag.note if row.flag else "" for row in rows]
    notes = {
        "plain": [""] * len(rows),
        "flagged": flagged,
        "placebo": placebo(Notes([None] * len(rows), flagged)).texts,
        "oracle": [row.notes[row.prompt.intended] if row.prompt.kind != "plain" else "" for row in rows],
    }
    blanks = answers.ask([row.blank for row in rows], "calibration")
    arms = {}
    for arm in ARMS:
        given = answers.ask([row.question(note) for row, note in zip(rows, notes[arm], strict=True)], arm)
        scored = [score(row.item, a, blank["scores"]) for row, a, blank in zip(rows, given, blanks, strict=True)]
        arms[arm] = {"right": [int(s.right) for s in scored], "loglik": [s.loglik for s in scored]}
    return arms
