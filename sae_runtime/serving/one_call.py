"""Chat completions that are read, annotated if needed and answered in one call, for any OpenAI client.

Opt in per request: ``{"sensecheck": {"annotate": true}}`` in the body, or the header ``X-Sensecheck: annotate``. The answer
to the untouched prompt begins at once, and the reading is taken from that very request's prefill. Only when something is
flagged is the answer abandoned, before its first token is sent, and begun anew with the notes; the unchanged head of the
prompt is in the prefix cache by then. The response, or a last chunk of the stream, says under ``sensecheck`` what was
flagged and added. Whatever goes wrong with the reading, the answer to the untouched prompt goes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from vllm.entrypoints.openai.chat_completion.api_router import chat, create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, validate_json_request, with_cancellation
from vllm.utils import random_uuid

from sae_runtime import tracing
from sae_runtime.detector import Misread
from sae_runtime.detector.notes import annotate_after
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.errors import InputError, SensecheckError
from sae_runtime.serving import metrics
from sae_runtime.serving.limits import PLAN_SECONDS, check_size
from sae_runtime.serving.observer import step
from sae_runtime.serving.readers import GRACE
from sae_runtime.serving.service import ReadingService

logger = logging.getLogger("sensecheck")

HEADER = "X-Sensecheck"
_DONE = "data: [DONE]"


class OneCallOptions(BaseModel):
    """The request's ``sensecheck`` field."""

    model_config = ConfigDict(extra="forbid")

    annotate: bool = True
    domain: Annotated[str | None, Field(max_length=64)] = None


class AnnotatedChatRequest(ChatCompletionRequest):
    """A chat completion request that may opt in."""

    sensecheck: OneCallOptions | None = None


class OneCall:
    """Answers opted-in chat completions; others go to vLLM's own handler."""

    def __init__(self) -> None:
        self.service: ReadingService | None = None

    def attach(self, app: FastAPI) -> None:
        """Take over ``POST /v1/chat/completions``."""

        @app.post("/v1/chat/completions", dependencies=[Depends(validate_json_request)], tags=["sensecheck"])
        async def chat_completions(request: AnnotatedChatRequest, raw_request: Request) -> Any:
            """OpenAI's chat completions; with ``sensecheck.annotate`` the prompt is read and annotated."""
            if request.sensecheck is None and raw_request.headers.get(HEADER, "").lower() == "annotate":
                request.sensecheck = OneCallOptions()
            if self.service is None or request.sensecheck is None or not request.sensecheck.annotate:
                return await create_chat_completion(request=request, raw_request=raw_request)
            with tracing.incoming(raw_request.headers):
                return await _answer_annotated(
                    request=request, raw_request=raw_request, service=self.service, options=request.sensecheck
                )


@with_cancellation
@load_aware_call
async def _answer_annotated(
    *, request: AnnotatedChatRequest, raw_request: Request, service: ReadingService, options: OneCallOptions
) -> Response:
    """Read and answer. When the client leaves, the generation is stopped."""
    report: dict[str, Any] = {
        "flagged": False, "misreads": [], "notes": [], "places": [], "notes_left_out": 0, "imitations": [],
        "catalog": None, "bypassed": None,
    }  # fmt: skip
    answer = _Answer(request, raw_request)
    try:
        misreads = await _misreads(request, service, options, answer, report)
        if misreads:
            report |= {"flagged": True, "misreads": [misread.model_dump() for misread in misreads]}
            await _annotate(request, service, answer, misreads, report)
        return await answer.respond(report)
    except asyncio.CancelledError:
        await answer.abandon()
        raise


async def _annotate(
    request: AnnotatedChatRequest,
    service: ReadingService,
    answer: _Answer,
    misreads: list[Misread],
    report: dict[str, Any],
) -> None:
    """Begin the answer anew with the notes; without them when the prompt is too long for the model with them."""
    noted = annotate_after(request.messages, misreads)
    report["notes_left_out"] = noted.left_out
    if not noted.places:
        return
    await answer.restart(noted.messages)
    if await answer.began():
        report["places"] = [place.model_dump() for place in noted.places]
        report["notes"] = [place.note for place in noted.places]
        return
    await answer.restart(list(request.messages))
    report["notes_left_out"] += len(noted.places)
    metrics.BYPASSES.labels("one_call", "notes_refused").inc()
    _bypass(service, report, InputError("The prompt is refused with its notes.", "Shorten it, or the answer."))


async def _misreads(
    request: AnnotatedChatRequest,
    service: ReadingService,
    options: OneCallOptions,
    answer: _Answer,
    report: dict[str, Any],
) -> list[Misread]:
    """Begin the answer and judge its reading, no later than the answer's beginning plus a short grace."""
    try:
        with service.observer.inspection("one_call", domain=options.domain) as seen:
            messages = _text_messages(request.messages)
            check_size(messages)
            seen.messages = messages
            detector = service.detector  # another catalog may come into service before the reading is judged
            planning = service.plan(detector, messages, domain=options.domain, tokens=False)
            seen.plan = plan = await asyncio.wait_for(planning, PLAN_SECONDS)
            report["catalog"] = detector.view.fingerprint
            report["imitations"] = [imitation.model_dump() for imitation in plan.imitations]
            if not plan.needs_model:
                return []
            async with service.reader.riding(plan) as (params, features):
                with step("read"):
                    beginning = await answer.begin(params)
                    await asyncio.wait({features, beginning}, return_when=asyncio.FIRST_COMPLETED)
                    found = await asyncio.wait_for(features, GRACE)
                return (await asyncio.wait_for(service.judge(detector, plan, found), PLAN_SECONDS)).misreads
    except Exception as error:
        _bypass(service, report, error)
        return []


