"""From whatever a chat model takes to messages, and from messages to the plain text that is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.messages import ChatMessage as FreeRoleMessage
from langchain_core.prompt_values import PromptValue, StringPromptValue

from sae_runtime.engines.chat import ChatMessage
from sae_runtime.errors import InputError

_ROLES = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}


def to_messages(value: Any, key: str = "messages") -> list[BaseMessage]:
    """Messages of any chat model input: string, PromptValue, message, or sequence of messages, tuples and dicts.

    A dict that has ``key`` stands for that key's value. Messages are passed on as they are, never copied.

    Raises:
        InputError: the value is none of these.
    """
    if isinstance(value, Mapping) and key in value:
        value = value[key]
    if isinstance(value, str):
        return StringPromptValue(text=value).to_messages()
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, Sequence):
        try:
            return convert_to_messages(value)
        except (ValueError, NotImplementedError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"These messages cannot be read: {error}", "Pass what a chat model takes.") from error
    raise InputError(
        f"A value of type {type(value).__name__} is no chat model input.",
        f"Pass a string, a PromptValue, messages, or a dict with the key '{key}'.",
    )


@dataclass(frozen=True)
class TextPart:
    """One stretch of a message's text: ``block`` is its place in a content list (None: the content is a string)."""

    block: int | None
    start: int
    text: str


def text_parts(message: BaseMessage) -> list[TextPart]:
    """The text of a message, part by part; parts are joined by line ends, ``start`` counts in the joined text."""
    content = message.content
    if isinstance(content, str):
        return [TextPart(None, 0, content)]
    parts: list[TextPart] = []
    start = 0
    for index, block in enumerate(content):
        text = block if isinstance(block, str) else block.get("text") if block.get("type") == "text" else None
        if isinstance(text, str):
            parts.append(TextPart(index, start, text))
            start += len(text) + 1
    return parts


def plain_text(message: BaseMessage) -> str:
    """All text of a message, blocks joined by line ends."""
    return "\n".join(part.text for part in text_parts(message))


def to_chat(messages: Sequence[BaseMessage]) -> list[ChatMessage]:
    """Messages as chat templates take them: role and text. Images, audio and tool calls are not read."""
    return [{"role": _role(message), "content": plain_text(message)} for message in messages]


def is_user(message: BaseMessage) -> bool:
    """Whether a user wrote it."""
    return _role(message) == "user"


def last_user(messages: Sequence[BaseMessage]) -> int | None:
    """Index of the last user message, or None when there is none or it has no text."""
    for index in range(len(messages) - 1, -1, -1):
        if is_user(messages[index]):
            return index if plain_text(messages[index]).strip() else None
    return None


def _role(message: BaseMessage) -> str:
    if isinstance(message, FreeRoleMessage):
        return message.role
    return _ROLES.get(message.type.removesuffix("MessageChunk").lower(), "user")
