"""Messages to tokens and back: the model's own chat template, and each token's characters in the message it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from sae_runtime.errors import EngineError, InputError


class ChatMessage(TypedDict):
    """One text message as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True)
class TokenSpan:
    """Where one prompt token comes from.

    Attributes:
        text: the token's characters in the rendered prompt.
        message: index of the message, or None for text of the template.
        start, end: character span inside that message's content; 0, 0 for template text. A token that covers the
            border between template and content is clipped to the content. Tokens that share one character (bytes of
            an emoji) all carry that character's span.
    """

    text: str
    message: int | None
    start: int
    end: int


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as the model sees it.

    Attributes:
        token_ids: prompt tokens.
        spans: one span per token.
        truncated: True when only the head fits the limit and was kept.
    """

    token_ids: list[int]
    spans: list[TokenSpan]
    truncated: bool


class ChatEncoder:
    """Renders conversations through the chat template of the tokenizer in ``folder``.

    Raises:
        EngineError: the tokenizer cannot be loaded, or is not a fast one (character offsets need one).
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise EngineError(f"No tokenizer can be loaded from {folder}: {error}.", "Check the folder.") from error
        if not self.tokenizer.is_fast:
            raise EngineError("The tokenizer gives no character offsets.", "Convert it to a fast tokenizer.")

    def render(self, messages: Sequence[ChatMessage], *, reply: bool = True) -> str:
        """The prompt text of ``messages``; with ``reply`` it ends where the assistant's answer begins.

        A tokenizer without a chat template (a base model) joins the contents with line ends.
        """
        if not self.tokenizer.chat_template:
            return "\n".join(message["content"] for message in messages)
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply)
        except TemplateError as error:
            raise InputError(
                f"The chat template rejects these messages: {error}.", "Check roles and their order."
            ) from error

    def encode(self, messages: Sequence[ChatMessage], *, reply: bool = True, limit: int | None = None) -> EncodedChat:
        """Tokens of ``messages`` with the character span of each.

        Args:
            messages: the conversation.
            reply: end with the generation prompt.
            limit: keep at most this many tokens, the head.

        Raises:
            InputError: there is nothing to read, or the template rejects the messages.
        """
        if not messages:
            raise InputError("There is no message to read.", "Pass at least one message.")
        rendered = self.render(messages, reply=reply)
        try:
            rendered.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                "The prompt holds half a Unicode character (a lone surrogate).", "Send whole characters."
            ) from error
        starts = self._content_starts(messages, rendered, reply=reply)
        # A template writes its special tokens itself; a base model has learned to find the tokenizer's own, such as <bos>.
        special = not self.tokenizer.chat_template
        encoded = self.tokenizer(rendered, add_special_tokens=special, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        truncated = limit is not None and len(ids) > limit
        if truncated:
            ids, offsets = ids[:limit], offsets[:limit]
        return EncodedChat(ids, self._spans(rendered, offsets, starts), truncated)

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text without template or special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _content_starts(
        self, messages: Sequence[ChatMessage], rendered: str, *, reply: bool
    ) -> list[tuple[int, int, int]]:
        """Per message: start in the rendered text, start in the content (templates may strip), length.

        The conversation is rendered a second time with a unique marker for each content. What stands between the
        markers is the template's own text, so the contents' places follow by arithmetic; searching for the contents
        themselves would stumble over repeated text ("user" occurs in the template, "ok" may occur in every message).
        """
        markers = [f"\ue000{index}\ue001" for index in range(len(messages))]
        marked = self.render(
            [{"role": m["role"], "content": marker} for m, marker in zip(messages, markers, strict=True)], reply=reply
        )
        between, rest = [], marked
        for message, marker in zip(messages, markers, strict=True):
            before, found, rest = rest.partition(marker)
            if not found:
                raise InputError(f"The chat template drops a message of role '{message['role']}'.", "Check the roles.")
            between.append(before)
        starts, text = [], between[0]
        for message, after in zip(messages, [*between[1:], rest], strict=True):
            # Some templates strip what users say and leave the system message as it is.
            whole, stripped = message["content"], message["content"].strip()
            content = whole if rendered.startswith(whole + after, len(text)) else stripped
            starts.append((len(text), whole.find(content), len(content)))
            text += content + after
        if text == rendered:
            return starts
        raise InputError("The chat template rewrites the content of messages.", "Token spans need a plain template.")

    @staticmethod
    def _spans(rendered: str, offsets: list[tuple[int, int]], starts: list[tuple[int, int, int]]) -> list[TokenSpan]:
        spans = []
        current = 0
        for begin, end in offsets:
            while (
                current < len(starts) and begin >= starts[current][0] + starts[current][2] and end > starts[current][0]
            ):
                current += 1
            span = TokenSpan(rendered[begin:end], None, 0, 0)
            if current < len(starts):
                place, skipped, length = starts[current]
                low, high = max(begin - place, 0), min(end - place, length)
                if high > low:
                    span = TokenSpan(rendered[begin:end], current, low + skipped, high + skipped)
            spans.append(span)
        return spans