def _bypass(service: ReadingService, report: dict[str, Any], error: Exception) -> None:
    """Count and log that the prompt is answered unread."""
    reason = "timeout" if isinstance(error, TimeoutError) else type(error).__name__
    service.counters[f"bypassed: {reason}"] += 1
    words = error.unquoted() if isinstance(error, SensecheckError) else ""
    logger.warning("answered without a reading (%s): %s", reason, words)
    report["bypassed"] = reason


class _Answer:
    """vLLM's answer to a request: begun, possibly begun anew with other messages, sent."""

    def __init__(self, request: AnnotatedChatRequest, raw_request: Request) -> None:
        self._request = request.model_copy(update={"sensecheck": None})
        self._raw = raw_request
        self._stream: AsyncIterator[str] | None = None
        self._beginning: asyncio.Task[Any] | None = None

    async def begin(self, params: dict[str, Any] | None = None) -> asyncio.Future[Any]:
        """Start answering, with these ``kv_transfer_params``.

        Returns:
            A future that is done when the first chunk of a stream, or the whole of another answer, is there.
        """
        # vLLM takes the trace from the client's headers; where there is none, its span shall become a child of ours.
        tracing.add_to(self._raw.scope["headers"])
        together = {**(self._request.kv_transfer_params or {}), **(params or {})} or None
        request = self._request.model_copy(update={"kv_transfer_params": together, "request_id": random_uuid()})
        answer = chat(self._raw).create_chat_completion(request, self._raw)
        if request.stream:
            self._beginning = asyncio.create_task(self._first_chunk(answer))
        else:
            self._beginning = asyncio.create_task(answer)
        return self._beginning

    async def _first_chunk(self, answer: Any) -> Any:
        stream = await answer
        if isinstance(stream, ErrorResponse):
            return stream
        self._stream = stream
        return await anext(stream)

    async def restart(self, messages: list[Any]) -> None:
        """Abandon the answer and start anew with ``messages``."""
        await self.abandon()
        self._request = self._request.model_copy(update={"messages": messages})
        await self.begin()

    async def began(self) -> bool:
        """Whether the answer has begun; False when vLLM refuses the request."""
        try:
            return not isinstance(await self._first(), ErrorResponse)
        except Exception:
            return False

    async def _first(self) -> Any:
        """What :meth:`begin` returned a future of.

        Awaiting that itself would pass our own cancellation on to vLLM, which answers it with an error response.
        """
        beginning = self._beginning or await self.begin()
        await asyncio.wait({beginning})
        return beginning.result()

    async def abandon(self) -> None:
        """Stop generating."""
        if self._beginning is not None:
            self._beginning.cancel()
            # Not `await self._beginning` with its cancellation suppressed: that would swallow our own, when the client
            # leaves just now, and the answer that is begun next would be generated for nobody.
            await asyncio.wait({self._beginning})
            if not self._beginning.cancelled():
                self._beginning.exception()  # looked at, so that nobody warns of it
        if self._stream is not None:
            await self._stream.aclose()  # type: ignore[attr-defined]
            self._stream = None

    async def respond(self, report: dict[str, Any]) -> Response:
        """The HTTP response, with ``report`` in it."""
        first = await self._first()
        if isinstance(first, ErrorResponse):
            return JSONResponse(first.model_dump(), status_code=first.error.code)
        if isinstance(first, ChatCompletionResponse):
            return JSONResponse({**first.model_dump(), "sensecheck": report})
        assert self._stream is not None  # noqa: S101 (a stream's beginning is a string)
        return StreamingResponse(_with_report(first, self._stream, report), media_type="text/event-stream")


async def _with_report(first: str, rest: AsyncIterator[str], report: dict[str, Any]) -> AsyncIterator[str]:
    """The stream, with one chunk more before its end: no choices, but the report, as usage chunks are."""
    last = first
    yield first
    async for chunk in rest:
        if chunk.startswith(_DONE):
            head: dict[str, Any] = {}
            with contextlib.suppress(ValueError):
                head = json.loads(last.removeprefix("data: "))
            kept = {name: head[name] for name in ("id", "object", "created", "model") if name in head}
            yield f"data: {json.dumps({**kept, 'choices': [], 'sensecheck': report})}\n\n"
        last = chunk
        yield chunk


def _text_messages(messages: list[Any]) -> list[ChatMessage]:
    """The conversation as plain text messages.

    Raises:
        InputError: it has other parts, or tool calls; such prompts are answered unread.
    """
    texts: list[ChatMessage] = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str) or message.get("tool_calls"):
            raise InputError("Only conversations of text are read in one call.", "Use the annotator in front instead.")
        texts.append({"role": message["role"], "content": content})
    return texts
