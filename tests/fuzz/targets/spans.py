"""Every token lies where the rendered prompt has it, and a message's tokens cover its text without gap; else InputError."""

from __future__ import annotations

from hypothesis import strategies as st

from sae_runtime.engines.chat import ChatMessage, EncodedChat
from sae_runtime.errors import InputError

from ..small_catalog import encoder
from ..texts import texts

Case = tuple[list[tuple[str, str]], bool, int | None]

CASES: st.SearchStrategy[Case] = st.tuples(
    st.lists(
        st.tuples(st.sampled_from(["user", "user", "assistant", "system", "tool"]) | texts(1), texts(8)), max_size=5
    ),
    st.booleans(),
    st.sampled_from([None, None, None, 1, 7, 30, 60]),
)


def check(case: Case) -> None:
    """See the module."""
    pairs, reply, limit = case
    messages: list[ChatMessage] = [{"role": role, "content": content} for role, content in pairs]
    try:
        encoded = encoder().encode(messages, reply=reply)
    except InputError:
        return
    assert len(encoded.token_ids) == len(encoded.spans), "not one span per token"
    if limit is not None:
        cut = encoder().encode(messages, reply=reply, limit=limit)
        assert cut.truncated == (len(encoded.token_ids) > limit)
        assert (cut.token_ids, cut.spans) == (encoded.token_ids[:limit], encoded.spans[:limit]), "the head differs"
    order = [span.message for span in encoded.spans if span.message is not None]
    assert order == sorted(order), "messages out of order"
    for number, message in enumerate(messages):
        _covered(encoded, number, message["content"])


def _covered(encoded: EncodedChat, number: int, content: str) -> None:
    """Gaps hold nothing but white space that the template strips, or characters that the tokenizer has no token for."""
    end = 0
    for span in encoded.spans:
        if span.message != number:
            continue
        assert 0 <= span.start < span.end <= len(content), "a span outside its message"
        assert content[span.start : span.end] in span.text, "a span that is not the token's text"
        assert end <= span.end, "a step back"
        assert _unseen(content[end : span.start]), "a gap"
        end = span.end
    assert _unseen(content[end:]), "text behind the last token"


def _unseen(text: str) -> bool:
    return not text.strip() or not any(encoder().encode_text(char) for char in text if not char.isspace())
