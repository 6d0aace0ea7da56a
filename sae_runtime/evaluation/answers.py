"""Asking the served model, many prompts at a time; every answer is kept on disk, so that a run that was stopped goes on.

Uses the OpenAI-compatible routes of vLLM: log-probabilities of the first token for choices (greedy, top 20), greedy
generation for numbers, ``prompt_logprobs`` for the likelihood of a given answer or ending.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from sae_runtime.engines.chat import ChatMessage
from sae_runtime.errors import ServerError
from sae_runtime.evaluation.items import LETTERS
from sae_runtime.progress import progress
from sae_runtime.serving import bearer

_UNSEEN = 1.0  # nats that a letter outside the top 20 lies below the last of them
_AT_ONCE = 32


@dataclass(frozen=True)
class Question:
    """What the model is asked.

    Attributes:
        messages: the conversation.
        options: number of options whose letters are scored; 0: an answer is generated.
        opening, endings: the answer begins with ``opening``, and the log-likelihood of each of ``endings`` after it is
            scored, whatever the letters; small models know more than they can choose by letter.
        gold: with ``options == 0``: the answer whose log-likelihood is taken after "The answer is"; "" for none.
        max_tokens: length limit of a generated answer.
    """

    messages: tuple[tuple[str, str], ...]
    options: int = 0
    opening: str = ""
    endings: tuple[str, ...] = ()
    gold: str = ""
    max_tokens: int = 200

    @classmethod
    def of(cls, text: str, **settings: Any) -> Question:
        """A question of one user message."""
        return cls((("user", text),), **settings)

    @property
    def chat(self) -> list[ChatMessage]:
        """The messages as the server takes them."""
        return [{"role": role, "content": content} for role, content in self.messages]


class Answers:
    """The model's answers, from the cache ``path`` (JSON lines) or from the server.

    A choice's answer is ``{"scores": [log-probability per letter or ending]}``; a number's ``{"text": str, "loglik": float}``, nats
    of the gold answer given the prompt.

    Args:
        url, model, api_key: the server and the name it serves.
        path: the cache; lines hold a hash of model and question, never the text of the question.
    """

    def __init__(self, url: str, model: str, path: Path, *, api_key: str | None = None) -> None:
        self._model = model
        self._path = path
        self._server: dict[str, Any] = {"base_url": url, "headers": bearer(api_key), "timeout": 600}
        self._kept: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the last line of a run that was killed
                    continue
                self._kept[row["key"]] = row["answer"]

    def ask(self, questions: Sequence[Question], title: str) -> list[dict[str, Any]]:
        """The answers to ``questions``, in their order; new ones are appended to the cache as they come.

        Raises:
            ServerError: the server refuses or cannot be reached after three attempts.
        """
        return asyncio.run(self._ask_all(questions, title))

    async def _ask_all(self, questions: Sequence[Question], title: str) -> list[dict[str, Any]]:
        keys = [self._key(question) for question in questions]
        missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in self._kept}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not missing:
            return [self._kept[key] for key in keys]
        gate = asyncio.Semaphore(_AT_ONCE)
        with progress(title, len(missing)) as advance, self._path.open("a", encoding="utf-8") as lines:
            async with httpx.AsyncClient(**self._server) as client:

                async def one(key: str, question: Question) -> None:
                    async with gate:
                        answer = await self._answer(client, question)
                    self._kept[key] = answer
                    lines.write(json.dumps({"key": key, "answer": answer}) + "\n")
                    lines.flush()
                    advance(1)

                await asyncio.gather(*(one(key, question) for key, question in missing.items()))
        return [self._kept[key] for key in keys]

    def _key(self, question: Question) -> str:
        parts = [self._model, question.messages, question.options, question.gold, question.max_tokens]
        if question.endings:
            parts += [question.opening, question.endings]
        text = json.dumps(parts)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    async def _answer(self, client: httpx.AsyncClient, question: Question) -> dict[str, Any]:
        if question.endings:
            found = [
                await self._likelihood(client, question.chat, question.opening, ending) for ending in question.endings
            ]
            return {"scores": found}
        if question.options:
            return {"scores": await self._scores(client, question)}
        reply = await self._post(client, question.chat, max_tokens=question.max_tokens)
        answer: dict[str, Any] = {"text": reply["choices"][0]["message"]["content"] or ""}
        if question.gold:
            answer["loglik"] = await self._likelihood(client, question.chat, "The answer is", question.gold)
        return answer

    async def _scores(self, client: httpx.AsyncClient, question: Question) -> list[float]:
        """Log-probability of each option's letter as the answer's first token."""
        reply = await self._post(client, question.chat, max_tokens=1, logprobs=True, top_logprobs=20)
        first = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found: dict[str, float] = {}
        for token in first:
            found.setdefault(token["token"].strip(), token["logprob"])
        floor = min(token["logprob"] for token in first) - _UNSEEN
        return [round(found.get(mark, floor), 5) for mark in LETTERS[: question.options]]

    async def _likelihood(
        self, client: httpx.AsyncClient, chat: Sequence[ChatMessage], opening: str, ending: str
    ) -> float:
        """Log-likelihood of ``ending`` when the answer begins with ``opening``, nats."""
        messages = [*chat, {"role": "assistant", "content": f"{opening} {ending}"}]
        more = {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0}
        reply = await self._post(client, messages, max_tokens=1, **more)
        # The last prompt tokens spell the ending: walk back until their text has spelled it.
        total, spelled = 0.0, ""
        for entry in reversed(reply["prompt_logprobs"]):
            token = next(iter(entry.values()))
            total += token["logprob"]
            spelled = token["decoded_token"] + spelled
            if spelled.strip() == ending:
                break
        return round(total, 5)

    async def _post(self, client: httpx.AsyncClient, messages: Sequence[Any], **settings: Any) -> dict[str, Any]:
        body = {"model": self._model, "messages": list(messages), "temperature": 0, "seed": 0, **settings}
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(httpx.TransportError),
                stop=stop_after_attempt(3),
                wait=wait_exponential(0.5),
                reraise=True,
            ):
                with attempt:
                    reply = await client.post("/v1/chat/completions", json=body)
        except httpx.TransportError as error:
            raise ServerError(
                f"The model server does not answer: {error}.", "Start it again; the run resumes."
            ) from error
        if reply.status_code != 200:
            raise ServerError(
                f"The model server refused a question ({reply.status_code}): {reply.text[:200]}.", "Look at its log."
            )
        return reply.json()
