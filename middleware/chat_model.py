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

from middleware.annotator import SAEAnnotator
from middleware.scope import PREFIX

_OPTIONS = "sensecheck"  # the keyword under which a call's own settings travel to the model


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
        yield from super().stream(input, config, stop=stop, **_carried(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:  # fmt: skip
        """Like :meth:`stream`, without blocking the event loop."""
        async for chunk in super().astream(input, config, stop=stop, **_carried(config, kwargs)):
            yield chunk

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

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """As the wrapped model counts them, without notes."""
        return self.model.get_num_tokens_from_messages(messages, tools)

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
        return self.model._should_stream(**kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return self.model._get_ls_params(stop=stop, **kwargs)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        own = {name: value for name, value in kwargs.items() if name != _OPTIONS}
        return self.model._get_invocation_params(stop=stop, **own)

    def _combine_llm_outputs(self, _llm_outputs: list[dict[str, Any] | None], /) -> dict[str, Any]:
        return self.model._combine_llm_outputs(_llm_outputs)

    def _instead(self, runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
        """``runnable`` with this model where it has the wrapped one."""
        if runnable is self.model:
            return self
        if isinstance(runnable, RunnableBinding):
            parts = {name: getattr(runnable, name) for name in ("kwargs", "config", "config_factories")}
            return RunnableBinding(bound=self._instead(runnable.bound), **parts)
        if isinstance(runnable, RunnableSequence):
            return RunnableSequence(*map(self._instead, runnable.steps), name=runnable.name)
        if isinstance(runnable, RunnableParallel):
            return RunnableParallel({name: self._instead(step) for name, step in runnable.steps__.items()})
        return runnable


def _carried(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs`` with the settings for this call, since models are not shown their configuration."""
    configurable = ensure_config(config).get("configurable") or {}
    options = {name: value for name, value in configurable.items() if name.startswith(PREFIX)}
    return {**kwargs, _OPTIONS: options} if options else kwargs


def _config(kwargs: dict[str, Any], run: Any, manager: Any) -> RunnableConfig:
    """The configuration of the annotation inside a model's run; takes this call's settings out of ``kwargs``."""
    config: RunnableConfig = {"configurable": kwargs.pop(_OPTIONS, {})}
    if run is not None:
        config["callbacks"] = manager(run.handlers, run.inheritable_handlers, run.run_id)
    return config
