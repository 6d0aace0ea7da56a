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
from sae_runtime.evaluation.arms import MAX_HARM, THRESHOLDS, TRIGGERS, Notes, drawn_at_random, noted, placebo, said
from sae_runtime.evaluation.capture import Captured
from sae_runtime.evaluation.items import Item, Task
from sae_runtime.evaluation.readouts import KINDS, Labelled, ReadLabels, read_labels_once
from sae_runtime.evaluation.scoring import Scored, interval, score
from sae_runtime.progress import progress

RESULTS = "results.json"
_REWRITE = (
    "Say the following message again in other, plain words, so that nobody can misunderstand any word of it. "
    "Do not answer it.\n\n"
)


@dataclass(frozen=True)
class _View:
    """Items as one kind of readout sees them: their details as read, and per item the probability that label and details are
    both right."""

    items: list[Item]
    rows: list[NDArray[np.float64]]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """``[items, labels]``, for items that share their labels."""
        return np.stack(self.rows)

    def part(self, at: Sequence[int]) -> _View:
        return _View([self.items[i] for i in at], [self.rows[i] for i in at])

    def notes(self, task: Task, wording: str, threshold: float) -> Notes:
        """Notes where the reading is sure enough."""
        return noted(task, wording, self.items, said(self.items, self.probabilities, threshold))


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
        cache: where readings are kept, so that a run that was stopped goes on.
    """

    task: Task
    items: list[Item]
    read: Captured
    answers: Answers | None
    arms: list[str]
    about: dict[str, Any]
    cache: Path

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
                "part": [bool(item.part_of) for item in scored],
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
        readers = list(dict.fromkeys(item.reader for item in self.items))
        with progress("fitting readouts", len(readers) * len(KINDS)) as advance:
            for reader in readers:
                rows = [i for i, item in enumerate(self.items) if item.reader == reader]
                data, part = _labelled([self.items[i] for i in rows]), self.read.part(rows)
                for kind in KINDS:
                    found[kind][reader] = read_labels_once(
                        kind, part, data, self.cache, cross_fitted=self.task.cross_fitted
                    )
                    advance(1)
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

    def _view(self, readings: dict[str, ReadLabels]) -> _View:
        """All items as a kind of readout sees them."""
        rows = self._rows(readings)
        parts: dict[str, list[int]] = {}
        for i, item in enumerate(self.items):
            if item.part_of:
                parts.setdefault(item.part_of, []).append(i)
        told, sure = [], []
        for item, row in zip(self.items, rows, strict=True):
            own = parts.get(item.id, [])
            told.append(self.task.told(item, [(self.items[i], float(rows[i][0])) for i in own]))
            sure.append(row * np.prod([rows[i].max() for i in own]))
        return _View(told, sure)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _asked(self, readings: dict[str, dict[str, ReadLabels]]) -> dict[str, Any]:
        dev = [i for i, item in enumerate(self.items) if item.asked and item.split == "dev"]
        test = [i for i, item in enumerate(self.items) if item.asked and item.split == "test"]
        tried = [self.items[i] for i in dev]
        plain = self.scored(tried, [""] * len(tried), "dev: plain")
        wording, competition = self._wording(tried, plain)
        views = {kind: self._view(readings[kind]) for kind in KINDS}
        thresholds = {
            arm: self._threshold(wording, views[kind].part(dev), plain, MAX_HARM if arm == "careful" else 1.0)
            for arm, kind in TRIGGERS.items()
            if arm == "flagged" or arm in self.arms
        }
        arms = {}
        for part, rows in (("dev", dev), ("test", test)):
            own = [self.items[i] for i in rows]
            seen = {kind: view.part(rows) for kind, view in views.items()}
            arms[part] = {arm: self._arm(arm, wording, own, seen, thresholds) for arm in self.arms}
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

    def _threshold(self, wording: str, dev: _View, plain: list[Scored], max_harm: float) -> float:
        """The threshold with the most right answers on the dev part, the highest among equals, of those that turn at most
        ``max_harm`` of the items from right to wrong."""
        notes = self.scored(dev.items, dev.notes(self.task, wording, 0.0).texts, "dev: always")
        sure = dev.probabilities.max(1)

        def counted(threshold: float) -> tuple[int, int]:
            pairs = [(a.right, (b if p >= threshold else a).right) for a, b, p in zip(plain, notes, sure, strict=True)]
            return sum(after for _, after in pairs), sum(before and not after for before, after in pairs)

        allowed = [t for t in THRESHOLDS if counted(t)[1] <= max_harm * len(plain)]
        return max(allowed, key=lambda threshold: (counted(threshold)[0], threshold))

    def _arm(
        self, arm: str, wording: str, items: list[Item], seen: dict[str, _View], thresholds: dict[str, float]
    ) -> dict[str, Any]:
        def by(trigger: str) -> Notes:
            return seen[TRIGGERS[trigger]].notes(self.task, wording, thresholds[trigger])

        def at_random() -> Notes:
            told = seen[TRIGGERS["flagged"]].items
            return noted(self.task, wording, told, drawn_at_random(told, by("flagged").labels))

        notes = {
            "plain": lambda: Notes([None] * len(items), [""] * len(items)),
            "always": lambda: seen["sae"].notes(self.task, wording, 0.0),
            "placebo": lambda: placebo(by("flagged")),
            "random-sense": at_random,
            "oracle": lambda: noted(self.task, wording, items, [item.label for item in items]),
            "self-rewrite": lambda: self._rewritten(items),
        }.get(arm, lambda: by(arm))()
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
        return Question.of(text, gold=item.gold, max_tokens=self.task.max_tokens)


def _labelled(items: Sequence[Item]) -> Labelled:
    """What readouts are fitted on and judged by."""
    return Labelled(
        labels=np.array([item.labels.index(item.label) for item in items]),
        fit=np.array([item.split == "fit" for item in items]),
        dev=np.array([item.split == "dev" for item in items]),
        groups=np.array([item.group for item in items]),
        weights=np.array([item.weight for item in items]),
        count=len(items[0].labels),
    )


def save(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, one line per field."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in results.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
