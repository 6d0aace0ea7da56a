"""FLUTE (Chakrabarty et al. 2022): does a figurative sentence entail another one? An answer task; nothing in it is read twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sae_runtime.evaluation.items import Item, Split, Task, drawn, json_lines, letter, options, parted

LABELS = ("the first follows from the second", "the first contradicts the second")


@dataclass(frozen=True)
class Flute(Task):
    """FLUTE's metaphors and idioms: fitted on the train files, scored on the test files."""

    name = "flute"
    kind = "choice"
    licence = "AFL-3.0"
    wordings: ClassVar = {
        "relation": {
            LABELS[0]: "The two sentences agree: what the figurative one means follows from the other.",
            LABELS[1]: "The two sentences disagree: what the figurative one means contradicts the other.",
        }
    }

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        kinds = ("metaphor", "idiom")
        fit = [item for kind in kinds for item in self._pairs(data, f"{kind}_train", "fit")]
        scored = [item for kind in kinds for item in self._pairs(data, f"{kind}_test", "test")]
        return drawn([*fit, *scored], self.limits)

    def blank(self, item: Item) -> str:
        """See :class:`Task`."""
        return f"1. N/A\n2. N/A\nWhat is true of the two sentences?{options(LABELS)}"

    @staticmethod
    def _pairs(data: Path, part: str, split: Split) -> Iterator[Item]:
        for number, row in enumerate(json_lines(data / "metaphor" / "flute" / f"{part}.jsonl")):
            first, second = row["hypothesis"], row["premise"]
            label = LABELS[0] if row["label"] == "Entailment" else LABELS[1]
            shift = len(f"1. {first}\n2. ")
            yield Item(
                id=f"flute-{part}-{number}",
                split=parted(split, row["id"]),
                group=f"flute-{row['id']}",
                prompt=f"1. {first}\n2. {second}\nWhat is true of the two sentences?{options(LABELS)}",
                spots={"first": (3, 3 + len(first)), "second": (shift, shift + len(second))},
                label=label,
                labels=LABELS,
                gold=letter(LABELS, label),
                asked=split != "fit",
            )
