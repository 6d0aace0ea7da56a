"""Readings in LangChain agents: ``create_agent(..., middleware=[SensecheckMiddleware(annotator)])``.

Needs the extra ``agents`` (LangChain 1.x).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.middleware.types import TracePolicy, omit_payload
from langchain_core.messages import BaseMessage
from langchain_core.runnables import ensure_config

from middleware.annotator import SAEAnnotator


class SensecheckMiddleware(AgentMiddleware[Any, Any, Any]):
    """Annotates what the agent's model is sent, in every model call, and nothing else.

    Notes are ephemeral: the agent's state, its checkpoints and what tools see hold the conversation as it was. A turn with
    several model calls reads the same user message each time, so its notes stay until the turn ends; the server has the
    prompt in its cache by then.

    Args:
        annotator: reads and annotates. Settings of one call go into the ``configurable`` of the agent's call, see
            :data:`middleware.scope.CALL_OPTIONS`.
    """

    def __init__(self, annotator: SAEAnnotator) -> None:
        super().__init__()
        self.annotator = annotator
        # Traces say that a reading took place and how long it took; what was sent stands in the model's own span.
        self.trace_policy = TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model with the annotated conversation."""
        conversation = _conversation(request)
        noted = self.annotator.annotate(conversation, ensure_config())
        return handler(_annotated(request, conversation, noted.messages))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Like :meth:`wrap_model_call`, without blocking the event loop."""
        conversation = _conversation(request)
        noted = await self.annotator.aannotate(conversation, ensure_config())
        return await handler(_annotated(request, conversation, noted.messages))


def _conversation(request: ModelRequest[Any]) -> list[BaseMessage]:
    """The prompt as the model will see it, system message first."""
    head: list[BaseMessage] = [request.system_message] if request.system_message else []
    return [*head, *request.messages]


def _annotated(
    request: ModelRequest[Any], conversation: list[BaseMessage], noted: list[BaseMessage]
) -> ModelRequest[Any]:
    """The request with the annotated conversation; the very same request when nothing was added."""
    if len(noted) == len(conversation) and all(a is b for a, b in zip(noted, conversation, strict=True)):
        return request
    # A system message that was not there before comes from the placement "system".
    has_system = request.system_message is not None or len(noted) > len(conversation)
    system: Any = noted[0] if has_system else None
    messages: Any = noted[1:] if has_system else noted
    return request.override(system_message=system, messages=messages)
