"""The made-up conversations: some of everything, the same for everyone."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.traffic.chats import Chat, chats
from sae_runtime.catalog.packs import load_packs

MANY = 300


@pytest.fixture(scope="module")
def many() -> list[Chat]:
    return chats(MANY, seed=0)


def test_the_same_seed_gives_the_same_conversations(many):
    assert chats(MANY, seed=0) == many
    assert chats(20, seed=0) == many[:20]
    assert chats(MANY, seed=1) != many


def test_conversations_have_two_to_four_turns(many):
    lengths = Counter(len(chat.turns) for chat in many)
    assert set(lengths) == {2, 3, 4}
    assert min(lengths.values()) > MANY / 10


def test_first_turns_are_short_and_long(many):
    sizes = sorted(len(chat.turns[0].text) for chat in many)
    assert sizes[MANY // 4] < 250
    assert sizes[-MANY // 50] > 1_000


def test_no_conversation_outgrows_the_servers_context(many):
    """2,048 tokens of which answers take 32 each; a token of such English has three characters at the least."""
    longest = max(sum(len(turn.text) + 3 * 32 for turn in chat.turns) for chat in many)
    assert longest / 3 < 2048 - 300


def test_most_conversations_mention_a_catalogued_word_and_not_every_turn_does(many):
    forms = {form.lower() for concepts in load_packs().values() for concept in concepts for form in concept.forms}
    turns = [turn for chat in many for turn in chat.turns]
    mentioning = sum(any(f" {form} " in f" {turn.text.lower()} " for form in forms) for turn in turns)
    assert len(turns) / 3 < mentioning < len(turns)


def test_domains_are_declared_for_some(many):
    domains = {turn.domain for chat in many for turn in chat.turns}
    assert None in domains
    assert len(domains) > 5
