"""A chat model that reads every prompt before it answers, for places where only a chat model fits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableParallel,
    RunnableSequence,
    ensure_config,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.uuid import uuid7
from pydantic import model_validator

from middleware.annotator import SAEAnnotator
from middleware.scope import PREFIX

_OPTIONS = "sensecheck"  # the keyword under which a call's own settings travel to the model, as a configuration


class AnnotatedChatModel(BaseChatModel):
    """Wraps a chat model: what it is sent is annotated first; everything else is the wrapped model's own.

    ::

        model = AnnotatedChatModel(model=ChatOpenAI(...), annotator=SAEAnnotator.from_url(...))
        model.with_structured_output(Invoice).invoke("...")

    Tools, structured output, streaming, stop words, usage and response metadata come from the wrapped model. A call's
    ``configurable`` may hold what :data:`middleware.scope.CALL_OPTIONS` lists.

    Attributes:
        model: answers.
        annotator: reads and annotates.
    """

    model: BaseChatModel
    annotator: SAEAnnotator

    @model_validator(mode="before")
    @classmethod
    def _take_over(cls, values: Any) -> Any:
        """What LangChain looks up at the outermost model (callbacks, cache, rate limiter, profile, ...) is the wrapped
        model's, unless it is given."""
        model = values.get("model") if isinstance(values, dict) else None
        if not isinstance(model, BaseChatModel):
            return values
        return {**{name: getattr(model, name) for name in BaseChatModel.model_fields}, **values}

    def __repr_args__(self) -> Any:
        return [("model", self.model), ("annotator", self.annotator)]

    @property
    def model_name(self) -> str:
        """The wrapped model's name, or its type. LangChain's agents look for it here, and else take ``model`` for it."""
        names = [getattr(self.model, name, None) for name in ("model_name", "model", "model_id")]
        return next((name for name in names if isinstance(name, str) and name), self.model._llm_type)

    @property
    def _llm_type(self) -> str:
        return f"sensecheck-{self.model._llm_type}"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self.model._identifying_params, "annotator": repr(self.annotator)}

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:  # fmt: skip
        """The wrapped model's answer to the annotated prompt."""
        return super().invoke(input, config, stop=stop, **_carried(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:  # fmt: skip
        """Like :meth:`invoke`, without blocking the event loop."""
        return await super().ainvoke(input, config, stop=stop, **_carried(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:  # fmt: skip
        """The answer piece by piece, as the wrapped model gives it."""
        config, kwargs = self._followed(config, kwargs, CallbackManager)
        yield from super().stream(input, config, stop=stop, **kwargs)

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:  # fmt: skip
        """Like :meth:`stream`, without blocking the event loop."""
        config, kwargs = self._followed(config, kwargs, AsyncCallbackManager)
        async for chunk in super().astream(input, config, stop=stop, **kwargs):
            yield chunk

    def stream_events(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As every chat model does it; ``version="v3"`` does not go through :meth:`stream`."""
        return super().stream_events(input, config, **_carried(config, kwargs))

    def astream_events(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Like :meth:`stream_events`, without blocking the event loop."""
        return super().astream_events(input, config, **_carried(config, kwargs))

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """As the wrapped model binds them."""
        return self._instead(self.model.bind_tools(tools, **kwargs))

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """As the wrapped model does it, by tools or by a response format."""
        return self._instead(self.model.with_structured_output(schema, include_raw=include_raw, **kwargs))

    def get_token_ids(self, text: str) -> list[int]:
        """As the wrapped model splits the text."""
        return self.model.get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """As the wrapped model counts them."""
        return self.model.get_num_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None, **kwargs: Any
    ) -> int:
        """As the wrapped model counts them, without notes."""
        return self.model.get_num_tokens_from_messages(messages, tools, **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        noted = self.annotator.annotate(messages, _config(kwargs, run_manager, CallbackManager)).messages
        return self.model._generate(noted, stop, run_manager, **kwargs)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        noted = await self.annotator.aannotate(messages, _config(kwargs, run_manager, AsyncCallbackManager))
        return await self.model._agenerate(noted.messages, stop, run_manager, **kwargs)

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        noted = self.annotator.annotate(messages, _config(kwargs, run_manager, CallbackManager)).messages
        yield from self.model._stream(noted, stop, run_manager, **kwargs)

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:  # fmt: skip
        noted = await self.annotator.aannotate(messages, _config(kwargs, run_manager, AsyncCallbackManager))
        async for chunk in self.model._astream(noted.messages, stop, run_manager, **kwargs):
            yield chunk

    def _should_stream(self, **kwargs: Any) -> bool:
        return self.model._should_stream(**_without_options(kwargs))

    def _should_use_protocol_streaming(self, **kwargs: Any) -> bool:
        return self.model._should_use_protocol_streaming(**_without_options(kwargs))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return self.model._get_ls_params(stop=stop, **_without_options(kwargs))

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return self.model._get_invocation_params(stop=stop, **_without_options(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Key of cached answers: they are not those of the wrapped model, nor those under other settings."""
        options = kwargs.get(_OPTIONS, {}).get("configurable")
        annotator = f"{self.annotator.source!r} {self.annotator.model_dump()} {options}"
        return f"{annotator} {self.model._get_llm_string(stop=stop, **_without_options(kwargs))}"

    def _combine_llm_outputs(self, _llm_outputs: list[dict[str, Any] | None], /) -> dict[str, Any]:
        return self.model._combine_llm_outputs(_llm_outputs)

    def _followed(
        self, config: RunnableConfig | None, kwargs: dict[str, Any], manager: Any
    ) -> tuple[RunnableConfig, dict[str, Any]]:
        """``config`` with a number for the run, and ``kwargs`` with its callbacks: LangChain does not tell streams."""
        config = ensure_config(config)
        run_id = config["run_id"] = config.get("run_id") or uuid7()
        callbacks = manager.configure(
            config.get("callbacks"), self.callbacks, False, config.get("tags"), self.tags, config.get("metadata"),
            self.metadata,
        )  # fmt: skip
        callbacks.parent_run_id = run_id
        kwargs = _carried(config, kwargs)
        return config, {**kwargs, _OPTIONS: {**kwargs.get(_OPTIONS, {}), "callbacks": callbacks}}

    def _instead(self, runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
        """``runnable`` with this model where it has the wrapped one, or a changed copy of that."""
        if runnable is self.model:
            return self
        if isinstance(runnable, BaseChatModel):
            return self.model_copy(update={"model": runnable})
        if isinstance(runnable, RunnableBinding):
            return runnable.model_copy(update={"bound": self._instead(runnable.bound)})
        if isinstance(runnable, RunnableSequence):
            return RunnableSequence(*map(self._instead, runnable.steps), name=runnable.name)
        if isinstance(runnable, RunnableParallel):
            return RunnableParallel({name: self._instead(step) for name, step in runnable.steps__.items()})
        return runnable


def _carried(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs`` with the settings for this call, since models are not shown their configuration."""
    configurable = ensure_config(config).get("configurable") or {}
    options = {name: value for name, value in configurable.items() if name.startswith(PREFIX)}
    own = _without_options(kwargs)
    return {**own, _OPTIONS: {"configurable": options}} if options else own


def _without_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs`` as the wrapped model may see them."""
    return {name: value for name, value in kwargs.items() if name != _OPTIONS}


def _config(kwargs: dict[str, Any], run: Any, manager: Any) -> RunnableConfig:
    """The configuration of the annotation inside a model's run; takes it out of ``kwargs``."""
    config: RunnableConfig = kwargs.pop(_OPTIONS, {})
    if run is None:
        return config
    callbacks = manager(run.handlers, run.inheritable_handlers, run.run_id, tags=run.tags, metadata=run.metadata)
    return {**config, "callbacks": callbacks}
