"""Word problems: SVAMP (Patel et al. 2021), MAWPS (Koncel-Kedziorski et al. 2016), ASDiv (Miao et al. 2020), GSM8K (Cobbe et al. 2021).

Two things are read: the operation that the problem asks for, and of each number whether it is needed. The operation follows from
the equation where the data give one, else from the only operation on two of the problem's numbers that gives the answer.
A model that reads from left to right meets a number before the question, so numbers are read in a second copy of the problem.

The answer is asked for at once, in one or two sentences (``svamp``, ``mawps``, ``asdiv``), where a mistaken problem shows, or
step by step (``svamp-steps``, ``gsm8k``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
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
_AT_ONCE = "\nAnswer in one or two short sentences. End with: The answer is N."
_IN_STEPS = "\nSolve the problem step by step. End with a line that says: The answer is N."
_AGAIN = "\n\nAgain: "
_AFTER = 25  # characters after a number in which the model takes in what it counts
NEEDED, UNNEEDED = "needed", "not needed"


class Maths(Task):
    """Labels, notes and the question that all arithmetic tasks share."""

    kind = "number"
    closing: ClassVar[str] = _AT_ONCE
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
        "equation": {
            "addition": "This is solved by {equation}.",
            "subtraction": "This is solved by {equation}.",
            "multiplication": "This is solved by {equation}.",
            "division": "This is solved by {equation}.",
            "several": "This takes more than one operation on {numbers}.",
        },
        "numbers": {"": "Only these numbers are needed: {numbers}."},
    }

    def note(self, wording: str, label: str, item: Item) -> str:
        """See :class:`Task`; ``{equation}`` has the larger numbers first, and becomes ``operation`` without two of them."""
        numbers = sorted(item.details, key=float, reverse=True)
        if len(numbers) < 2 and wording in ("equation", "numbers"):
            wording = "operation"
        sign = next((mark for mark, name in OPERATIONS.items() if name == label), "")
        return (
            super()
            .note(wording, label, item)
            .replace("{equation}", f" {sign} ".join(numbers))
            .replace("{numbers}", " and ".join([", ".join(item.details[:-1]), *item.details[-1:]]))
        )

    def told(self, item: Item, parts: Sequence[tuple[Item, float]]) -> Item:
        """``item`` with the numbers that are read as needed, in their order; at least two where there are two."""
        if not parts:
            return item
        enough = sorted((needed for _, needed in parts), reverse=True)[:2][-1]
        kept = [part.mention for part, needed in parts if needed >= min(0.5, enough)]
        return replace(item, details=tuple(dict.fromkeys(kept)))

    def numbers(self, item: Item) -> Iterator[Item]:
        """One item per number of a problem: is it needed?"""
        text = item.prompt[slice(*item.spots["text"])]
        first = len(text) + len(_AGAIN)
        for found in _NUMBER.finditer(text):
            start, end = first + found.start(), first + found.end()
            number = found.group().replace(",", "")
            yield Item(
                id=f"{item.id}@{found.start()}",
                split=item.split,
                group=item.group,
                prompt=text + _AGAIN + text,
                spots={"number": (start, end), "after": (end, min(end + _AFTER, first + len(text)))},
                label=NEEDED if number in item.details else UNNEEDED,
                labels=(NEEDED, UNNEEDED),
                gold="",
                mention=number,
                reader="number",
                asked=False,
                part_of=item.id,
            )

    def with_numbers(self, items: Sequence[Item]) -> list[Item]:
        """``items``, and the numbers of those that are asked or whose needed numbers are known."""
        return [*items, *(part for item in items if item.asked or item.details for part in self.numbers(item))]

    def item(
        self, name: str, split: Split, problem: str, question: str, label: str, gold: float, equation: str = ""
    ) -> Item:
        """The problem as a user poses it; ``question`` is the part that asks, ``equation`` solves it."""
        text = f"{problem.strip()} {question.strip()}".strip()
        asks = len(text) - len(question.strip())
        return Item(
            id=name,
            split=split,
            group=name,
            prompt=text + self.closing,
            spots={"text": (0, len(text)), "asked": (asks, len(text))},
            label=label,
            labels=LABELS,
            gold=f"{gold:g}",
            asked=split != "fit",
            details=needed_numbers(text, label, gold, equation),
        )

    def svamp(self, data: Path) -> Iterator[Item]:
        """SVAMP's first 700 problems: a quarter for the fit, a fifth of the others for choices, the rest to be scored."""
        for row in json.loads(required(data / "math" / "svamp" / "svamp_1_700.json").read_text("utf-8")):
            label = equation_label(row["Equation"])
            name = f"svamp-{row['ID']}"
            body = row["Body"].rstrip(". ") + "."
            if label:
                split: Split = "fit" if by_group(f"fit {name}", dev=0.25) == "dev" else by_group(name, dev=0.2)
                yield self.item(name, split, body, row["Question"], label, row["Answer"], row["Equation"])

    def asdiv(self, data: Path) -> Iterator[Item]:
        """ASDiv's problems whose formula is plain arithmetic with a number as its result."""
        for row in json_lines(data / "math" / "asdiv_nc" / "asdiv.jsonl"):
            left, _, right = row["formula"].partition("=")
            label = equation_label(left)
            if label and re.fullmatch(r"[\d.]+", right) and re.fullmatch(r"[\d.+\-*/() ]+", left):
                name = f"asdiv-{row['idx']}"
                yield self.item(name, _third(name), row["body"], row["question"], label, float(right), left)

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

    def distracting(self, data: Path) -> list[Item]:
        """The numbers of SVAMP's problems, for the fit of another data set's readout; hardly any other problem has idle ones."""
        return [part for item in self.svamp(data) for part in self.numbers(replace(item, split="fit"))]


