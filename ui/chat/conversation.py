"""The conversation and its turns, free of any toolkit: read the prompt, then stream the answers with and without notes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_openai import ChatOpenAI
from openai import AuthenticationError, BadRequestError, OpenAIError

from middleware import Annotated, SAEAnnotator

STOPPED = "Stopped."
TOO_LONG = "The conversation no longer fits the model. Start a new one, or edit an earlier message."
REFUSED = "The model server refuses the key that it was given (VLLM_API_KEY)."
NO_ANSWER = (
    "The model server does not answer. Your message is kept: try again with the retry button when the server is back."
)


@dataclass(frozen=True)
class Choices:
    """What the user decided about readings: senses by concept that are always noted, and concepts that are left alone."""

    picks: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    def pick(self, concept: str, sense: str) -> Choices:
        """Note ``sense`` wherever ``concept`` is mentioned."""
        return Choices({**self.picks, concept: sense}, self.dropped - {concept})

    def drop(self, concept: str) -> Choices:
        """Never note ``concept``."""
        return Choices(_without(self.picks, concept), self.dropped | {concept})

    def forget(self, concept: str) -> Choices:
        """Leave ``concept`` to the reading again."""
        return Choices(_without(self.picks, concept), self.dropped - {concept})

    def over(self, general: Choices) -> Choices:
        """These choices, and the ``general`` ones about other concepts."""
        own = {*self.picks, *self.dropped}
        picks = {concept: sense for concept, sense in general.picks.items() if concept not in own}
        return Choices({**picks, **self.picks}, (general.dropped - own) | self.dropped)

    def of(self, concept: str) -> str | None:
        """The sense picked for ``concept``, "" when it is left alone, None when nothing was decided."""
        return "" if concept in self.dropped else self.picks.get(concept)


@dataclass(frozen=True)
class Exchange:
    """A finished or running turn.

    Attributes:
        prompt, domain: what the user said, and the domain declared then ("" for none).
        choices: what the user decided about this very message.
        annotated: what was read; None while reading.
        noted: the answer to the annotated prompt.
        plain: the answer to the untouched prompt; None when it is the same or was not asked for.
        prompt_tokens: tokens of the annotated prompt, as the server counts them; None before the end.
        failed: why there is no answer, in words for people; "" when there is one.
    """

    prompt: str
    domain: str = ""
    choices: Choices = Choices()
    annotated: Annotated | None = None
    noted: str = ""
    plain: str | None = None
    prompt_tokens: int | None = None
    failed: str = ""

    @property
    def tokens_added(self) -> int | None:
        """By how many tokens the notes made the prompt longer; None when that is not known."""
        if self.annotated is None or self.prompt_tokens is None or self.annotated.reading is None:
            return None
        if self.annotated.reading.truncated:
            return None
        read = len(self.annotated.reading.tokens)
        return max(0, self.prompt_tokens - read) if self.annotated.notes and read else 0


@dataclass(frozen=True)
class Conversation:
    """All turns of one user; immutable, so that a stopped turn leaves a whole state behind.

    ``always``: choices that hold for the whole conversation.
    """

    exchanges: tuple[Exchange, ...] = ()
    always: Choices = Choices()

    def messages(self, *, notes: bool) -> list[BaseMessage]:
        """Earlier turns as the model with or without ``notes`` has seen them.

        Notes themselves are not among them: they belong to the turn that they were made for.
        """
        found: list[BaseMessage] = []
        for exchange in self.exchanges:
            answer = exchange.noted if notes or exchange.plain is None else exchange.plain
            if answer:
                found += [HumanMessage(exchange.prompt), AIMessage(answer)]
        return found

    @property
    def parted(self) -> bool:
        """Whether the two columns hold different answers by now."""
        return any(exchange.plain is not None for exchange in self.exchanges)

    def before(self, index: int) -> Conversation:
        """The conversation up to turn ``index``, which is left out."""
        return replace(self, exchanges=self.exchanges[:index])

    def with_turn(self, exchange: Exchange) -> Conversation:
        """The conversation with one more turn."""
        return replace(self, exchanges=(*self.exchanges, exchange))


async def run_turn(
    annotator: SAEAnnotator, model: ChatOpenAI, history: Conversation, asked: Exchange, *, compare: bool
) -> AsyncGenerator[Exchange]:
    """Yield snapshots of the turn while its prompt is read and answered; both answers are generated at once.

    Args:
        annotator: reads the prompt; bypasses are shown, never raised.
        model: answers; when it cannot, the exchange says so and nothing is raised.
        history: earlier turns.
        asked: the new turn: prompt, domain, choices.
        compare: also answer the untouched prompt where that could make a difference.
    """
    yield asked
    choices = asked.choices.over(history.always)
    reader = annotator.model_copy(
        update={"domain": asked.domain or None, "picks": choices.picks, "without": annotator.without | choices.dropped}
    )
    prompt = [*history.messages(notes=True), HumanMessage(asked.prompt)]
    annotated = await reader.aannotate(prompt)
    if annotated.bypass == "InputError" and choices.picks:  # a sense that was picked is gone, with the word that had it
        annotated = await reader.model_copy(update={"picks": {}}).aannotate(prompt)
    twin = compare and (bool(annotated.notes) or history.parted)
    exchange = replace(asked, annotated=annotated, plain="" if twin else None)
    yield exchange
    streams: dict[str, Sequence[BaseMessage]] = {"noted": annotated.messages}
    if twin:
        streams["plain"] = [*history.messages(notes=False), HumanMessage(asked.prompt)]
    try:
        async for name, change in _together(model, streams):
            if name == "plain":
                exchange = replace(exchange, plain=(exchange.plain or "") + change.text)
            else:
                counted = exchange.prompt_tokens if change.tokens is None else change.tokens
                exchange = replace(exchange, noted=exchange.noted + change.text, prompt_tokens=counted)
            yield exchange
    except BadRequestError:
        yield replace(exchange, failed=TOO_LONG)
    except AuthenticationError:
        yield replace(exchange, failed=REFUSED)
    except (OpenAIError, TimeoutError, ValueError):  # LangChain raises the last for a stream that ends without a word
        yield replace(exchange, failed=NO_ANSWER)


@dataclass(frozen=True)
class _Change:
    text: str
    tokens: int | None


async def _together(
    model: ChatOpenAI, streams: Mapping[str, Sequence[BaseMessage]]
) -> AsyncIterator[tuple[str, _Change]]:
    """Pieces of all answers as they come, each with the name of its stream.

    Raises:
        OpenAIError: the model cannot answer one of them.
    """
    queue: asyncio.Queue[tuple[str, _Change | None]] = asyncio.Queue()

    async def pump(name: str, messages: Sequence[BaseMessage]) -> None:
        try:
            async for chunk in model.astream(list(messages)):
                usage = chunk.usage_metadata
                if chunk.text or usage:
                    await queue.put((name, _Change(chunk.text, usage["input_tokens"] if usage else None)))
        finally:
            await queue.put((name, None))

    tasks = [asyncio.create_task(pump(name, messages)) for name, messages in streams.items()]
    try:
        running = len(tasks)
        while running:
            name, change = await queue.get()
            if change is None:
                running -= 1
            else:
                yield name, change
        await asyncio.gather(*tasks)  # an error of the model reaches the caller
    finally:
        for task in tasks:
            task.cancel()


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
