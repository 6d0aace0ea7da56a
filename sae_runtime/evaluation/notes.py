"""Notes earn their place: every note of a catalog is tried on sentences of its sense, and only those that help are given.

Per sense: sentences from its pack, where the meaning is known. The served model is asked what the word means there, without
a note and with each wording. On the fit sentences the wordings compete by the mean log-likelihood of the right meaning;
on the held-out ones, which chose nothing, the winner's effect is measured. A note is enabled when that is positive.

The sentences are such as a note would rarely be needed for: the trial shows that a note moves the model towards what it
says, and does not confuse it. What notes do where prompts are flagged is measured by ``sensecheck eval planted``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from sae_runtime.catalog.packs import PLACEHOLDER, ConceptPack, LabelledContext, SensePack
from sae_runtime.catalog.store import catalog_engine, seal_catalog
from sae_runtime.catalog.tables import ConceptRow, NoteRow, SenseRow
from sae_runtime.detector.notes import MAX_NOTE, render_note
from sae_runtime.evaluation.answers import Answers, Question
from sae_runtime.evaluation.meaning import Meaning
from sae_runtime.evaluation.scoring import Scored, interval

CHOOSING = 3  # fit sentences per sense on which wordings compete


@dataclass(frozen=True)
class NoteTrial:
    """What was found of one sense's note; fields as in :class:`~sae_runtime.catalog.tables.NoteRow`."""

    concept: str
    sense: str
    wording: str
    text: str
    trials: int
    lift: float
    lift_low: float
    lift_high: float
    accuracy_lift: float
    harm: float
    margin: float

    @property
    def enabled(self) -> bool:
        """Whether the note helps."""
        return self.lift > 0


def wordings(pack: ConceptPack, sense: str) -> dict[str, str]:
    """Competing notes for ``sense``: the pack's own, and two made from the glosses."""
    own = pack.senses[sense]
    others = " or ".join(other.gloss for name, other in pack.senses.items() if name != sense)
    made = {
        "pack": own.note,
        "gloss": f'Here "{PLACEHOLDER}" means: {own.gloss}.',
        "contrast": f'Here "{PLACEHOLDER}" means {own.gloss}, not {others}.',
    }
    return {name: text for name, text in made.items() if len(text) <= MAX_NOTE}


def try_notes(packs: Mapping[str, Sequence[ConceptPack]], answers: Answers) -> list[NoteTrial]:
    """Try the notes of all senses.

    Raises:
        ServerError: the model cannot be asked.
    """
    senses = [(pack, name, sense) for group in packs.values() for pack in group for name, sense in pack.senses.items()]
    asked: list[Question] = []
    for pack, name, sense in senses:
        for context in _sentences(sense):
            meaning = _meaning(pack, name, context.mention)
            rendered = [render_note(text, context.mention) for text in wordings(pack, name).values()]
            asked += [meaning.question(context.text, note) for note in ["", *rendered]]
    blanks = dict.fromkeys(_meaning(pack, name, c.mention).blank for pack, name, s in senses for c in _sentences(s))
    calibration = dict(zip(blanks, answers.ask(list(blanks), "calibration"), strict=True))
    replies = iter(answers.ask(asked, "notes"))
    trials = []
    for pack, name, sense in senses:
        names = list(wordings(pack, name))
        table: list[list[Scored]] = []
        for context in _sentences(sense):
            meaning = _meaning(pack, name, context.mention)
            table.append([meaning.score(next(replies), calibration[meaning.blank]) for _ in ["", *names]])
        trials.append(_judged(pack, name, names, table))
    return trials


def store(trials: Sequence[NoteTrial], catalog: Path) -> None:
    """Write what was found into ``catalog``, in one transaction; texts become those of the winning wordings.

    Raises:
        CatalogError: the catalog cannot be written.
    """
    engine = catalog_engine(catalog, writable=True)
    fields = (
        "wording",
        "text",
        "trials",
        "lift",
        "lift_low",
        "lift_high",
        "accuracy_lift",
        "harm",
        "margin",
        "enabled",
    )
    with Session(engine) as session, session.begin():
        for trial in trials:
            row = session.scalars(
                select(NoteRow)
                .join(SenseRow, SenseRow.id == NoteRow.sense_id)
                .join(ConceptRow, ConceptRow.id == SenseRow.concept_id)
                .where(ConceptRow.slug == trial.concept, SenseRow.slug == trial.sense)
            ).first()
            if row is not None:
                for field in fields:
                    setattr(row, field, getattr(trial, field))
    engine.dispose()
    seal_catalog(catalog)


def figures(trials: Sequence[NoteTrial]) -> dict[str, Any]:
    """What the card says of all notes together."""
    count = len(trials)
    return {
        "notes": count,
        "enabled": sum(trial.enabled for trial in trials),
        "lift_nats_mean": round(float(np.mean([trial.lift for trial in trials])), 4),
        "lift_interval_above_zero": sum(trial.lift_low > 0 for trial in trials),
        "accuracy_lift_mean": round(float(np.mean([trial.accuracy_lift for trial in trials])), 4),
        "harm_mean": round(float(np.mean([trial.harm for trial in trials])), 4),
        "wordings": {name: sum(trial.wording == name for trial in trials) for name in ("pack", "gloss", "contrast")},
    }


def _judged(pack: ConceptPack, name: str, names: list[str], table: list[list[Scored]]) -> NoteTrial:
    """``table``: per sentence, the fit ones first, the answer without a note and with each wording."""
    likelihood = np.array([[answer.loglik or 0.0 for answer in row] for row in table])
    right = np.array([[float(answer.right) for answer in row] for row in table])
    choosing = likelihood[:CHOOSING, 1:].mean(0) - likelihood[:CHOOSING, 0].mean()
    order = np.argsort(-choosing, kind="stable")
    best = int(order[0])
    gains = likelihood[CHOOSING:, best + 1] - likelihood[CHOOSING:, 0]
    low, high = interval(gains, np.arange(len(gains)))
    better = right[CHOOSING:, best + 1] - right[CHOOSING:, 0]
    return NoteTrial(
        concept=pack.concept,
        sense=name,
        wording=names[best],
        text=wordings(pack, name)[names[best]],
        trials=len(gains),
        lift=round(float(gains.mean()), 4),
        lift_low=low,
        lift_high=high,
        accuracy_lift=round(float(better.mean()), 4),
        harm=round(float((better < 0).mean()), 4),
        margin=round(float(choosing[best] - choosing[order[1]]), 4) if len(names) > 1 else 0.0,
    )


def _sentences(sense: SensePack) -> list[LabelledContext]:
    return [*sense.labelled(held_out=False)[:CHOOSING], *sense.labelled(held_out=True)]


def _meaning(pack: ConceptPack, sense: str, mention: str) -> Meaning:
    return Meaning(mention, tuple(own.gloss for own in pack.senses.values()), list(pack.senses).index(sense))
