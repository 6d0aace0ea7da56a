"""One turn of the chat, free of any toolkit: read the prompt, then stream the answers with and without notes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_openai import ChatOpenAI

from middleware import Annotated, SAEAnnotator


@dataclass(frozen=True)
class Exchange:
    """A finished or running turn.

    ``noted`` is the answer to the annotated prompt; ``plain`` the one to the untouched prompt, None when the same.
    """

    prompt: str
    noted: str = ""
    plain: str | None = None


@dataclass(frozen=True)
class Turn:
    """A snapshot of the running turn: what was read (None while reading) and the answers so far."""

    exchange: Exchange
    annotated: Annotated | None
    done: bool = False


def history_messages(exchanges: list[Exchange]) -> list[BaseMessage]:
    """Earlier turns as messages. Notes are not among them: they belong to the turn that they were made for."""
    messages: list[BaseMessage] = []
    for exchange in exchanges:
        messages += [HumanMessage(exchange.prompt), AIMessage(exchange.noted)]
    return messages


async def run_turn(
    annotator: SAEAnnotator, model: ChatOpenAI, history: list[Exchange], prompt: str, *, compare: bool
) -> AsyncIterator[Turn]:
    """Yield snapshots while the prompt is read and answered; both answers are generated at once.

    Args:
        annotator: reads the prompt; bypasses are shown, never raised.
        model: answers.
        history: earlier turns.
        prompt: the new user text.
        compare: also answer the untouched prompt when notes were added.
    """
    turn = Turn(Exchange(prompt), None)
    yield turn
    untouched = [*history_messages(history), HumanMessage(prompt)]
    annotated = await annotator.aannotate(untouched)
    twin = compare and bool(annotated.notes)
    turn = Turn(Exchange(prompt, plain="" if twin else None), annotated)
    yield turn
    streams = {"noted": annotated.messages} | ({"plain": untouched} if twin else {})
    queue: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(model, messages, name, queue)) for name, messages in streams.items()]
    try:
        running = len(tasks)
        while running:
            name, piece = await queue.get()
            if piece is None:
                running -= 1
                continue
            text = (getattr(turn.exchange, name) or "") + piece
            turn = replace(turn, exchange=replace(turn.exchange, **{name: text}))
            yield turn
        await asyncio.gather(*tasks)  # an error of the model reaches the caller
    finally:
        for task in tasks:
            task.cancel()
    yield replace(turn, done=True)


async def _pump(
    model: ChatOpenAI, messages: list[BaseMessage], name: str, queue: asyncio.Queue[tuple[str, str | None]]
) -> None:
    try:
        async for chunk in model.astream(messages):
            if chunk.text:
                await queue.put((name, chunk.text))
    finally:
        await queue.put((name, None))
