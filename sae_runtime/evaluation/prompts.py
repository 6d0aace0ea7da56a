"""Prompts written for this project, each with one mention whose intended sense is known."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

_FOLDER = Path(__file__).parent


class PlantedPrompt(BaseModel):
    """A prompt and the sense that is meant.

    ``kind``: in a ``garden-path`` prompt later words overturn the sense that the first ones suggest; in a ``domain``
    prompt the deployer's declared ``domain`` settles what the text leaves open; a ``plain`` one is obvious.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    prompt: str
    kind: Literal["garden-path", "domain", "plain"]
    concept: str
    mention: str
    intended: str
    domain: str | None

    @property
    def start(self) -> int:
        """Where the mention begins."""
        return self.prompt.index(self.mention)


def calibration_prompts() -> list[PlantedPrompt]:
    """The development set, on which thresholds are chosen."""
    return _load("calibration.jsonl")


def example_prompts() -> list[PlantedPrompt]:
    """The fifty test prompts behind the example table; nothing is tuned on them."""
    return _load("prompts.jsonl")


def _load(name: str) -> list[PlantedPrompt]:
    with (_FOLDER / name).open(encoding="utf-8") as lines:
        return [PlantedPrompt.model_validate_json(line) for line in lines]
