"""Where each prompt token comes from, for contents of every kind under templates of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.engines.chat import ChatEncoder, ChatMessage, TokenSpan
from sae_runtime.errors import EngineError, InputError

# Pieces that also stand in the template, look like the encoder's markers, or need several tokens per character.
_PIECES = (
    "user", "assistant", "<|im_start|>user", "<|im_end|>", "\n", "\n\n", "  ", "\t", " the bank", "\ue0000\ue001", "1",
    "é", "e\u0301", "日本語", "🙂", "👩‍👩‍👧", "🇩🇪", "\r\n", "\u2028", "\x00", "{{ m }}", "ﬁ", "İ",
)  # fmt: skip
contents = st.lists(st.sampled_from(_PIECES) | st.text(max_size=6), max_size=6).map("".join)
roles = st.sampled_from(["system", "user", "assistant"])
conversations: st.SearchStrategy[list[ChatMessage]] = st.lists(
    st.builds(lambda role, content: ChatMessage(role=role, content=content), roles, contents), min_size=1, max_size=12
)


@pytest.fixture(scope="module")
def chatml(tokenizer_folder: Callable[..., Path]) -> ChatEncoder:
    return ChatEncoder(tokenizer_folder())


@pytest.fixture(scope="module")
def stripping(tokenizer_folder: Callable[..., Path]) -> ChatEncoder:
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
    return ChatEncoder(tokenizer_folder(template))


def user(content: str) -> list[ChatMessage]:
    return [{"role": "user", "content": content}]


def spans_of(spans: list[TokenSpan], message: int) -> list[TokenSpan]:
    return [span for span in spans if span.message == message]


def joined(spans: list[TokenSpan], content: str) -> str:
    """The content as the spans tell it, each character once; fails when they leave a gap or run backwards."""
    text, end = "", spans[0].start if spans else 0
    for span in spans:
        assert span.start <= end <= span.end, f"gap or step back at {span}"
        text += content[end : span.end]
        end = span.end
    return text


def chatml_places(messages: list[ChatMessage]) -> Iterator[tuple[int, int]]:
    """Start and end of each content in the rendered prompt, from the template as written down in conftest."""
    at = 0
    for message in messages:
        at += len(f"<|im_start|>{message['role']}\n")
        yield at, at + len(message["content"])
        at += len(message["content"]) + len("<|im_end|>\n")


@given(conversations)
def test_the_spans_of_a_message_cover_all_of_its_characters_in_order(
    chatml: ChatEncoder, messages: list[ChatMessage]
) -> None:
    encoded = chatml.encode(messages)
    for index, message in enumerate(messages):
        assert joined(spans_of(encoded.spans, index), message["content"]) == message["content"]


@given(conversations, st.booleans())
def test_every_token_lies_where_the_rendered_prompt_has_it(
    chatml: ChatEncoder, messages: list[ChatMessage], reply: bool
) -> None:
    encoded = chatml.encode(messages, reply=reply)
    rendered = chatml.render(messages, reply=reply)
    offsets = chatml.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    places = list(chatml_places(messages))
    assert len(encoded.token_ids) == len(encoded.spans) == len(offsets)
    for span, (begin, end) in zip(encoded.spans, offsets, strict=True):
        inside = [i for i, (low, high) in enumerate(places) if max(low, begin) < min(high, end)]
        assert span.text == rendered[begin:end]
        assert ([] if span.message is None else [span.message]) == inside
        if inside:
            low, high = places[inside[0]]
            assert (span.start, span.end) == (max(begin, low) - low, min(end, high) - low)
        else:
            assert (span.start, span.end) == (0, 0)


@given(conversations)
def test_the_text_of_a_token_holds_the_characters_of_its_span(chatml: ChatEncoder, messages: list[ChatMessage]) -> None:
    for span in chatml.encode(messages).spans:
        if span.message is not None:
            assert 0 <= span.start < span.end <= len(messages[span.message]["content"])
            assert messages[span.message]["content"][span.start : span.end] in span.text


@given(conversations, st.integers(1, 60))
def test_truncation_keeps_the_head(chatml: ChatEncoder, messages: list[ChatMessage], limit: int) -> None:
    full, cut = chatml.encode(messages), chatml.encode(messages, limit=limit)
    assert not full.truncated
    assert cut.truncated == (len(full.token_ids) > limit)
    assert (cut.token_ids, cut.spans) == (full.token_ids[:limit], full.spans[:limit])


@given(conversations)
def test_a_template_that_strips_leaves_spans_in_the_content_as_given(
    stripping: ChatEncoder, messages: list[ChatMessage]
) -> None:
    encoded = stripping.encode(messages)
    for index, message in enumerate(messages):
        spans, kept = spans_of(encoded.spans, index), message["content"].strip()
        assert joined(spans, message["content"]) == kept
        if kept:
            assert message["content"][: spans[0].start].strip() == ""


def test_the_bytes_of_one_character_all_carry_its_span(chatml: ChatEncoder) -> None:
    spans = spans_of(chatml.encode(user("a🙂b")).spans, 0)
    assert [(span.start, span.end) for span in spans] == [(0, 1), *[(1, 2)] * 4, (2, 3)]


def test_a_token_across_the_border_is_clipped_to_the_content(chatml: ChatEncoder) -> None:
    first = spans_of(chatml.encode(user("\n\nthe")).spans, 0)[0]
    assert (first.text, first.start, first.end) == ("\n\n", 0, 1)


def test_a_token_across_the_end_is_clipped_to_the_content(tokenizer_folder: Callable[..., Path]) -> None:
    encoder = ChatEncoder(tokenizer_folder("{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"))
    last = spans_of(encoder.encode(user("the\n")).spans, 0)[-1]
    assert (last.text, last.start, last.end) == ("\n\n", 3, 4)


def test_repeated_contents_keep_their_messages_apart(chatml: ChatEncoder) -> None:
    messages: list[ChatMessage] = [{"role": role, "content": "user"} for role in ("user", "assistant", "user")]
    spans = [span for span in chatml.encode(messages).spans if span.message is not None]
    assert [(span.message, span.start, span.end) for span in spans] == [(i, 0, 4) for i in range(3)]


def test_unicode_normalisation_does_not_shift_later_spans(tokenizer_folder: Callable[..., Path]) -> None:
    encoder = ChatEncoder(tokenizer_folder(normalise=True))
    text = "cafe\u0301 x"  # NFC makes one character of the two
    spans = spans_of(encoder.encode(user(text)).spans, 0)
    assert [text[span.start : span.end] for span in spans if span.end - span.start == 1][-1] == "x"
    assert (spans[-1].start, spans[-1].end) == (6, 7)


def test_without_a_template_contents_are_joined_by_line_ends(tokenizer_folder: Callable[..., Path]) -> None:
    encoder = ChatEncoder(tokenizer_folder(None))
    messages: list[ChatMessage] = [{"role": "user", "content": "the bank"}, {"role": "user", "content": "river"}]
    encoded = encoder.encode(messages)
    assert encoder.render(messages) == "the bank\nriver"
    assert [joined(spans_of(encoded.spans, i), m["content"]) for i, m in enumerate(messages)] == ["the bank", "river"]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "rewrites"),
        ("{% for m in messages %}{{ m['content'] | replace('bank', 'tree') }}{% endfor %}", "rewrites"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "rewrites"),
        ("{% for m in messages %}{{ m['content'] if m['role'] != 'user' else '' }}{% endfor %}", "drops.*'user'"),
        ("{{ raise_exception('only system messages') }}", "rejects.*only system messages"),
    ],
)
def test_a_template_without_traceable_contents_is_an_input_error(
    tokenizer_folder: Callable[..., Path], template: str, fault: str
) -> None:
    with pytest.raises(InputError, match=fault) as caught:
        ChatEncoder(tokenizer_folder(template)).encode(user("the bank"))
    assert caught.value.remedy


def test_no_messages_is_an_input_error(chatml: ChatEncoder) -> None:
    with pytest.raises(InputError, match="no message"):
        chatml.encode([])


def test_plain_text_is_tokenised_without_template(chatml: ChatEncoder) -> None:
    assert chatml.tokenizer.decode(chatml.encode_text("the bank 🙂")) == "the bank 🙂"


def test_a_folder_without_tokenizer_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=tmp_path.name):
        ChatEncoder(tmp_path)


def test_a_damaged_tokenizer_is_an_engine_error(tokenizer_folder: Callable[..., Path]) -> None:
    folder = tokenizer_folder()
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"', "utf-8")
    with pytest.raises(EngineError, match=folder.name):
        ChatEncoder(folder)


@pytest.mark.parametrize("message", [{"role": "user", "content": "bank \ud83c"}, {"role": "\ud83c", "content": "bank"}])
def test_half_a_character_is_an_input_error(chatml: ChatEncoder, message: ChatMessage) -> None:
    """Found by fuzzing: the tokenizer's TypeError went through."""
    with pytest.raises(InputError, match="half a Unicode character"):
        chatml.encode([message])
