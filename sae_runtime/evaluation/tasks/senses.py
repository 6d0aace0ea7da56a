"""Which sense has a word? CoarseWSD-20 (Loureiro et al. 2021) and WiC (Pilehvar & Camacho-Collados 2019)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sae_runtime.evaluation.items import SENSE_WORDINGS, Item, Split, Task, drawn, letter, options, parted, required

_FIT_PER_SENSE = 30
_TEST_PER_WORD = 200
SAME = ("the same meaning", "different meanings")


@dataclass(frozen=True)
class CoarseWsd(Task):
    """Ten words of CoarseWSD-20: 30 labelled sentences per sense for the fit, 200 per word to be scored."""

    name = "coarsewsd"
    kind = "choice"
    licence = "text CC BY-SA 3.0 (Wikipedia); labels without a licence: research use"
    wordings = SENSE_WORDINGS

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        folder = required(data / "sense" / "coarsewsd10_nc" / "CoarseWSD-20")
        items: list[Item] = []
        for word in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            senses = json.loads((folder / word / "classes_map.txt").read_text("utf-8"))
            labels = tuple(_pretty(sense) for sense in senses.values())
            fit = list(self._sentences(folder / word, "train", labels, "fit"))
            for label in labels:
                own = [item for item in fit if item.label == label]
                items += random.Random(f"{word} {label}").sample(own, min(_FIT_PER_SENSE, len(own)))
            scored = list(self._sentences(folder / word, "test", labels, "test"))
            items += random.Random(word).sample(scored, min(_TEST_PER_WORD, len(scored)))
        return drawn(items, self.limits)

    def blank(self, item: Item) -> str:
        """See :class:`Task`."""
        return f'Sentence: N/A\nWhat does "{item.reader}" mean in this sentence?{options(item.labels)}'

    @staticmethod
    def _sentences(folder: Path, part: str, labels: tuple[str, ...], split: Split) -> Iterator[Item]:
        lines = required(folder / f"{part}.data.txt").read_text("utf-8").splitlines()
        senses = (folder / f"{part}.gold.txt").read_text("utf-8").split()
        for number, (line, sense) in enumerate(zip(lines, senses, strict=True)):
            index, text = line.split("\t", 1)
            words = text.split(" ")
            start = len("Sentence: ") + len(" ".join(words[: int(index)])) + (int(index) > 0)
            mention, label = words[int(index)], labels[int(sense)]
            before = f'Sentence: {text}\nWhat does "'
            name = f"coarsewsd-{folder.name}-{part}-{number}"
            yield Item(
                id=name,
                split=parted(split, name),
                group=name,
                prompt=f'{before}{mention}" mean in this sentence?{options(labels)}',
                spots={
                    "mention": (start, start + len(mention)),
                    "after": (start, len("Sentence: ") + len(text)),
                    "question": (len(before), len(before) + len(mention)),
                },
                label=label,
                labels=labels,
                gold=letter(labels, label),
                mention=mention,
                reader=folder.name,
                asked=split != "fit",
            )


@dataclass(frozen=True)
class Wic(Task):
    """WiC: has a word the same meaning in two sentences? Scored on its dev part (its test labels are withheld)."""

    name = "wic"
    kind = "choice"
    licence = "CC BY-NC 4.0"
    wordings: ClassVar = {
        "meaning": {
            SAME[0]: 'The word "{mention}" means the same in both sentences.',
            SAME[1]: 'The word "{mention}" means something different in each sentence.',
        }
    }

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        return drawn([*self._pairs(data, "train", "fit"), *self._pairs(data, "dev", "test")], self.limits)

    def blank(self, item: Item) -> str:
        """See :class:`Task`."""
        return f'1. N/A\n2. N/A\nHas the word "N/A" the same meaning in both?{options(SAME)}'

    @staticmethod
    def _pairs(data: Path, part: str, split: Split) -> Iterator[Item]:
        folder = required(data / "sense" / "wic_nc" / part)
        gold = (folder / f"{part}.gold.txt").read_text("utf-8").split()
        lines = (folder / f"{part}.data.txt").read_text("utf-8").splitlines()
        for number, (line, same) in enumerate(zip(lines, gold, strict=True)):
            word, _, places, first, second = line.split("\t")
            one, two = (int(place) for place in places.split("-"))
            (a, b), (c, d) = _characters(first, one), _characters(second, two)
            shift = len(f"1. {first}\n2. ")
            label = SAME[0] if same == "T" else SAME[1]
            yield Item(
                id=f"wic-{part}-{number}",
                split=parted(split, word),
                group=word,
                prompt=f'1. {first}\n2. {second}\nHas the word "{word}" the same meaning in both?{options(SAME)}',
                spots={"first": (3 + a, 3 + b), "second": (shift + c, shift + d)},
                label=label,
                labels=SAME,
                gold=letter(SAME, label),
                mention=word,
                asked=split != "fit",
            )


def _characters(text: str, index: int) -> tuple[int, int]:
    words = text.split(" ")
    start = len(" ".join(words[:index])) + (index > 0)
    return start, start + len(words[index])


def _pretty(sense: str) -> str:
    """``bank_bank_(geography)`` as ``bank (geography)``."""
    return sense.partition("_")[2].replace("_", " ")
