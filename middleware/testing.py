"""For your own tests: readings without a model. Nothing in Sensecheck itself uses it outside tests.

::

    from middleware import SAEAnnotator
    from middleware.testing import FakeInspector

    fake = FakeInspector({"bank": '"bank" is the edge of a river here.'})
    chain = prompt | SAEAnnotator(source=fake) | model
    ...
    assert fake.requests[0].domain == "rivers"
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence

from middleware.sources import InspectionRequest, Outcome
from sae_runtime.detector.mentions import fold
from sae_runtime.detector.results import MentionReading, Misread, Reading


class FakeInspector:
    """A source of readings to which some words are always misread, and which fails when it is told to.

    Args:
        notes: note by word or phrase. They are found as whole words, in any case, in the messages that are to be read.
        outcomes: what the first readings do, one each: an exception is raised, None means success.
        then: raised by every reading after those; None means success.

    Attributes:
        requests: what was asked, failed readings included.
        deadlines: with which deadlines, in seconds.
        batches: size and limit of each batch.
        then: may be changed at any time, to break or to heal the source.
    """

    def __init__(
        self,
        notes: Mapping[str, str] | None = None,
        *,
        outcomes: Iterable[BaseException | None] = (),
        then: BaseException | None = None,
    ) -> None:
        self.notes = {fold(word): note for word, note in (notes or {}).items()}
        self.outcomes = list(outcomes)
        self.then = then
        self.requests: list[InspectionRequest] = []
        self.deadlines: list[float] = []
        self.batches: list[tuple[int, int | None]] = []

    def inspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """See :class:`~middleware.InspectionSource`."""
        self.requests.append(request)
        self.deadlines.append(deadline)
        error = self.outcomes.pop(0) if self.outcomes else self.then
        if error is not None:
            raise error
        return self._reading(request)

    async def ainspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """See :class:`~middleware.InspectionSource`; gives way to the event loop once."""
        await asyncio.sleep(0)
        return self.inspect(request, deadline=deadline)

    def inspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """See :class:`~middleware.InspectionSource`."""
        self.batches.append((len(requests), limit))
        results: list[Outcome] = []
        for request in requests:
            try:
                results.append(self.inspect(request, deadline=deadline))
            except Exception as error:
                results.append(error)
        return results

    async def ainspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """See :class:`~middleware.InspectionSource`; gives way to the event loop once."""
        await asyncio.sleep(0)
        return self.inspect_batch(requests, deadline=deadline, limit=limit)

    def _reading(self, request: InspectionRequest) -> Reading:
        misreads = [
            misread
            for message in request.read
            for misread in self._misreads(request.messages[message]["content"], message)
            if (request.only is None or misread.concept in request.only) and misread.concept not in request.without
        ]
        mentions = [
            MentionReading(
                **misread.model_dump(include={"concept", "text", "message", "start", "end"}),
                reading={misread.read_as: misread.p_read_as},
                intended={misread.intended: misread.p_intended},
            )
            for misread in misreads
        ]
        return Reading(
            model="fake", mentions=mentions, misreads=misreads, tokens=[], truncated=False, timings_ms={"total": 1.0}
        )

    def _misreads(self, text: str, message: int) -> list[Misread]:
        if not self.notes:
            return []
        words = "|".join(re.escape(word) for word in sorted(self.notes, key=len, reverse=True))
        return [
            Misread(
                concept=found[0], text=text[found.start() : found.end()], message=message,
                start=found.start(), end=found.end(), read_as="usual", intended="other",
                p_read_as=0.9, p_intended=0.95, evidence=["fake"], note=self.notes[found[0]], features=[],
            )
            for found in re.finditer(rf"(?<!\w)(?:{words})(?!\w)", fold(text))
        ]  # fmt: skip
