"""A table of one's own: choice questions in a CSV file, evaluated like the built-in tasks.

Columns: ``split`` (fit, dev or test), ``prompt`` (without the options), ``mention`` (words of the prompt that are read),
``labels`` (the options, separated by ``;``), ``label`` (the right one); optional ``group``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from sae_runtime.errors import InputError
from sae_runtime.evaluation.items import SENSE_WORDINGS, Item, Task, drawn, letter, options, required

_COLUMNS = {"split", "prompt", "mention", "labels", "label"}


@dataclass(frozen=True)
class Table(Task):
    """The task behind ``sensecheck eval run questions.csv``; its data is that file."""

    name = "table"
    kind = "choice"
    licence = "the user's own data"
    wordings = SENSE_WORDINGS

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`.

        Raises:
            InputError: a column is missing, or a row is wrong; the message gives its number.
        """
        with required(data).open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines)
            if missing := _COLUMNS - set(rows.fieldnames or ()):
                raise InputError(f"{data} has no column {', '.join(sorted(missing))}.", "See docs/evaluation.md.")
            items = [self._item(number, row, data) for number, row in enumerate(rows, start=1)]
        return drawn(items, self.limits)

    def blank(self, item: Item) -> str:
        """See :class:`Task`."""
        return "N/A" + options(item.labels)

    @staticmethod
    def _item(number: int, row: dict[str, str], data: Path) -> Item:
        labels = tuple(label.strip() for label in row["labels"].split(";"))
        start = row["prompt"].find(row["mention"])
        split = row["split"].strip()
        for wrong, what in (
            (split not in ("fit", "dev", "test"), f"the split '{split}'"),
            (row["label"] not in labels or len(labels) < 2, f"the label '{row['label']}'"),
            (start < 0 or not row["mention"], f"the mention '{row['mention']}'"),
        ):
            if wrong:
                raise InputError(f"{data}, row {number}: {what} does not fit.", "See docs/evaluation.md.")
        return Item(
            id=f"row-{number}",
            split=split,  # type: ignore[arg-type]
            group=row.get("group") or f"row-{number}",
            prompt=row["prompt"] + options(labels),
            spots={
                "mention": (start, start + len(row["mention"])),
                "after": (start, len(row["prompt"])),
            },
            label=row["label"],
            labels=labels,
            gold=letter(labels, row["label"]),
            mention=row["mention"],
            asked=split != "fit",
        )
