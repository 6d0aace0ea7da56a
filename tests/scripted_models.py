"""Chat models whose answers are scripted, the annotated model around one, and what callbacks hear of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from middleware import SAEAnnotator
from middleware.chat_model import AnnotatedChatModel

TEXT = "I sat on the bank."
NOTED = f"{TEXT}\n\n[Note on the wording above: River.]"
FINANCE = {"configurable": {"sensecheck_domain": "finance"}}


class Whole(BaseChatModel):
    """Gives its answer at once, and keeps what it is asked."""

    answer: AIMessage = AIMessage("Wet feet.")
    sent: list[list[BaseMessage]] = Field(default_factory=list)
    stops: list[Any] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)
    asides: list[dict[str, Any]] = Field(default_factory=list)
    log: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "whole"

    def _keep(self, messages: list[BaseMessage], stop: Any, options: dict[str, Any]) -> None:
        self.sent.append(messages)
        self.stops.append(stop)
        self.options.append(options)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self._keep(messages, stop, kwargs)
        return ChatResult(generations=[ChatGeneration(message=self.answer)], llm_output={"server": "s1"})

    def _should_stream(self, **kwargs: Any) -> bool:
        self.asides.append(kwargs)
        return super()._should_stream(**kwargs)

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        self.asides.append(kwargs)
        return {"ls_provider": "scripts", "ls_model_name": "whole-1", "ls_model_type": "chat"}

    def _get_invocation_params(self, stop: Any = None, **kwargs: Any) -> dict[str, Any]:
        self.asides.append(kwargs)
        return {"kind": "whole", "stop": stop, **kwargs}

    def _combine_llm_outputs(self, _llm_outputs: list[Any], /) -> dict[str, Any]:
        return {"servers": [output["server"] for output in _llm_outputs if output]}

    def get_token_ids(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        return self.bind(tools=[convert_to_openai_tool(one) for one in tools], **kwargs)


class Piecewise(Whole):
    """Gives its answer word by word, synchronously."""

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        self._keep(messages, stop, kwargs)
        for word in str(self.answer.content).split(" "):
            self.log.append(f"gives {word}")
            yield ChatGenerationChunk(message=AIMessageChunk(word))


class AsyncPiecewise(Piecewise):
    """Gives its answer word by word, also asynchronously."""

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop, run_manager, **kwargs):
            await asyncio.sleep(0)
            yield chunk


class Events(BaseCallbackHandler):
    """Keeps the ids and settings of model runs, and all custom events."""

    def __init__(self) -> None:
        self.models: list[UUID] = []
        self.starts: list[dict[str, Any]] = []
        self.errors: list[BaseException] = []
        self.custom: list[tuple[str, UUID]] = []
        self.data: list[dict[str, Any]] = []
        self.tags: list[list[str]] = []
        self.shown: list[list[BaseMessage]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.models.append(run_id)
        self.starts.append(kwargs)
        self.shown.extend(messages)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, tags: Any = None, **kwargs: Any) -> None:
        self.custom.append((name, run_id))
        self.data.append(data)
        self.tags.append(tags)


def wrapped(annotator: SAEAnnotator, **options: Any) -> tuple[AnnotatedChatModel, AsyncPiecewise]:
    inner = AsyncPiecewise(**options)
    return AnnotatedChatModel(model=inner, annotator=annotator), inner
