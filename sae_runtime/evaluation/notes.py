"""Notes earn their place: every note of a catalog is tried on sentences of its sense, and only those that help are given.

Per sense: sentences from its pack, where the meaning is known. The served model is asked what the word means there, without
a note and with each wording. On the fit sentences the wordings compete by the mean log-likelihood of the right meaning;
on the held-out ones, which chose nothing, the winner's effect is measured. A note is enabled when that is positive.

The sentences are such as a note would rarely be needed for: the trial shows that a note moves the model towards what it
says, and does not confuse it. What notes do where prompts are flagged is measured by ``sensecheck eval planted``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from sae_runtime.catalog.packs import PLACEHOLDER, ConceptPack, LabelledContext, Packs, concepts_of
from sae_runtime.catalog.store import catalog_engine, seal_catalog
from sae_runtime.catalog.tables import ConceptRow, NoteRow, SenseRow
from sae_runtime.detector.notes import MAX_NOTE, render_note
from sae_runtime.evaluation.answers import Answers
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


def try_notes(packs: Packs, answers: Answers) -> list[NoteTrial]:
    """Try the notes of all senses.

    Raises:
        ServerError: the model cannot be asked.
    """
    senses = [(pack, name) for pack in concepts_of(packs) for name in pack.senses]
    chosen = [pack.senses[name].labelled(held_out=False)[:CHOOSING] for pack, name in senses]
    unseen = [pack.senses[name].labelled(held_out=True) for pack, name in senses]
    trial = _Trial(answers, senses, [*chosen, *unseen])
    names = [list(wordings(pack, name)) for pack, name in senses]
    competing = trial.scored(chosen, names, "notes: wordings")
    orders = [_order(table) for table in competing]
    winners = [[own[order[0]]] for own, order in zip(names, orders, strict=True)]
    judged = trial.scored(unseen, winners, "notes: effects")
    return [
        _judged(pack, name, winner[0], _margin(table, order), effect)
        for (pack, name), winner, table, order, effect in zip(senses, winners, competing, orders, judged, strict=True)
    ]


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


class _Trial:
    """Asks what words mean, with notes and without.

    Args:
        answers: the served model.
        senses: packs with the names of their senses.
        sentences: all that will be asked about.
    """

    def __init__(
        self, answers: Answers, senses: list[tuple[ConceptPack, str]], sentences: list[list[LabelledContext]]
    ) -> None:
        self._answers = answers
        self._senses = senses
        places = zip([*senses, *senses], sentences, strict=True)
        blanks = {_meaning(pack, name, c.mention).blank: None for (pack, name), own in places for c in own}
        self._calibration = dict(zip(blanks, answers.ask(list(blanks), "calibration"), strict=True))

    def scored(
        self, sentences: list[list[LabelledContext]], names: list[list[str]], title: str
    ) -> list[list[list[Scored]]]:
        """Per sense and sentence: the answer without a note, then with the wording of each of the sense's ``names``."""
        asked = [
            meaning.question(context.text, note)
            for (pack, sense), own, some in zip(self._senses, sentences, names, strict=True)
            for context in own
            for meaning in [_meaning(pack, sense, context.mention)]
            for note in ["", *(render_note(wordings(pack, sense)[name], context.mention) for name in some)]
        ]
        replies = iter(self._answers.ask(asked, title))
        return [
            [
                [meaning.score(next(replies), self._calibration[meaning.blank]) for _ in ["", *some]]
                for context in own
                for meaning in [_meaning(pack, sense, context.mention)]
            ]
            for (pack, sense), own, some in zip(self._senses, sentences, names, strict=True)
        ]


def _likelihoods(table: list[list[Scored]]) -> NDArray[np.float64]:
    return np.array([[answer.loglik or 0.0 for answer in row] for row in table])


def _order(table: list[list[Scored]]) -> list[int]:
    """Numbers of the wordings, the one with the largest mean gain in likelihood first."""
    return [int(i) for i in np.argsort(-_likelihoods(table)[:, 1:].mean(0), kind="stable")]


def _margin(table: list[list[Scored]], order: list[int]) -> float:
    """Lead of the best wording over the next one, nats."""
    means = _likelihoods(table)[:, 1:].mean(0)
    return float(means[order[0]] - means[order[1]]) if len(order) > 1 else 0.0


def _judged(pack: ConceptPack, name: str, wording: str, margin: float, table: list[list[Scored]]) -> NoteTrial:
    """``table``: per unseen sentence the answer without a note and with the winning wording."""
    likelihood = _likelihoods(table)
    right = np.array([[float(answer.right) for answer in row] for row in table])
    gains = likelihood[:, 1] - likelihood[:, 0]
    better = right[:, 1] - right[:, 0]
    low, high = interval(gains, np.arange(len(gains)))
    return NoteTrial(
        concept=pack.concept,
        sense=name,
        wording=wording,
        text=wordings(pack, name)[wording],
        trials=len(gains),
        lift=round(float(gains.mean()), 4),
        lift_low=low,
        lift_high=high,
        accuracy_lift=round(float(better.mean()), 4),
        harm=round(float((better < 0).mean()), 4),
        margin=round(margin, 4),
    )


def _meaning(pack: ConceptPack, sense: str, mention: str) -> Meaning:
    return Meaning(mention, tuple(own.gloss for own in pack.senses.values()), list(pack.senses).index(sense))
