"""The OpenTelemetry span ``sensecheck.annotate``: one for the prompts that a source reads together.

Against a server its context goes along in the ``traceparent`` header, so that the server's span becomes its child.
Attributes: ``sensecheck.prompts``, ``sensecheck.unread``, ``sensecheck.mentions`` and ``sensecheck.flags``, all of them numbers,
and ``error.type``, a class. No attribute holds text of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from middleware.jobs import Job
from sae_runtime.detector import Reading
from sae_runtime.tracing import Span, span


@contextmanager
def annotation_span(jobs: Sequence[Job]) -> Iterator[None]:
    """Run the block, which gives ``jobs`` their outcomes, inside a span. Errors pass."""
    with span("sensecheck.annotate") as opened:
        try:
            yield
        except BaseException as error:
            opened.set(prompts=len(jobs), unread=len(jobs))
            opened.fail(type(error).__name__)
            raise
        _describe(opened, jobs)


def _describe(opened: Span, jobs: Sequence[Job]) -> None:
    readings = [job.outcome for job in jobs if isinstance(job.outcome, Reading)]
    opened.set(
        prompts=len(jobs),
        unread=len(jobs) - len(readings),
        mentions=sum(len(reading.mentions) for reading in readings),
        flags=sum(len(reading.misreads) for reading in readings),
    )