@dataclass(frozen=True)
class Svamp(Maths):
    """SVAMP. Its problems differ from others in their idle numbers, so readouts are also fitted on its other problems."""

    name = "svamp"
    cross_fitted = True

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        return self.with_numbers(drawn([*self.fit_items(data), *self.svamp(data)], self.limits))


@dataclass(frozen=True)
class SvampSteps(Svamp):
    """SVAMP, answered step by step."""

    name = "svamp-steps"
    closing = _IN_STEPS
    max_tokens = 400


@dataclass(frozen=True)
class Asdiv(Maths):
    """ASDiv's arithmetic problems: two thirds for the fit, the last third for choices and scores."""

    name = "asdiv"

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        own = [item for item in self.asdiv(data) if item.split != "fit"]
        return [*self.with_numbers(drawn([*self.fit_items(data), *own], self.limits)), *self.distracting(data)]


@dataclass(frozen=True)
class Mawps(Maths):
    """The four parts of MAWPS: two thirds for the fit, the last third for choices and scores."""

    name = "mawps"

    def load(self, data: Path) -> list[Item]:
        """See :class:`Task`."""
        own = [i for part in ("singleop", "addsub", "singleeq", "multiarith") for i in self.mawps(data, part)]
        own = [item for item in own if item.split != "fit"]
        return [*self.with_numbers(drawn([*self.fit_items(data), *own], self.limits)), *self.distracting(data)]


@dataclass(frozen=True)
class Gsm8k(Maths):
    """GSM8K's test part, a fifth of it for choices; answered step by step, its numbers are not read."""

    name = "gsm8k"
    closing = _IN_STEPS
    max_tokens = 400

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


def needed_numbers(problem: str, label: str, gold: float, equation: str = "") -> tuple[str, ...]:
    """The problem's numbers that ``equation`` holds; without one, those that give ``gold`` by the operation ``label``.

    All of them where it takes several operations.
    """
    numbers = [found.replace(",", "") for found in _NUMBER.findall(problem)]
    wanted = set(map(float, numbers))
    if equation:
        wanted = {float(found) for found in re.findall(r"\d+(?:\.\d+)?", equation)}
    elif label != SEVERAL:
        pairs = permutations(map(float, numbers), 2)
        results = ((pair, result_of(label, *pair)) for pair in pairs)
        giving = [pair for pair, value in results if value is not None and same_number(value, gold)]
        wanted = set(giving[0]) if giving else set()
    return tuple(dict.fromkeys(number for number in numbers if float(number) in wanted))


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
