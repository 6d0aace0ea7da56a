"""The custom event ``sensecheck.reading``: what an annotation did, for user interfaces and logs.

It reaches callbacks (``on_custom_event``) and ``astream_events``. The payload is plain data, see :class:`ReadingEvent`. It
holds the misread words and their notes, and nothing else of the prompt.
"""

from __future__ import annotations

from typing import Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_async_callback_manager_for_config, get_callback_manager_for_config

from middleware.types import Annotated

READING_EVENT = "sensecheck.reading"
_FLAG = {"concept", "text", "message", "start", "end", "read_as", "intended", "p_read_as", "p_intended", "note"}


class ReadingEvent(TypedDict):
    """Payload of :data:`READING_EVENT`.

    Attributes:
        flags: per misread its ``concept``, the words ``text`` at ``start``..``end`` of message number ``message``, the
            senses ``read_as`` and ``intended`` with their probabilities ``p_read_as`` and ``p_intended``, the ``note``.
        mentions: how many mentions were read.
        bypass: why nothing was read, else None.
        annotated: whether notes were added.
        milliseconds: time of the reading where it was made, None when nothing was read.
    """

    flags: list[dict[str, Any]]
    mentions: int
    bypass: str | None
    annotated: bool
    milliseconds: float | None


def payload(result: Annotated, *, annotated: bool) -> ReadingEvent:
    """The event for an annotation's result."""
    reading = result.reading
    return {
        "flags": [misread.model_dump(include=_FLAG) for misread in reading.misreads] if reading else [],
        "mentions": len(reading.mentions) if reading else 0,
        "bypass": result.bypass,
        "annotated": annotated and bool(result.notes),
        "milliseconds": reading.timings_ms.get("total") if reading else None,
    }


def dispatch(event: ReadingEvent, config: RunnableConfig) -> None:
    """Send the event to the callbacks in ``config``, as part of the run that they belong to, if there is one."""
    callbacks = get_callback_manager_for_config(config)
    callbacks.on_custom_event(READING_EVENT, event, run_id=callbacks.parent_run_id)


async def adispatch(event: ReadingEvent, config: RunnableConfig) -> None:
    """Like :func:`dispatch`, without blocking the event loop."""
    callbacks = get_async_callback_manager_for_config(config)
    await callbacks.on_custom_event(READING_EVENT, event, run_id=callbacks.parent_run_id)
