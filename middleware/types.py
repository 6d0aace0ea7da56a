"""Types shared by the middleware's modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from langchain_core.messages import BaseMessage

from sae_runtime.detector.results import PlacedNote, Reading

Placement = Literal["after", "inline", "system"]
"""Where notes go: behind the last user text, behind each misread mention, or in the system message."""

Scope = Literal["last", "all"] | Callable[[BaseMessage], bool]
"""Which messages are read: the last user message, all user messages, or those that a predicate chooses."""


@dataclass(frozen=True)
class Annotated:
    """What an annotation did.

    Attributes:
        messages: the messages to send to the model.
        notes: the notes of the misreads, in order of their mentions; added unless the annotator only observes.
        reading: what was read; None when the inspection was bypassed.
        bypass: why the inspection was bypassed (``"timeout"``, ``"circuit open"``, an error's class name), else None.
        places: where each different note stands in the text of ``messages``; empty when nothing was added. What looks
            like a note elsewhere is the prompt's own; ``reading.imitations`` lists it.
        notes_left_out: how many notes were not given, because there were too many.
    """

    messages: list[BaseMessage]
    notes: list[str]
    reading: Reading | None
    bypass: str | None
    places: list[PlacedNote] = field(default_factory=list)
    notes_left_out: int = 0
