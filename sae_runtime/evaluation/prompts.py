"""Prompts written for this project, each with one mention whose intended sense is known (``planted_sets/``).

``dev`` and ``test`` were written by different writers about different concepts (45 each), so neither concepts nor sentence frames are
shared. ``plain``: obvious prompts about the concepts of ``dev``. ``glossary``: four fictitious companies' own terms. ``calibration`` and
``examples``: earlier, smaller sets over all concepts. The build's thresholds are chosen on ``calibration``, ``dev`` and ``plain``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from sae_runtime.errors import InputError
from sae_runtime.glossary.terms import Glossary

_FOLDER = Path(__file__).parent / "planted_sets"
CALIBRATION_SETS = ("calibration", "dev", "plain")
PromptKind = Literal["garden-path", "domain", "glossary", "plain"]


class PlantedPrompt(BaseModel):
    """A prompt and the sense that is meant.

    ``kind``: in a ``garden-path`` prompt later words overturn the sense that the first ones suggest; in a ``domain``
    prompt the deployer's declared ``domain`` settles what the text leaves open, in a ``glossary`` prompt the
    deployer's ``glossary`` does (a company of :func:`glossaries`); a ``plain`` one is obvious.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    prompt: str
    kind: PromptKind
    concept: str
    mention: str
    intended: str
    domain: str | None
    glossary: str | None = None

    @property
    def start(self) -> int:
        """Where the mention begins."""
        return self.prompt.index(self.mention)

    @property
    def slug(self) -> str:
        """The concept as detectors name it."""
        return f"glossary:{self.concept}" if self.glossary else self.concept

    @property
    def terms(self) -> Glossary | None:
        """The glossary in force."""
        return glossaries()[self.glossary] if self.glossary else None


def calibration_prompts() -> list[PlantedPrompt]:
    """The development prompts, on which thresholds are chosen."""
    return [prompt for name in CALIBRATION_SETS for prompt in planted_prompts(name)]


def example_prompts() -> list[PlantedPrompt]:
    """The fifty test prompts behind the example table; nothing is tuned on them."""
    return planted_prompts("examples")


def planted_prompts(name: str) -> list[PlantedPrompt]:
    """One set: ``dev``, ``plain``, ``test``, ``glossary``, ``calibration`` or ``examples``.

    Raises:
        InputError: there is no such set.
    """
    path = _FOLDER / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in _FOLDER.glob("*.jsonl")))
        raise InputError(f"There is no set of prompts '{name}'.", f"Choose one of {known}.")
    with path.open(encoding="utf-8") as lines:
        return [PlantedPrompt.model_validate_json(line) for line in lines]


@cache
def glossaries() -> dict[str, Glossary]:
    """The fictitious companies' glossaries, by company."""
    companies = yaml.safe_load((_FOLDER / "glossary.yaml").read_text("utf-8"))
    return {name: Glossary.from_dict(terms) for name, terms in companies.items()}
