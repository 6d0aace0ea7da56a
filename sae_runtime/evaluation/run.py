"""Running one task with one model: read, fit, choose on the dev part, ask about the test part, keep everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.build.stages import write_text
from sae_runtime.detector.notes import joined_notes
from sae_runtime.evaluation.answers import Answers, Question
from sae_runtime.evaluation.arms import THRESHOLDS, TRIGGERS, Notes, drawn_at_random, noted, placebo, said
from sae_runtime.evaluation.capture import Captured
from sae_runtime.evaluation.items import Item, Task
from sae_runtime.evaluation.readouts import KINDS, Labelled, ReadLabels, read_labels
from sae_runtime.evaluation.scoring import Scored, interval, score

RESULTS = "results.json"
_REWRITE = (
    "Say the following message again in other, plain words, so that nobody can misunderstand any word of it. "
    "Do not answer it.\n\n"
)


@dataclass
class Run:
    """One task, one model.

    Attributes:
        task: what is asked.
        items: all items.
        read: their activations.
        answers: the served model.
        arms: see :mod:`sae_runtime.evaluation.arms`.
        about: what the results say of model, dictionary and data.
    """

    task: Task
    items: list[Item]
    read: Captured
    answers: Answers | None
    arms: list[str]
    about: dict[str, Any]

    def results(self) -> dict[str, Any]:
        """Readings, choices and the answers of all arms, as ``results.json`` holds them; no text of the data in it.

        Raises:
            ServerError: the model cannot be asked.
        """
        readings = self._readings()
        scored = [item for item in self.items if item.split != "fit"]
        out: dict[str, Any] = {
            "task": self.task.name,
            **self.about,
            "items": {
                "id": [item.id for item in scored],
                "split": [item.split for item in scored],
                "group": [item.group for item in scored],
                "label": [item.labels.index(item.label) for item in scored],
                "reader": [item.reader for item in scored],
            },
            "fit_items": len(self.items) - len(scored),
            "readings": {kind: self._reading_rows(reading) for kind, reading in readings.items()},
        }
        if self.answers is not None:
            out |= self._asked(readings)
        return out

    # -- readings ---------------------------------------------------------------------------------------------------

    def _readings(self) -> dict[str, dict[str, ReadLabels]]:
        """By kind of readout and by reader."""
        found: dict[str, dict[str, ReadLabels]] = {kind: {} for kind in KINDS}
        for reader in dict.fromkeys(item.reader for item in self.items):
            rows = [i for i, item in enumerate(self.items) if item.reader == reader]
            own = [self.items[i] for i in rows]
            part = Captured(
                {spot: x[rows] for spot, x in self.read.features.items()},
                {spot: x[rows] for spot, x in self.read.dense.items()},
            )
            data = Labelled(
                labels=np.array([item.labels.index(item.label) for item in own]),
                fit=np.array([item.split == "fit" for item in own]),
                dev=np.array([item.split == "dev" for item in own]),
                groups=np.array([item.group for item in own]),
                weights=np.array([item.weight for item in own]),
                count=len(own[0].labels),
            )
            for kind in KINDS:
                found[kind][reader] = read_labels(kind, part, data, cross_fitted=self.task.cross_fitted)
        return found

    def _reading_rows(self, readings: dict[str, ReadLabels]) -> dict[str, Any]:
        """What was read of dev and test items: the label's number and its probability; what was chosen per reader."""
        label, sure = [], []
        for item, row in zip(self.items, self._rows(readings), strict=True):
            if item.split != "fit":
                label.append(int(row.argmax()))
                sure.append(round(float(row.max()), 4))
        chosen = {
            reader: {"spot": found.spot, "setting": found.setting, "fit_accuracy": round(found.fit_accuracy, 4)}
            for reader, found in readings.items()
        }
        return {"label": label, "probability": sure, "chosen": chosen}

    def _rows(self, readings: dict[str, ReadLabels]) -> list[NDArray[np.float64]]:
        """Per item its probabilities."""
        left = {reader: iter(found.probabilities) for reader, found in readings.items()}
        return [next(left[item.reader]) for item in self.items]

    # -- answers ----------------------------------------------------------------------------------------------------

    def _asked(self, readings: dict[str, dict[str, ReadLabels]]) -> dict[str, Any]:
        dev = [i for i, item in enumerate(self.items) if item.asked and item.split == "dev"]
        test = [i for i, item in enumerate(self.items) if item.asked and item.split == "test"]
        tried = [self.items[i] for i in dev]
        plain = self.scored(tried, [""] * len(tried), "dev: plain")
        wording, competition = self._wording(tried, plain)
        probabilities = {kind: self._rows(readings[kind]) for kind in KINDS}
        thresholds = {
            arm: self._threshold(wording, tried, plain, np.stack([probabilities[kind][i] for i in dev]))
            for arm, kind in TRIGGERS.items()
        }
        arms = {}
        for part, rows in (("dev", dev), ("test", test)):
            own = [self.items[i] for i in rows]
            flags = {
                arm: said(own, np.stack([probabilities[kind][i] for i in rows]), thresholds[arm])
                for arm, kind in TRIGGERS.items()
            }
            sure = said(own, np.stack([probabilities["sae"][i] for i in rows]), 0.0)
            arms[part] = {arm: self._arm(arm, wording, own, flags, sure) for arm in self.arms}
        return {"wording": wording, "wordings": competition, "thresholds": thresholds, "arms": arms}

    def _wording(self, dev: list[Item], plain: list[Scored]) -> tuple[str, dict[str, Any]]:
        """The wording whose right notes raise the gold answer's likelihood most on the dev part; all with intervals."""
        groups = np.array([item.group for item in dev])
        table: dict[str, Any] = {}
        for name in self.task.wordings:
            notes = noted(self.task, name, dev, [item.label for item in dev])
            right = self.scored(dev, notes.texts, f"dev: wording '{name}'")
            accuracy = np.array([float(a.right) - float(b.right) for a, b in zip(right, plain, strict=True)])
            likelihood = np.array([(a.loglik or 0) - (b.loglik or 0) for a, b in zip(right, plain, strict=True)])
            table[name] = {
                "accuracy_lift": round(float(accuracy.mean()), 4),
                "accuracy_interval": interval(accuracy, groups),
                "loglik_lift": round(float(likelihood.mean()), 4),
                "loglik_interval": interval(likelihood, groups),
            }
        best = max(table, key=lambda name: (table[name]["accuracy_lift"], table[name]["loglik_lift"]))
        return best, table

    def _threshold(
        self, wording: str, dev: list[Item], plain: list[Scored], probabilities: NDArray[np.float64]
    ) -> float:
        """The threshold with the most right answers on the dev part; the highest among equals."""
        everywhere = noted(self.task, wording, dev, said(dev, probabilities, 0.0))
        notes = self.scored(dev, everywhere.texts, "dev: always")
        sure = probabilities.max(1)

        def right(threshold: float) -> int:
            return sum((b if p >= threshold else a).right for a, b, p in zip(plain, notes, sure, strict=True))

        return max(THRESHOLDS, key=lambda threshold: (right(threshold), threshold))

    def _arm(
        self, arm: str, wording: str, items: list[Item], flags: dict[str, list[str | None]], sure: list[str | None]
    ) -> dict[str, Any]:
        flagged = noted(self.task, wording, items, flags["flagged"])
        notes = {
            "plain": lambda: Notes([None] * len(items), [""] * len(items)),
            "always": lambda: noted(self.task, wording, items, sure),
            "placebo": lambda: placebo(flagged),
            "random-sense": lambda: noted(self.task, wording, items, drawn_at_random(items, flagged.labels)),
            "oracle": lambda: noted(self.task, wording, items, [item.label for item in items]),
            "self-rewrite": lambda: self._rewritten(items),
        }.get(arm, lambda: noted(self.task, wording, items, flags[arm]))()
        answers = self.scored(items, notes.texts, arm)
        return {
            "note": [
                item.labels.index(label) if label else (-2 if text else -1)
                for item, label, text in zip(items, notes.labels, notes.texts, strict=True)
            ],
            "right": [int(answer.right) for answer in answers],
            "loglik": [answer.loglik for answer in answers],
            "margin": [None if answer.margin is None else round(answer.margin, 4) for answer in answers],
        }

    def _rewritten(self, items: list[Item]) -> Notes:
        assert self.answers is not None  # noqa: S101 (only asked with a server)
        asked = [Question.of(_REWRITE + item.prompt, max_tokens=80) for item in items]
        said_again = self.answers.ask(asked, "self-rewrite: restating")
        return Notes([None] * len(items), [" ".join(answer["text"].split()) for answer in said_again])

    def scored(self, items: Sequence[Item], notes: Sequence[str], title: str) -> list[Scored]:
        """Ask about ``items`` with ``notes`` ("" for none) and judge the answers.

        Raises:
            ServerError: the model cannot be asked.
        """
        assert self.answers is not None  # noqa: S101 (only asked with a server)
        questions = [
            self._question(item, item.prompt + (joined_notes([note]) if note else ""))
            for item, note in zip(items, notes, strict=True)
        ]
        blanks = [self.task.blank(item) for item in items]
        asked = {
            blank: Question.of(blank, options=len(item.labels))
            for item, blank in zip(items, blanks, strict=True)
            if blank
        }
        scores = dict(zip(asked, self.answers.ask(list(asked.values()), f"{title}: calibration"), strict=True))
        return [
            score(item, answer, scores[blank]["scores"] if blank else None)
            for item, answer, blank in zip(items, self.answers.ask(questions, title), blanks, strict=True)
        ]

    def _question(self, item: Item, text: str) -> Question:
        if self.task.kind == "choice":
            return Question.of(text, options=len(item.labels))
        return Question.of(text, gold=item.gold)


def save(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, one line per field."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in results.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
