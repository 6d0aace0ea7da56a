"""Flags on prompts with planted senses: are they right, and does a flag predict that the model gets the word wrong?

Every prompt is read with the shipped artefacts and their thresholds. Then the served model is asked, of the same prompt,
what the planted word means there (:mod:`sae_runtime.evaluation.meaning`): without a note, with the note of a flag, with a
neutral note or that of a random sense in its place, with what the source says on every prompt (*always*: nothing is read inside the
model), and with the right note on every planted prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_runtime.detector import Inspector, Misread
from sae_runtime.detector.notes import render_note
from sae_runtime.detector.rule import likeliest
from sae_runtime.evaluation.answers import Answers
from sae_runtime.evaluation.arms import Notes, placebo, random_sense
from sae_runtime.evaluation.meaning import Meaning
from sae_runtime.evaluation.planted import read_planted
from sae_runtime.evaluation.prompts import PlantedPrompt

FLAGS = "flags.json"
ARMS = ("plain", "flagged", "placebo", "random-sense", "always", "oracle")


@dataclass(frozen=True)
class FlagRow:
    """One prompt: its planted mention's probabilities by sense (None: not read), and the flag on it, if any.

    ``glosses`` and ``notes``: by sense of its concept. ``elsewhere``: flags on other words of the prompt.
    """

    prompt: PlantedPrompt
    reading: dict[str, float] | None
    early: dict[str, float] | None
    intended: dict[str, float] | None
    flag: Misread | None
    elsewhere: int
    glosses: dict[str, str]
    notes: dict[str, str]

    @property
    def meaning(self) -> Meaning:
        """What the model is asked."""
        return Meaning(
            self.prompt.mention, tuple(self.glosses.values()), list(self.glosses).index(self.prompt.intended)
        )


def flag_rows(inspector: Inspector, prompts: Sequence[PlantedPrompt]) -> list[FlagRow]:
    """Read ``prompts`` and flag them as the product would; prompts whose word the catalog does not know are left out.

    Raises:
        SensecheckError: a prompt cannot be read.
    """
    rows = []
    for prompt, reading, mention in read_planted(inspector, prompts, "reading"):
        known = inspector.detector_for(prompt.terms).view.concepts
        concept = next((concept for concept in known if concept.slug == prompt.slug), None)
        if concept is None:
            continue
        own = [flag for flag in reading.misreads if mention and flag.start == mention.start]
        rows.append(
            FlagRow(
                prompt=prompt,
                reading=mention.reading if mention else None,
                early=(mention.early or None) if mention else None,
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
        "intended": [row.meaning.right for row in rows],
        "reading": [row.reading and list(row.reading.values()) for row in rows],
        "early": [row.early and list(row.early.values()) for row in rows],
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
        "random-sense": [row.notes[random_sense(row.prompt.id, list(row.notes))] if row.flag else "" for row in rows],
        "always": [row.notes[likeliest(row.intended)] if row.intended else "" for row in rows],
        "oracle": [row.notes[row.prompt.intended] if row.prompt.kind != "plain" else "" for row in rows],
    }
    meanings = [row.meaning for row in rows]
    blanks = answers.ask([meaning.blank for meaning in meanings], "calibration")
    arms = {}
    for arm in ARMS:
        asked = [m.question(row.prompt.prompt, note) for m, row, note in zip(meanings, rows, notes[arm], strict=True)]
        given = zip(meanings, answers.ask(asked, arm), blanks, strict=True)
        scored = [meaning.score(answer, blank) for meaning, answer, blank in given]
        arms[arm] = {"right": [int(s.right) for s in scored], "loglik": [s.loglik for s in scored]}
    return arms
