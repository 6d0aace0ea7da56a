"""Where notes stand, on conversations that can be read with the naked eye."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from middleware.placement import place_notes
from sae_runtime.detector.results import Misread

MisreadAt = Callable[..., Misread]

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/river.png"}}
RIVER = '"bank" is the edge of a river here.'
COIL = '"spring" is a coil of metal here.'
TEXT = "The bank was steep, the spring was rusty, the bank was wet."
BANK, SPRING, SECOND_BANK = (4, 8), (24, 30), (46, 50)


@pytest.fixture
def misreads(misread_at: MisreadAt) -> list[Misread]:
    """All three words of ``TEXT``, two of them with the same note."""
    return [misread_at(TEXT, *span) for span in (BANK, SPRING, SECOND_BANK)]


def test_after_gives_equal_notes_once_in_the_order_of_mentions(misreads: list[Misread]) -> None:
    assert place_notes([HumanMessage(TEXT)], misreads, "after").messages == [
        HumanMessage(f"{TEXT}\n\n[Note on the wording above: {RIVER} {COIL}]")
    ]


def test_inline_gives_a_note_per_mention(misreads: list[Misread]) -> None:
    assert place_notes([HumanMessage(TEXT)], misreads, "inline").messages == [
        HumanMessage(
            f"The bank [Note: {RIVER}] was steep, the spring [Note: {COIL}] was rusty, "
            f"the bank [Note: {RIVER}] was wet."
        )
    ]


def test_inline_takes_misreads_in_any_order(misreads: list[Misread]) -> None:
    in_order = place_notes([HumanMessage(TEXT)], misreads, "inline").messages
    assert place_notes([HumanMessage(TEXT)], [misreads[1], misreads[2], misreads[0]], "inline").messages == in_order


def test_system_makes_a_message_when_there_is_none(misreads: list[Misread]) -> None:
    user = HumanMessage(TEXT)
    result = place_notes([user], misreads, "system").messages
    assert result == [SystemMessage(f"[Note on the wording of the user's message: {RIVER} {COIL}]"), user]
    assert result[1] is user


def test_system_goes_behind_an_existing_text(misreads: list[Misread]) -> None:
    result = place_notes([SystemMessage("Be brief.", id="s"), HumanMessage(TEXT)], misreads[:1], "system").messages
    assert result[0] == SystemMessage(f"Be brief.\n\n[Note on the wording of the user's message: {RIVER}]", id="s")
    assert len(result) == 2


def test_system_keeps_the_blocks_of_an_existing_message(misreads: list[Misread]) -> None:
    cached = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    result = place_notes([SystemMessage([cached]), HumanMessage(TEXT)], misreads[:1], "system").messages
    assert result[0].content == [
        {**cached, "text": f"Be brief.\n\n[Note on the wording of the user's message: {RIVER}]"}
    ]
    assert cached["text"] == "Be brief."


def test_system_adds_a_block_to_a_message_without_text(misreads: list[Misread]) -> None:
    result = place_notes([SystemMessage([IMAGE]), HumanMessage(TEXT)], misreads[:1], "system").messages
    assert result[0].content == [
        IMAGE, {"type": "text", "text": f"[Note on the wording of the user's message: {RIVER}]"}
    ]  # fmt: skip


def test_after_uses_the_last_text_block_and_leaves_images_where_they_are(misread_at: MisreadAt) -> None:
    content = ["Look:", {"type": "text", "text": "a bank"}, IMAGE]
    misread = misread_at("Look:\na bank", 8, 12)
    message = HumanMessage(content)
    (result,) = place_notes([message], [misread], "after").messages
    note = {"type": "text", "text": f"a bank\n\n[Note on the wording above: {RIVER}]"}
    assert result.content == ["Look:", note, IMAGE]
    assert result.content[2] is message.content[2]


def test_inline_finds_the_block_of_each_mention(misread_at: MisreadAt) -> None:
    content = ["A bank", IMAGE, {"type": "text", "text": "spring: a bank"}, "bank"]
    joined = "A bank\nspring: a bank\nbank"
    misreads = [misread_at(joined, start, end) for start, end in [(2, 6), (7, 13), (17, 21), (22, 26)]]
    (result,) = place_notes([HumanMessage(content)], misreads, "inline").messages
    assert result.content == [
        f"A bank [Note: {RIVER}]",
        IMAGE,
        {"type": "text", "text": f"spring [Note: {COIL}]: a bank [Note: {RIVER}]"},
        f"bank [Note: {RIVER}]",
    ]


def test_inline_counts_characters_not_bytes(misread_at: MisreadAt) -> None:
    text = "👩‍👩‍👧 ñandú — bank… İstanbul"
    start = text.index("bank")
    (result,) = place_notes([HumanMessage(text)], [misread_at(text, start, start + 4)], "inline").messages
    assert result.content == f"👩‍👩‍👧 ñandú — bank [Note: {RIVER}]… İstanbul"


def test_inline_annotates_every_message_with_a_mention(misread_at: MisreadAt) -> None:
    messages = [HumanMessage("The bank"), AIMessage("Yes?"), HumanMessage("A spring")]
    misreads = [misread_at("The bank", 4, 8, message=0), misread_at("A spring", 2, 8, message=2)]
    result = place_notes(messages, misreads, "inline").messages
    assert [message.content for message in result] == [f"The bank [Note: {RIVER}]", "Yes?", f"A spring [Note: {COIL}]"]
    assert result[1] is messages[1]


def test_after_annotates_the_user_not_the_prefix_of_the_answer(misread_at: MisreadAt) -> None:
    messages = [HumanMessage("Old"), AIMessage("Old"), HumanMessage("The bank"), AIMessage("The answer is")]
    result = place_notes(messages, [misread_at("The bank", 4, 8, message=2)], "after").messages
    assert result[2].content == f"The bank\n\n[Note on the wording above: {RIVER}]"
    assert [a is b for a, b in zip(result, messages, strict=True)] == [True, True, False, True]


def test_after_falls_back_to_the_mention_when_the_last_user_message_has_no_text(misread_at: MisreadAt) -> None:
    messages = [HumanMessage("The bank"), HumanMessage([IMAGE])]
    result = place_notes(messages, [misread_at("The bank", 4, 8, message=0)], "after").messages
    assert result[0].content == f"The bank\n\n[Note on the wording above: {RIVER}]"
    assert result[1] is messages[1]


def test_misreads_beyond_the_text_stand_side_by_side_at_its_end(misread_at: MisreadAt) -> None:
    """A server may say anything: no note comes into another one's frame."""
    misreads = [misread_at("a bank", 2, end, note=f"Note {end}.") for end in (7, 12, 99)]
    placed = place_notes([HumanMessage("a bank")], misreads, "inline")
    assert placed.messages == [HumanMessage("a bank [Note: Note 7.] [Note: Note 12.] [Note: Note 99.]")]
    assert [placed.messages[0].content[place.start : place.end] for place in placed.places] == [
        "Note 7.", "Note 12.", "Note 99."
    ]  # fmt: skip
