"""Inputs of chat models as plain data: what a caller may pass, and what only looks like it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue

from .texts import documents, texts

_CLASSES: dict[str, Any] = {
    "human": HumanMessage,
    "human chunk": HumanMessageChunk,
    "ai": AIMessage,
    "ai chunk": AIMessageChunk,
    "system": SystemMessage,
    "developer": lambda **fields: SystemMessage(additional_kwargs={"__openai_role__": "developer"}, **fields),
    "tool": lambda **fields: ToolMessage(tool_call_id="1", **fields),
    "function": lambda **fields: FunctionMessage(name="f", **fields),
    "user in chat": lambda **fields: ChatMessage(role="user", **fields),
    "stranger in chat": lambda **fields: ChatMessage(role="stranger", **fields),
    "remove": lambda **fields: RemoveMessage(id="1"),
}

_blocks = st.one_of(
    texts(4),
    st.builds(lambda text: {"type": "text", "text": text}, texts(4)),
    st.builds(lambda text: {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}, texts(2)),
    st.sampled_from(
        [
            {"type": "image_url", "image_url": {"url": "https://example.org/river.png"}},
            {"type": "tool_use", "id": "t1", "name": "look_up", "input": {"text": "bank"}},
            {"type": "reasoning", "reasoning": "The bank?"},
            {"type": "text"},
            {"type": "text", "text": None},
            {"text": "the bank"},
            {},
        ]
    ),
    st.dictionaries(st.sampled_from(["type", "text", "index", "id"]) | texts(1), documents(), max_size=3),
)
contents: st.SearchStrategy[Any] = st.one_of(texts(5), texts(5), st.lists(_blocks, max_size=4), documents())
_roles = st.sampled_from(["user", "human", "assistant", "ai", "system", "developer", "tool", "function", "placeholder"])
_messages: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("object"), st.sampled_from(sorted(_CLASSES)), contents),
    st.tuples(st.just("object"), st.just("human"), texts(5)),
    st.tuples(st.just("pair"), _roles | texts(1), contents),
    st.tuples(
        st.just("dict"),
        st.fixed_dictionaries(
            {"role": _roles | documents()},
            optional={"content": contents, "type": _roles | documents(), "name": documents(), "tool_calls": documents(),
                      "tool_call_id": documents(), "id": documents(), "additional_kwargs": documents()},
        ),
    ),
    st.tuples(st.just("plain"), texts(3) | documents()),
)  # fmt: skip
inputs: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("messages"), st.lists(_messages, max_size=4)),
    st.tuples(st.just("messages"), st.lists(_messages, max_size=4)),
    st.tuples(st.just("key"), st.lists(_messages, max_size=3)),
    st.tuples(st.just("prompt value"), st.lists(_messages, max_size=3)),
    st.tuples(st.just("text"), texts()),
    st.tuples(st.just("string prompt"), texts()),
    st.tuples(st.just("value"), documents()),
    st.tuples(st.just("value"), st.binary(max_size=4)),
)


def built(described: tuple[str, Any]) -> Any:
    """The input that is described; None where LangChain itself has no such message."""
    kind, value = described
    if kind == "messages":
        return [_message(item) for item in value]
    if kind == "key":
        return {"messages": [_message(item) for item in value]}
    if kind == "prompt value":
        return ChatPromptValue(messages=[item for item in map(_message, value) if hasattr(item, "content")])
    if kind == "string prompt":
        return StringPromptValue(text=value)
    return value


def _message(described: tuple[Any, ...]) -> Any:
    if described[0] == "object":
        try:
            return _CLASSES[described[1]](content=described[2])
        except ValueError:  # pydantic: no such content
            return None
    if described[0] == "pair":
        return (described[1], described[2])
    return described[1]
