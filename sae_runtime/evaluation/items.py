"""What an evaluation is made of: items with a known label, a right answer, and a note per label."""

from __future__ import annotations

import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from sae_runtime.errors import InputError

Split = Literal["fit", "dev", "test"]
Kind = Literal["choice", "number"]
LETTERS = "ABCDEFGHIJ"
SENSE_WORDINGS = {
    "means": {"": 'Here "{mention}" means: {label}.'},
    "sense": {"": '"{mention}" is meant in the sense of {label} here.'},
}


@dataclass(frozen=True)
class Item:
    """One question to the model.

    Attributes:
        id: stable name, the same in every run; results hold it instead of the text.
        split: readouts are fitted on ``fit``; thresholds and wordings are chosen on ``dev``; ``test`` is only scored.
        group: items of one group (a verb, a word) fall into the same fold and are drawn together by the bootstrap.
        prompt: what the user says.
        spots: characters of the prompt that may be read, by name; the last token of the prompt is always there, too.
        label: what is really meant.
        labels: what a reading of it can say; option A, B, ... of ``choice`` tasks in this order.
        gold: the right answer: a choice's letter, or a number.
        mention: the words that a note is about.
        reader: items that one readout reads; a word with senses of its own has its own.
        asked: whether the model is asked at all; items that only fit readouts are not.
        weight: how much a fit item counts; other corpora than the task's own count less.
        details: what a note can say beside the label, such as the numbers that are needed; the true ones in loaded
            items, those that were read (:meth:`Task.told`) in items that a note is made for.
        part_of: id of the item whose details this one reads; "" for items of their own.
    """

    id: str
    split: Split
    group: str
    prompt: str
    spots: Mapping[str, tuple[int, int]]
    label: str
    labels: tuple[str, ...]
    gold: str
    mention: str = ""
    reader: str = ""
    asked: bool = True
    weight: float = 1.0
    details: tuple[str, ...] = ()
    part_of: str = ""


@dataclass(frozen=True)
class Task(ABC):
    """A kind of question. Sub-classes say where items come from (:meth:`load`).

    Attributes:
        name: as the command line takes it.
        kind: ``choice``: the answer is the letter of an option, scored by first-token log-probabilities; ``number``:
            it is generated and the last number counts.
        wordings: competing sets of notes; each gives a template per label, with ``{mention}``, or one for all of
            them under ``""``, with ``{label}``.
        licence: what the data may be used for.
        cross_fitted: the data have no part of their own to fit readouts on: dev and test items are each read by a
            readout that was fitted on the items of other groups (and on the fit items). Thresholds and wordings are
            still chosen on the dev part alone.
        max_tokens: length limit of generated answers.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    wordings: ClassVar[Mapping[str, Mapping[str, str]]]
    licence: ClassVar[str] = ""
    cross_fitted: ClassVar[bool] = False
    max_tokens: ClassVar[int] = 200
    limits: Mapping[str, int] = field(default_factory=dict)  # items per split; seeded draw

    @abstractmethod
    def load(self, data: Path) -> list[Item]:
        """The items of all splits.

        Raises:
            InputError: a file is absent or malformed.
        """

    def note(self, wording: str, label: str, item: Item) -> str:
        """The note that says ``label`` of ``item``."""
        templates = self.wordings[wording]
        return templates.get(label, templates.get("", "")).replace("{mention}", item.mention).replace("{label}", label)

    def told(self, item: Item, parts: Sequence[tuple[Item, float]]) -> Item:
        """``item`` with the details that a reading of its parts gives.

        Args:
            item: an item.
            parts: the items that are part of it, each with the probability of its first label.
        """
        return item

    def blank(self, item: Item) -> str:
        """The question of ``item`` about nothing, whose scores calibrate the others (Zhao et al. 2021); "" for none."""
        return ""


def letter(labels: Sequence[str], label: str) -> str:
    """The letter of the option that says ``label``."""
    return LETTERS[labels.index(label)]


def options(labels: Sequence[str]) -> str:
    """The options as they stand in a prompt."""
    lines = [f"{mark}. {label}" for mark, label in zip(LETTERS, labels, strict=False)]
    return (
        "\n"
        + "\n".join(lines)
        + f"\nAnswer with {', '.join(LETTERS[: len(labels) - 1])} or {LETTERS[len(labels) - 1]}."
    )


def drawn(items: Sequence[Item], limits: Mapping[str, int], seed: int = 0) -> list[Item]:
    """At most ``limits[split]`` items per split, drawn with a fixed seed; splits without a limit stay whole."""
    kept: list[Item] = []
    for split in ("fit", "dev", "test"):
        own = [item for item in items if item.split == split]
        if split in limits and len(own) > limits[split]:
            own = random.Random(f"{seed} {split}").sample(own, limits[split])
        kept += own
    return kept


def by_group(group: str, *, dev: float) -> Split:
    """``dev`` or ``test`` by a hash of the group, so that every run and machine splits alike."""
    return "dev" if random.Random(f"split {group}").random() < dev else "test"


def parted(split: Split, group: str) -> Split:
    """``split``, but a fifth of the ``test`` groups are for choices (``dev``)."""
    return by_group(group, dev=0.2) if split == "test" else split


def detokenised(words: Sequence[str], index: int) -> tuple[str, int, int]:
    """Running text of tokenised ``words``, and the characters of ``words[index]`` in it."""
    text, start, end = "", 0, 0
    for number, word in enumerate(words):
        glued = not text or text.endswith("(") or re.match(r"[,.;:!?%)]|'|n't$", word)
        text += "" if glued else " "
        if number == index:
            start, end = len(text), len(text) + len(word)
        text += word
    return text, start, end


def required(path: Path) -> Path:
    """``path`` when it is there.

    Raises:
        InputError: it is not.
    """
    if not path.exists():
        raise InputError(f"There is no {path}.", "Point --data to the folder that docs/evidence.md describes.")
    return path


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file.

    Raises:
        InputError: it is not there.
    """
    with required(path).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
