"""What a source of readings is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from sae_runtime.detector import Reading
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.glossary import Glossary


@dataclass(frozen=True)
class InspectionRequest:
    """One conversation to read.

    Attributes:
        messages: role and text, as the model will see them.
        read: numbers of the messages in which mentions are looked for.
        domain: the deployer's declared domain.
        only: slugs of the concepts that may be flagged; None: all.
        without: slugs of concepts that are left out.
        picks: senses that the user chose, by concept; always noted.
        glossary: the deployer's own terms, read beside the catalog's concepts.
    """

    messages: list[ChatMessage]
    read: list[int]
    domain: str | None = None
    only: frozenset[str] | None = None
    without: frozenset[str] = field(default=frozenset())
    picks: Mapping[str, str] = field(default_factory=dict)
    glossary: Glossary | None = None

    def options(self) -> dict[str, Any]:
        """Everything but the messages, by name."""
        return {
            "domain": self.domain,
            "read": self.read,
            "only": self.only,
            "without": self.without,
            "picks": self.picks,
            "glossary": self.glossary,
        }

    @property
    def characters(self) -> int:
        """Length of the conversation's text."""
        return sum(len(message["content"]) for message in self.messages)


Outcome = Reading | Exception
"""What became of one request of a batch: its reading, or why there is none."""


@runtime_checkable
class InspectionSource(Protocol):
    """Reads conversations within a deadline (seconds).

    The four methods differ only in how they are called. Those for one request raise
    :class:`~sae_runtime.errors.InspectionTimeout` when the deadline is missed, and other
    :class:`~sae_runtime.errors.SensecheckError` when the reading fails. Those for a batch return the exceptions
    in their places, so that one bad prompt does not cost the others their reading; at most ``limit`` conversations
    are read at once (None: as many as suits the source).
    """

    def inspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """Read one conversation."""

    async def ainspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """Like :meth:`inspect`, without blocking the event loop."""

    def inspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """Read several conversations; results in the order of ``requests``."""

    async def ainspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """Like :meth:`inspect_batch`, without blocking the event loop."""
