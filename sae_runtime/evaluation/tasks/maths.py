"""Word problems: SVAMP (Patel et al. 2021), MAWPS (Koncel-Kedziorski et al. 2016), ASDiv (Miao et al. 2020), GSM8K (Cobbe et al. 2021).

What is read is the operation that the problem asks for. It follows from the equation where the data give one, else from
the only operation on two of the problem's numbers that gives the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import ClassVar

from sae_runtime.evaluation.items import Item, Split, Task, by_group, drawn, json_lines, parted, required

OPERATIONS = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}
SEVERAL = "several"
LABELS = (*OPERATIONS.values(), SEVERAL)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_SIGNED = re.compile(r"(?<![\d.)])-?" + _NUMBER.pattern)  # "5-3" holds no negative number
_CLOSING = "\nSolve the problem step by step. End with a line that says: The answer is N."


class Maths(Task):
    """Labels, notes and the question that all arithmetic tasks share."""

    kind = "number"
    wordings: ClassVar = {
        "operation": {
            "addition": "This is solved by adding the numbers that the question is about.",
            "subtraction": "This is solved by subtracting the smaller number from the larger one that the question is about.",
            "multiplication": "This is solved by multiplying the two numbers that the question is about.",
            "division": "This is solved by dividing the larger number by the smaller one that the question is about.",
            "several": "This takes more than one operation: do them one after the other, and check what is asked.",
        },
        "named": {
            "addition": "The question asks for an addition (a sum).",
            "subtraction": "The question asks for a subtraction (a difference).",
            "multiplication": "The question asks for a multiplication (a product).",
            "division": "The question asks for a division (a quotient).",
            "several": "The question asks for several steps.",
        },
        "expression": {
            "addition": "This is solved by an addition{expression}.",
            "subtraction": "This is solved by a subtraction{expression}.",
            "multiplication": "This is solved by a multiplication{expression}.",
            "division": "This is solved by a division{expression}.",
            "several": "This takes more than one operation.",
        },
    }

    def note(self, wording: str, label: str, item: Item) -> str:
        """See :class:`Task`; where the problem has just two numbers, ``expression`` writes them out, the larger one first."""
        text = item.prompt[slice(*item.spots["text"])]
        numbers = sorted((found.replace(",", "") for found in _NUMBER.findall(text)), key=float, reverse=True)
        sign = next((mark for mark, name in OPERATIONS.items() if name == label), "")
        expression = f": {numbers[0]} {sign} {numbers[1]}" if len(numbers) == 2 and sign else ""
        return super().note(wording, label, item).replace("{expression}", expression)

    def item(self, name: str, split: Split, problem: str, question: str, label: str, gold: float) -> Item:
        """The problem as a user poses it; ``question`` is the part that asks."""
        text = f"{problem.strip()} {question.strip()}".strip()
        asks = len(text) - len(question.strip())
        return Item(
            id=name,
            split=split,
            group=name,
            prompt=text + _CLOSING,
            spots={"text": (0, len(text)), "asked": (asks, len(text))},
            label=label,
            labels=LABELS,
            gold=f"{gold:g}",
            asked=split != "fit",
        )

    def svamp(self, data: Path) -> Iterator[Item]:
        """SVAMP's first 700 problems: a quarter for the fit, a fifth of the others for choices, the rest to be scored."""
        for row in json.loads(required(data / "math" / "svamp" / "svamp_1_700.json").read_text("utf-8")):
            label = equation_label(row["Equation"])
            name = f"svamp-{row['ID']}"
            body = row["Body"].rstrip(". ") + "."
            if label:
                split: Split = "fit" if by_group(f"fit {name}", dev=0.25) == "dev" else by_group(name, dev=0.2)
                yield self.item(name, split, body, row["Question"], label, row["Answer"])

    def asdiv(self, data: Path) -> Iterator[Item]:
        """ASDiv's problems whose formula is plain arithmetic with a number as its result."""
        for row in json_lines(data / "math" / "asdiv_nc" / "asdiv.jsonl"):
            left, _, right = row["formula"].partition("=")
            label = equation_label(left)
            if label and re.fullmatch(r"[\d.]+", right) and re.fullmatch(r"[\d.+\-*/() ]+", left):
                name = f"asdiv-{row['idx']}"
                yield self.item(name, _third(name), row["body"], row["question"], label, float(right))

    def mawps(self, data: Path, part: str) -> Iterator[Item]:
        """One part of MAWPS; problems whose operation does not follow from their numbers are left out."""
        for number, row in enumerate(json_lines(data / "math" / "mawps" / f"{part}.jsonl")):
            label = SEVERAL if part == "multiarith" else numbers_label(row["input"], float(row["target"]))
            problem, question = _asking(row["input"])
            if label:
                name = f"mawps-{part}-{number}"
                yield self.item(name, _third(name), problem, question, label, float(row["target"]))

    def gsm8k(self, data: Path, part: str, split: Split) -> Iterator[Item]:
        """One part of GSM8K; its problems take several steps."""
        for number, row in enumerate(json_lines(data / "math" / "gsm8k" / f"{part}.jsonl")):
            problem, question = _asking(row["question"])
            gold = float(row["answer"].rpartition("####")[2].replace(",", ""))
            name = f"gsm8k-{part}-{number}"
            yield self.item(name, split, problem, question, SEVERAL, gold)

    def fit_items(self, data: Path) -> list[Item]:
        """What readouts are fitted on: the fit parts of ASDiv and MAWPS, and as many of GSM8K's as of one operation."""
        own = [*self.asdiv(data)]
        for part in ("singleop", "addsub", "singleeq", "multiarith"):
            own += self.mawps(data, part)
        own = [item for item in own if item.split == "fit"]
        return own + drawn(list(self.gsm8k(data, "train", "fit")), {"fit": 300})


