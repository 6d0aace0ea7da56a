"""Made-up users: each holds one conversation after the other and writes down how it was served.

The driver is asyncio and httpx, not locust: see docs/reliability.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, Protocol

import httpx
from langchain_core.messages import convert_to_openai_messages

from benchmarks.traffic.chats import Chat, Turn
from middleware import SAEAnnotator

ArmName = Literal["plain", "two calls", "one call"]
Messages = list[dict[str, str]]
_RAMP = 0.02  # seconds between the first words of two users
_GIVE_UP = 300.0  # seconds without an answer


@dataclass
class Sample:
    """One request, in seconds since it began.

    Attributes:
        at: when it began, since the users came.
        first: to the first token, a reading before it included; None: there was none.
        total: to the end.
        tokens: of output.
        inspection: what the reading before the answer took, where it is a call of its own.
        bypass: why the prompt was answered unread.
        flagged: whether something was misread.
        error: why there is no whole answer.
    """

    at: float = 0.0
    first: float | None = None
    total: float = 0.0
    tokens: int = 0
    inspection: float | None = None
    bypass: str | None = None
    flagged: bool = False
    error: str | None = None


class Arm(Protocol):
    """One way to ask: answers a conversation, fills the sample, returns the answer's text."""

    async def __call__(self, messages: Messages, domain: str | None, sample: Sample) -> str:
        """Ask; raises when there is no whole answer."""


class Refused(Exception):
    """An answer that is none; its text is the kind of error."""


class Line:
    """The way to one server.

    Args:
        url: its root.
        model: name to ask for.
        tokens: of each answer; the model does not end earlier.
        transport: other than the network, for tests.
    """

    def __init__(self, url: str, model: str, tokens: int, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url, self.model, self.tokens = url, model, tokens
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=256, keepalive_expiry=2.0
        )  # vLLM's is 5 s
        self.http = httpx.AsyncClient(base_url=url, timeout=_GIVE_UP, limits=limits, transport=transport)

    async def __aenter__(self) -> Line:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.http.aclose()

    async def plain(self, messages: Messages, domain: str | None, sample: Sample) -> str:
        """Without a reading."""
        return await self._answer(messages, {}, sample)

    async def one_call(self, messages: Messages, domain: str | None, sample: Sample) -> str:
        """The server reads, annotates and answers."""
        return await self._answer(messages, {"sensecheck": {"annotate": True, "domain": domain}}, sample)

    def two_calls(self, annotator: SAEAnnotator) -> Arm:
        """The annotator reads, then the server answers."""

        async def ask(messages: Messages, domain: str | None, sample: Sample) -> str:
            began = perf_counter()
            config: Any = {"configurable": {"sensecheck_domain": domain}}
            annotated = await annotator.aannotate(messages, config)
            sample.inspection = perf_counter() - began
            sample.bypass, sample.flagged = annotated.bypass, bool(annotated.notes)
            return await self._answer(convert_to_openai_messages(annotated.messages), {}, sample)

        return ask

    async def events(self, messages: Messages, extra: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a streamed answer.

        Raises:
            Refused: the server answers with an error, or the stream breaks off.
        """
        body = {"model": self.model, "messages": messages, "stream": True, "temperature": 0, "ignore_eos": True,
                "max_tokens": self.tokens, **extra}  # fmt: skip
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise Refused(f"status {response.status_code}")
            line = ""
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise Refused("error in the stream")
                    yield chunk
                elif line == "data: [DONE]":
                    return
            raise Refused("the stream broke off")

    async def _answer(self, messages: Messages, extra: dict[str, Any], sample: Sample) -> str:
        began, text, report = perf_counter(), [], None
        before = sample.inspection or 0.0
        async for chunk in self.events(messages, extra):
            report = chunk.get("sensecheck", report)
            piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
            if piece:
                text.append(piece)
                if sample.first is None:
                    sample.first = before + perf_counter() - began
        if not text:
            raise Refused("no text")
        if "sensecheck" in extra:
            if report is None:
                raise Refused("no report")
            sample.bypass, sample.flagged = report["bypassed"], report["flagged"]
        sample.tokens = self.tokens  # chunks cannot be counted: half a character is sent with the next
        return "".join(text)


@contextmanager
def bypasses_unlogged() -> Iterator[None]:
    """Keep the annotator from logging each bypass within the block: they are counted."""
    logger = logging.getLogger("sensecheck")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


async def crowd(
    arm: Arm, chats: Iterable[Chat], users: int, *, seconds: float, name: str, advance: Callable[[], None]
) -> tuple[list[Sample], float]:
    """Let ``users`` users at once hold the conversations ``chats``.

    Args:
        arm: how they ask.
        chats: shared out as users become free.
        users: how many at once.
        seconds: after which nobody begins another turn.
        name: of this crowd; it begins each prompt, so that crowds share no cached prefix.
        advance: called after each request.

    Returns:
        the requests in the order of their ends, and the seconds that all took.
    """
    waiting = deque(enumerate(chats))
    began, samples = perf_counter(), list[Sample]()

    async def user(number: int) -> None:
        await asyncio.sleep(number * _RAMP)
        while waiting:
            index, chat = waiting.popleft()
            history: Messages = [{"role": "system", "content": f"Conversation {name}-{index}. You are helpful."}]
            for turn in chat.turns:
                if perf_counter() - began > seconds:
                    return
                samples.append(sample := Sample(at=perf_counter() - began))
                answer = await ask(arm, history, turn, sample)
                advance()
                if answer is None:
                    break  # whoever gets no answer leaves
                history = [*history, _user(turn), {"role": "assistant", "content": answer}]

    await asyncio.gather(*map(user, range(users)))
    return samples, perf_counter() - began


async def ask(arm: Arm, history: Messages, turn: Turn, sample: Sample) -> str | None:
    """The answer to one turn, or None with the reason in the sample."""
    began = perf_counter()
    try:
        async with asyncio.timeout(_GIVE_UP):
            return await arm([*history, _user(turn)], turn.domain, sample)
    except Refused as error:
        sample.error = str(error)
    except (httpx.HTTPError, TimeoutError) as error:
        sample.error = type(error).__name__
    finally:
        sample.total = perf_counter() - began
    return None


def _user(turn: Turn) -> dict[str, str]:
    return {"role": "user", "content": turn.text}
