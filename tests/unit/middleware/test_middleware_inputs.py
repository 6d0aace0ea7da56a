"""What the annotator takes, and the plain text that it reads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate

from middleware.inputs import TextPart, last_user, plain_text, text_parts, to_chat, to_messages
from sae_runtime.errors import InputError

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/river.png"}}
HELLO = [SystemMessage("Be brief."), HumanMessage("Hello")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("Hello", [HumanMessage("Hello")], id="str"),
        pytest.param("", [HumanMessage("")], id="empty-str"),
        pytest.param([("system", "Be brief."), ("human", "Hello")], HELLO, id="tuples"),
        pytest.param([("system", "Be brief."), ("user", "Hello")], HELLO, id="tuples-openai-role"),
        pytest.param(({"role": "system", "content": "Be brief."}, ("human", "Hello")), HELLO, id="tuple-of-mixed"),
        pytest.param([{"type": "human", "content": "Hello"}], [HumanMessage("Hello")], id="dict-by-type"),
        pytest.param([{"role": "user", "content": "Hello"}], [HumanMessage("Hello")], id="dict-by-role"),
        pytest.param(["Hello"], [HumanMessage("Hello")], id="list-of-str"),
        pytest.param(HELLO, HELLO, id="messages"),
        pytest.param([], [], id="no-messages"),
        pytest.param(HumanMessage("Hello"), [HumanMessage("Hello")], id="single-message"),
        pytest.param(HumanMessageChunk("Hello"), [HumanMessageChunk("Hello")], id="single-chunk"),
        pytest.param([AIMessageChunk("Hi")], [AIMessageChunk("Hi")], id="chunks"),
        pytest.param(StringPromptValue(text="Hello"), [HumanMessage("Hello")], id="string-prompt-value"),
        pytest.param(ChatPromptValue(messages=HELLO), HELLO, id="chat-prompt-value"),
        pytest.param(PromptTemplate.from_template("{x}").invoke({"x": "Hello"}), [HumanMessage("Hello")], id="prompt"),
        pytest.param({"messages": HELLO}, HELLO, id="state"),
        pytest.param({"messages": HELLO, "other": 1}, HELLO, id="state-with-other-keys"),
        pytest.param({"messages": [("human", "Hello")]}, [HumanMessage("Hello")], id="state-of-tuples"),
        pytest.param({"messages": "Hello"}, [HumanMessage("Hello")], id="state-of-str"),
        pytest.param({"messages": ChatPromptValue(messages=HELLO)}, HELLO, id="state-of-prompt-value"),
    ],
)  # fmt: skip
def test_takes_what_a_chat_model_takes(value: object, expected: list[BaseMessage]) -> None:
    messages = to_messages(value)
    assert messages == expected
    assert [type(message) for message in messages] == [type(message) for message in expected]


def test_takes_the_output_of_a_chat_prompt_template() -> None:
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "Be {how}."),
            MessagesPlaceholder("past"),
            ("human", [{"type": "text", "text": "{question}"}, IMAGE]),
        ]
    )
    past = [HumanMessage("Hi"), AIMessage("Hello")]
    messages = to_messages(prompt.invoke({"how": "brief", "past": past, "question": "What is a bank?"}))
    assert [message.type for message in messages] == ["system", "human", "ai", "human"]
    assert [plain_text(message) for message in messages] == ["Be brief.", "Hi", "Hello", "What is a bank?"]


@pytest.mark.parametrize("wrap", [list, tuple, lambda m: {"messages": m}, lambda m: ChatPromptValue(messages=m)])
def test_messages_are_passed_on_not_copied(wrap: object) -> None:
    given_messages = [SystemMessage("s"), HumanMessage([{"type": "text", "text": "t"}, IMAGE]), AIMessageChunk("a")]
    messages = to_messages(wrap(given_messages))  # type: ignore[operator]
    assert len(messages) == 3
    assert all(a is b for a, b in zip(messages, given_messages, strict=True))


@pytest.mark.parametrize(
    "value",
    [
        None, 3, 1.5, b"bytes", object(), {"a set"}, iter(["Hello"]), {}, {"question": "Hello"},
        {"role": "user", "content": "Hello"}, {"messages": None}, {"messages": {"messages": "Hello"}},
        [None], [1], [("human", "a", "b")], [("wizard", "Hello")], [("human", None)], [{"role": "user"}],
        [{"content": "Hello"}], [{"role": "user", "content": 5}], [{"role": "user", "content": [1]}],
        [{"role": None, "content": "Hello"}], [{"role": ["user"], "content": "Hello"}],
        [HumanMessage("Hello"), object()],
        [MessagesPlaceholder("unfilled")], ChatPromptTemplate.from_messages([("human", "unfilled")]),
    ],
    ids=lambda value: str(value)[:60].replace(" ", "_").split("_object_at")[0],
)  # fmt: skip
def test_anything_else_is_an_input_error_with_a_remedy(value: object) -> None:
    with pytest.raises(InputError) as caught:
        to_messages(value)
    assert caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"role": "tool", "content": "42"}, id="no-tool_call_id"),
        pytest.param({"role": "assistant", "content": "", "tool_calls": "none"}, id="tool_calls-str"),
        pytest.param({"role": "assistant", "content": "", "tool_calls": ["none"]}, id="tool_calls-of-str"),
        pytest.param(
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}, id="no-arguments"
        ),
    ],
)
def test_malformed_tool_messages_are_input_errors_too(message: dict[str, object]) -> None:
    with pytest.raises(InputError):
        to_messages([("human", "Hello"), message])


def test_the_error_names_the_type_at_fault() -> None:
    with pytest.raises(InputError, match="int"):
        to_messages(42)


def test_text_parts_of_a_string() -> None:
    assert text_parts(HumanMessage("The bank")) == [TextPart(None, 0, "The bank")]
    assert text_parts(HumanMessage("")) == [TextPart(None, 0, "")]


def test_text_parts_of_blocks_skip_what_is_not_text() -> None:
    message = HumanMessage(
        [
            "Look:", IMAGE, {"type": "text", "text": "a bänk 🏞️", "cache_control": {"type": "ephemeral"}},
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, {"type": "text", "text": "here"},
        ]
    )  # fmt: skip
    assert text_parts(message) == [TextPart(0, 0, "Look:"), TextPart(2, 6, "a bänk 🏞️"), TextPart(4, 16, "here")]
    assert plain_text(message) == "Look:\na bänk 🏞️\nhere"


@pytest.mark.parametrize(
    "content",
    [[], [IMAGE], [{"type": "tool_use", "id": "1", "name": "f", "input": {}}], [{"type": "text", "text": None}]],
)
def test_a_message_without_text_has_no_parts(content: list[str | dict[str, object]]) -> None:
    message = HumanMessage(content)
    assert text_parts(message) == []
    assert plain_text(message) == ""


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.just(IMAGE), st.builds(lambda t: {"type": "text", "text": t}, st.text()))
    )
)
def test_every_part_stands_where_it_says(content: list[str | dict[str, object]]) -> None:
    message = HumanMessage(content)
    joined = plain_text(message)
    parts = text_parts(message)
    assert len(parts) == sum(block is not IMAGE for block in content)
    for part in parts:
        assert joined[part.start : part.start + len(part.text)] == part.text
        block = content[part.block]  # type: ignore[index]
        assert part.text == (block if isinstance(block, str) else block["text"])


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (HumanMessage("x"), "user"),
        (HumanMessageChunk("x"), "user"),
        (AIMessage("x"), "assistant"),
        (AIMessageChunk("x"), "assistant"),
        (SystemMessage("x"), "system"),
        (SystemMessageChunk("x"), "system"),
        (to_messages([{"role": "developer", "content": "x"}])[0], "system"),
        (ToolMessage("x", tool_call_id="1"), "tool"),
        (ToolMessageChunk("x", tool_call_id="1"), "tool"),
        (FunctionMessage("x", name="f"), "tool"),
        (FunctionMessageChunk("x", name="f"), "tool"),
        (ChatMessage("x", role="user"), "user"),
        (ChatMessage("x", role="critic"), "critic"),
        (ChatMessageChunk(content="x", role="user"), "user"),
        (ChatMessageChunk(content="x", role="assistant"), "assistant"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_roles(message: BaseMessage, role: str) -> None:
    assert to_chat([message]) == [{"role": role, "content": "x"}]


def test_to_chat_reads_text_only() -> None:
    call = {"name": "f", "args": {}, "id": "1", "type": "tool_call"}
    messages = [HumanMessage([{"type": "text", "text": "a"}, IMAGE, "b"]), AIMessage("", tool_calls=[call])]
    assert to_chat(messages) == [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], None),
        ([SystemMessage("s"), AIMessage("a")], None),
        ([HumanMessage("")], None),
        ([HumanMessage(" \n\t")], None),
        ([HumanMessage([IMAGE])], None),
        ([HumanMessage("a")], 0),
        ([HumanMessage("a"), AIMessage("b"), HumanMessage("c")], 2),
        ([SystemMessage("s"), HumanMessage("a"), AIMessage("prefix of the answer")], 1),
        ([HumanMessage("a"), AIMessage(""), ToolMessage("42", tool_call_id="1")], 0),
        ([ChatMessage("a", role="user"), ChatMessage("b", role="critic")], 0),
        ([HumanMessage([IMAGE, {"type": "text", "text": "a"}])], 0),
    ],
)
def test_last_user(messages: list[BaseMessage], expected: int | None) -> None:
    assert last_user(messages) == expected
