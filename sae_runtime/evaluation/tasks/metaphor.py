"""Is a word meant figuratively? MOH-X (Mohammad et al. 2016), VUA verbs (Steen et al. 2010), LCC (Mohler et al. 2016).

These corpora are for research use: readouts fitted on them serve figures only and are never shipped.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from sae_runtime.detector.context import stem
from sae_runtime.evaluation.items import Item, Split, Task, detokenised, drawn, letter, options, parted, required

_WINDOW = 25  # words on either side of the word in question; VUA's and LCC's sentences may be very long
LABELS = ("figuratively", "literally")


class Metaphor(Task):
    """Labels, options and notes that all metaphor tasks share."""

    kind = "choice"
    wordings: ClassVar = {
        "used": {
            "figuratively": 'Here "{mention}" is used figuratively, as a metaphor.',
            "literally": 'Here "{mention}" is used literally, in its basic physical sense.',
        },
        "meant": {
            "figuratively": '"{mention}" is not meant in its basic physical sense here, but as a metaphor.',
            "literally": '"{mention}" is meant in its basic, physical sense here.',
        },
    }
    licence = "research use"

    def blank(self, item: Item) -> str:
        """See :class:`Task`."""
        return f'Sentence: N/A\nHow is the word "N/A" used in this sentence?{options(LABELS)}'

    def item(self, name: str, split: Split, words: list[str], index: int, figurative: bool, group: str) -> Item:
        """The question about ``words[index]``."""
        low = max(0, index - _WINDOW)
        text, start, end = detokenised(words[low : index + _WINDOW], index - low)
        opening, word = "Sentence: ", text[start:end]
        before = f'{opening}{text}\nHow is the word "'
        label = LABELS[0] if figurative else LABELS[1]
        shift = len(opening)
        return Item(
            id=name,
            split=split,
            group=stem(group.lower()),
            prompt=f'{before}{word}" used in this sentence?{options(LABELS)}',
            spots={
                "mention": (start + shift, end + shift),
                "after": (start + shift, len(text) + shift),
                "question": (len(before), len(before) + len(word)),
            },
            label=label,
            labels=LABELS,
            gold=letter(LABELS, label),
            mention=word,
            asked=split != "fit",
        )

    def vua(self, data: Path, part: str, split: Split) -> Iterator[Item]:
        """The labelled verbs of one part (``train`` or ``val``) of VUA."""
        path = required(data / "metaphor" / "vua_verbs_nc" / f"VUA_formatted_{part}.csv")
        for number, row in enumerate(_rows(path)):
            words, index = row["sentence"].split(), int(row["verb_idx"])
            if index < len(words):
                yield self.item(f"vua-{part}-{number}", split, words, index, row["label"] == "1", row["verb"])

    def lcc(self, data: Path, part: str, split: Split) -> Iterator[Item]:
        """The labelled single words of one part (``train_small`` or ``dev``) of LCC."""
        for number, row in enumerate(_rows(required(data / "metaphor" / "lcc_nc" / f"{part}.csv"))):
            words, (first, last) = row["text"].split(), ast.literal_eval(row["span1"])
            if last - first == 1 and first < len(words):
                yield self.item(
                    f"lcc-{part}-{number}", split, words, first, row["label"] == "Metaphor", words[first].lower()
                )

    def mohx(self, data: Path) -> Iterator[Item]:
        """MOH-X: a fifth of its verbs for choices (``dev``), the others to be scored."""
        path = required(data / "metaphor" / "moh_nc" / "MOH-X_formatted_svo_cleaned.csv")
        for number, row in enumerate(_rows(path)):
            verb = row["verb"].strip()
            words = row["sentence"].split()
            yield self.item(
                f"mohx-{number}", parted("test", stem(verb)), words, int(row["verb_idx"]), row["label"] == "1", verb
            )


@dataclass(frozen=True)
class MohX(Metaphor):
    """MOH-X, cross-fitted over verbs as its authors do, with VUA and LCC at a tenth of the weight.

    A verb is always read by a readout that has seen none of its sentences: MOH-X's verbs are left out of the other
    corpora as well, by stem.
    """

    name = "mohx"
    cross_fitted = True

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        own = list(self.mohx(data))
        verbs = {item.group for item in own}
        others = [*self.vua(data, "train", "fit"), *self.lcc(data, "train_small", "fit")]
        fit = [replace(item, weight=0.1) for item in others if item.group not in verbs]
        return drawn([*fit, *own], self.limits)


@dataclass(frozen=True)
class VuaVerbs(Metaphor):
    """VUA verbs: fitted on its train part and LCC, scored on its validation part (its test part is not in the data)."""

    name = "vua"

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`. A fifth of the validation texts' verbs are for choices."""
        scored = [replace(item, split=parted(item.split, item.group)) for item in self.vua(data, "val", "test")]
        fit = [*self.vua(data, "train", "fit"), *self.lcc(data, "train_small", "fit")]
        return drawn([*fit, *scored], self.limits)


@dataclass(frozen=True)
class Lcc(Metaphor):
    """LCC's single words: fitted on its train part, scored on its dev part."""

    name = "lcc"

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        scored = [replace(item, split=parted(item.split, item.group)) for item in self.lcc(data, "dev", "test")]
        return drawn([*self.lcc(data, "train_small", "fit"), *scored], self.limits)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="latin-1", newline="") as lines:
        yield from csv.DictReader(lines)
