"""An annotated chat completion is refused as plain vLLM refuses it, or answered with a report; never is it an error of ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import cache
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from hypothesis import strategies as st
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.api_router import router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from sae_runtime.serving.one_call import HEADER, OneCall, OneCallOptions
from sae_runtime.serving.service import ReadingService

from ..asgi import ask
from ..damage import DocumentEdit, document_edits, edited
from ..small_catalog import NoEngine, small_detector
from ..texts import documents, texts

Case = tuple[list[tuple[str, Any]], bool, Any, bool, list[DocumentEdit]]

_contents = texts() | st.just("How do I clean my mouse by the bank?") | documents()
CASES: st.SearchStrategy[Case] = st.tuples(
    st.lists(st.tuples(st.sampled_from(["user", "user", "assistant", "system", "tool"]), _contents), max_size=3),
    st.booleans(),
    st.just({"annotate": True})
    | st.just({"annotate": True, "domain": "biology"})
    | st.fixed_dictionaries(
        {}, optional={"annotate": st.booleans() | documents(), "domain": texts(2) | documents(), "x": documents()}
    )
    | documents(),
    st.booleans(),
    st.just([]) | st.just([]) | document_edits(2),
)


class _Chat:
    """Stands in for vLLM's chat handler: answers with what it was asked, as a whole or in pieces."""

    async def create_chat_completion(self, request: Any, raw_request: Any) -> Any:
        if request.messages and "refuse" in str(request.messages[-1].get("content")):
            return ErrorResponse(error=ErrorInfo(message="No.", type="BadRequestError", code=HTTPStatus.BAD_REQUEST))
        content = (
            str(request.messages[-1].get("content") if request.messages else "").encode("ascii", "replace").decode()
        )
        if request.stream:
            return self._pieces(content)
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return ChatCompletionResponse.model_validate({"model": "m", "choices": [choice], "usage": usage})

    async def _pieces(self, content: str) -> AsyncIterator[str]:
        for piece in (content[:5], content[5:]):
            yield f"data: {json.dumps({'id': 'x', 'choices': [{'index': 0, 'delta': {'content': piece}}]})}\n\n"
        yield "data: [DONE]\n\n"


@cache
def _apps() -> tuple[FastAPI, FastAPI]:
    """Ours, and vLLM's own."""
    ours, plain = FastAPI(), FastAPI()
    one_call = OneCall()
    one_call.service = ReadingService(small_detector(), NoEngine())  # type: ignore[arg-type]
    one_call.attach(ours)
    plain.include_router(router)
    for app in (ours, plain):
        init_exception_handler(app)
        app.state.openai_serving_chat = _Chat()
        app.state.args = SimpleNamespace(log_error_stack=False)
    return ours, plain


def check(case: Case) -> None:
    """See the module."""
    pairs, stream, options, header, edits = case
    body: Any = {
        "model": "m", "messages": [{"role": role, "content": content} for role, content in pairs],
        "stream": stream, "max_tokens": 4, "sensecheck": options,
    }  # fmt: skip
    body = edited(body, edits)
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({HEADER: "annotate"} if header else {})}
    ours, plain = (ask(app, "POST", "/v1/chat/completions", content=content, headers=headers) for app in _apps())
    if plain.status_code != 200:
        assert ours.status_code == plain.status_code or _refused(body, ours.status_code), "refused in another way"
        return
    if ours.status_code != 200:
        assert _refused(body, ours.status_code), f"vLLM answers and we do not: {ours.text}"
        return
    wanted = _wanted(body, header)
    report = _report(ours.text, streamed=bool(body.get("stream")))
    assert (report is not None) == wanted, "a report that was not wanted, or none"
    if report is not None:
        assert report["flagged"] == bool(report["misreads"]) and (report["bypassed"] is None or not report["flagged"])


def _refused(body: Any, status: int) -> bool:
    """Whether our own field is what is wrong with the request."""
    try:
        options = body.get("sensecheck")
        OneCallOptions.model_validate({} if options is None else options)
    except (ValidationError, AttributeError):
        return 400 <= status < 500
    return False


def _wanted(body: dict[str, Any], header: bool) -> bool:
    options = body.get("sensecheck")
    return header if options is None else OneCallOptions.model_validate(options).annotate


def _report(text: str, *, streamed: bool) -> Any:
    if not streamed:
        return json.loads(text).get("sensecheck")
    pieces = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert pieces[-1] == "[DONE]", "the stream has no end"
    reports = [found for piece in pieces[:-1] if (found := json.loads(piece).get("sensecheck")) is not None]
    assert len(reports) <= 1
    return reports[0] if reports else None