@dataclass(frozen=True)
class Svamp(Maths):
    """SVAMP, scored on problems that no readout and no choice has seen."""

    name = "svamp"

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        return drawn([*self.fit_items(data), *self.svamp(data)], self.limits)


@dataclass(frozen=True)
class Asdiv(Maths):
    """ASDiv's arithmetic problems: two thirds for the fit, the last third for choices and scores."""

    name = "asdiv"

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        own = [item for item in self.asdiv(data) if item.split != "fit"]
        return drawn([*self.fit_items(data), *own], self.limits)


@dataclass(frozen=True)
class Mawps(Maths):
    """The four parts of MAWPS: two thirds for the fit, the last third for choices and scores."""

    name = "mawps"

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        own = [i for part in ("singleop", "addsub", "singleeq", "multiarith") for i in self.mawps(data, part)]
        return drawn([*self.fit_items(data), *(item for item in own if item.split != "fit")], self.limits)


@dataclass(frozen=True)
class Gsm8k(Maths):
    """GSM8K's test part, a fifth of it for choices."""

    name = "gsm8k"

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        own = [replace(item, split=parted(item.split, item.id)) for item in self.gsm8k(data, "test", "test")]
        return drawn([*self.fit_items(data), *own], self.limits)


def problem_numbers(problem: str) -> list[float]:
    """The numbers in a problem, in digits, in their order."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(problem)]


def equation_label(equation: str) -> str | None:
    """The operation of ``equation``; ``several`` for different ones, None for none."""
    found = {OPERATIONS[sign] for sign in re.findall(r"[-+*/]", equation)}
    return next(iter(found)) if len(found) == 1 else SEVERAL if found else None


def numbers_label(problem: str, answer: float) -> str | None:
    """The only operation that makes ``answer`` of two of the problem's numbers; None when none or several do."""
    found = set()
    for a, b in permutations(problem_numbers(problem), 2):
        results = {name: result_of(name, a, b) for name in OPERATIONS.values()}
        found |= {name for name, value in results.items() if value is not None and abs(value - answer) < 1e-6}
    return found.pop() if len(found) == 1 else None


def result_of(operation: str, a: float, b: float) -> float | None:
    """What ``operation`` makes of ``a`` and ``b``; None for a division by zero and for ``several``."""
    if operation == "division":
        return a / b if b else None
    return {"addition": a + b, "subtraction": a - b, "multiplication": a * b}.get(operation)


def same_number(found: float, wanted: float) -> bool:
    """Whether an answer counts as ``wanted``: four digits, or four decimals of small numbers."""
    return abs(found - wanted) < 1e-4 * max(1.0, abs(wanted))


def last_number(text: str) -> float | None:
    """The number after the last "answer is", else the last number of ``text``; None when it has none."""
    _, said, after = text.rpartition("nswer is")
    numbers = _SIGNED.findall(after) if said else []
    numbers = numbers[:1] or _SIGNED.findall(text)[-1:]
    return float(numbers[0].replace(",", "")) if numbers else None


def _asking(text: str) -> tuple[str, str]:
    """A problem and its last sentence, which asks."""
    sentences = re.split(r"(?<=[.?!])\s+", text.strip())
    return " ".join(sentences[:-1]), sentences[-1]


def _third(name: str) -> Split:
    """``fit`` for two thirds of the names, else ``dev`` or ``test``."""
    return "fit" if by_group(f"fit {name}", dev=2 / 3) == "dev" else by_group(name, dev=0.3)
