"""Descriptions of latents: the rule that was planted is found, survives its file, and is scored as counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.build.config import ValidationConfig
from sae_runtime.build.features.firings import Firings
from sae_runtime.build.features.fresh import carriers, fired, rates, trials
from sae_runtime.build.features.gates import Validation, gates, judge, summary
from sae_runtime.build.features.predicates import (
    Bucket,
    Finder,
    Halves,
    PairSet,
    Predicate,
    TopicSet,
    WordSet,
    from_json,
)
from sae_runtime.build.features.relatedness import Relatedness
from sae_runtime.build.features.scores import Scores, hard_negatives, wilson
from sae_runtime.build.features.stability import cosines, counterparts
from sae_runtime.build.features.tokens import PLACES, WINDOW, TokenTable, Words
from sae_runtime.sae import JumpReLUSAE

VOCABULARY = ["\n", " the", " bank", " Bank", " banks", "bank", " river", " loan", "ing", ".", " a", " money", " water"]
VOCABULARY += [f" w{number}" for number in range(30)]


class Tokenizer:
    """Token ids are places in :data:`VOCABULARY`."""

    def __len__(self) -> int:
        return len(VOCABULARY)

    def decode(self, ids: list[int]) -> str:
        return "".join(VOCABULARY[token] for token in ids)


WORDS = Words(Tokenizer())


def word(text: str) -> int:
    return int(WORDS.of_token[VOCABULARY.index(text)])


def table(seed: int, texts: int = 150, length: int = 40) -> TokenTable:
    generator = np.random.default_rng(seed)
    sequences = [generator.integers(0, len(VOCABULARY), length).tolist() for _ in range(texts)]
    data = {
        "sequence": torch.arange(texts, dtype=torch.int32).repeat_interleave(length - 1),
        "position": torch.arange(1, length, dtype=torch.int32).repeat(texts),  # the first token is a sink
    }
    return TokenTable.of(WORDS, data, sequences, [number % 2 for number in range(texts)])


FIT, CHOOSE, UNSEEN = table(0), table(1), table(2)
SOURCES = ["novels", "chats"]
FINDER = Finder(Halves(FIT, CHOOSE, SOURCES))


def ids(*texts: str) -> np.ndarray[Any, Any]:
    return np.array([word(text) for text in texts], dtype=np.int64)


def pairs(*texts: tuple[str, str]) -> np.ndarray[Any, Any]:
    return np.array([(word(a) + 1) * len(WORDS) + word(b) for a, b in texts], dtype=np.int64)


def test_forms_of_a_word_are_one_word_and_the_middle_of_a_word_is_another() -> None:
    assert word(" bank") == word(" Bank") == word(" banks")
    assert word("bank") != word(" bank")  # a token without a space before it goes on a word
    assert WORDS.names[word("ing")] == "-ing"
    assert WORDS.names[word("\n")] == "line break"
    assert VOCABULARY[WORDS.token[word(" bank")]] == " bank"


def test_rows_know_the_words_before_them_and_no_others() -> None:
    row = 5  # the sixth row of the first text is its token 6
    assert UNSEEN.before.shape == (len(UNSEEN), WINDOW)
    assert UNSEEN.before[row, 0] == UNSEEN.word[row - 1]
    assert (UNSEEN.before[row, 6:] == -1).all()
    assert (UNSEEN.before[row, :6] >= 0).all()


PLANTED = [
    WordSet(WORDS, ids(" bank", " river")),
    PairSet(WORDS, ids(), pairs(*((before, " bank") for before in (" river", " the", " a", " water", "."))), ids()),
    TopicSet(WORDS, ids(" money")),
    Bucket("place", np.array([0]), list(PLACES)),
    Bucket("source", np.array([1]), SOURCES),
]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda predicate: predicate.family)
def test_a_planted_rule_is_found_and_holds_on_unseen_text(planted: Predicate) -> None:
    found = FINDER.best(planted.holds(FIT).nonzero()[0], planted.holds(CHOOSE).nonzero()[0])
    assert found is not None
    assert found.family == planted.family
    fired = planted.holds(UNSEEN).nonzero()[0]
    scores = Scores.of(found.holds(UNSEEN), fired, UNSEEN)
    assert scores.precision > 0.9
    assert scores.recall > (0.3 if planted.family == "pair" else 0.9)  # some pairs are too rare to be learnt
    assert found.sentence().startswith("Fires ")


@pytest.mark.parametrize("predicate", PLANTED, ids=lambda predicate: predicate.family)
def test_a_predicate_survives_its_file(predicate: Predicate) -> None:
    import json

    again = from_json(json.loads(json.dumps(predicate.to_json())), WORDS)
    assert again is not None
    assert np.array_equal(again.holds(UNSEEN), predicate.holds(UNSEEN))
    assert again.sentence() == predicate.sentence()


def test_noise_is_not_described_as_if_it_were_a_rule() -> None:
    generator = np.random.default_rng(3)
    fired = [generator.choice(len(part), 60, replace=False) for part in (FIT, CHOOSE, UNSEEN)]
    found = FINDER.best(np.sort(fired[0]), np.sort(fired[1]))
    scores = Scores.of(found.holds(UNSEEN), np.sort(fired[2]), UNSEEN) if found else Scores()
    assert scores.precision_low < 0.2
    judge([result := Validation(0, scores, correlation=1.0, sensitivity=1.0)], gates(ValidationConfig()))
    assert not result.passed


@given(st.lists(st.integers(0, len(UNSEEN) - 1), min_size=1, max_size=40, unique=True), st.integers(0, 10**6))
def test_scores_equal_those_counted_one_by_one(fired: list[int], seed: int) -> None:
    says = np.random.default_rng(seed).random(len(UNSEEN)) < 0.05
    rows = np.array(sorted(fired))
    scores = Scores.of(says, rows, UNSEEN)
    hits = [row for row in fired if says[row]]
    assert (scores.samples, scores.predicted) == (len(fired), int(says.sum()))
    assert scores.recall == pytest.approx(len(hits) / len(fired))
    assert scores.precision == pytest.approx(len(hits) / max(1, int(says.sum())))
    hard = {
        row
        for row in range(len(UNSEEN))
        if row not in fired
        and any(
            UNSEEN.word[row] == UNSEEN.word[other]
            or (abs(row - other) <= 3 and UNSEEN.sequence[row] == UNSEEN.sequence[other])
            for other in fired
        )
    }
    mask = np.zeros(len(UNSEEN), dtype=bool)
    mask[rows] = True
    assert set(hard_negatives(mask, rows, UNSEEN).nonzero()[0].tolist()) == hard
    wrong = sum(bool(says[row]) for row in hard)
    specificity = 1 - wrong / len(hard) if hard else 1.0
    assert scores.balanced_accuracy == pytest.approx((scores.recall + specificity) / 2)


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_intervals_hold_the_share_and_shrink_with_evidence(hits: int, total: int) -> None:
    hits = min(hits, total)
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total + 1e-12
    assert hits / total - 1e-12 <= high <= 1
    more = wilson(10 * hits, 10 * total)
    assert more[1] - more[0] < high - low


def test_wilson_equals_the_published_example() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # R: prop.test(8, 10, correct = FALSE)
    assert wilson(0, 0) == (0.0, 1.0)


def lexical_sae() -> tuple[JumpReLUSAE, Any]:
    """A dictionary whose latent 0 fires on "bank", latent 1 on "bank" after "river", and an engine that shows both."""
    weights = {"W_enc": torch.eye(2), "W_dec": torch.eye(2), "b_enc": torch.zeros(2), "b_dec": torch.zeros(2)}
    sae = JumpReLUSAE({**weights, "threshold": torch.full((2,), 0.5)})
    bank, river = VOCABULARY.index(" bank"), VOCABULARY.index(" river")

    class Engine:
        def residual(self, sequences: list[list[int]]) -> list[torch.Tensor]:
            return [
                torch.tensor(
                    [[float(t == bank), float(t == bank and i > 0 and s[i - 1] == river)] for i, t in enumerate(s)]
                )
                for s in sequences
            ]

    return sae, Engine()


def test_fresh_texts_tell_a_word_from_a_word_in_context() -> None:
    sae, engine = lexical_sae()
    beginnings = carriers([[VOCABULARY.index(" w1")] * 30] * 20, seed=0)
    lexical = WordSet(WORDS, ids(" bank"))
    contextual = PairSet(WORDS, ids(), pairs((" river", " bank")), ids())
    items = [*trials(0, lexical, WORDS, beginnings, 4, 0), *trials(1, contextual, WORDS, beginnings, 4, 0)]
    assert rates(items, fired(engine, sae, items)) == {(0, True): 1.0, (1, True): 1.0, (1, False): 0.0}
    assert items == [*trials(0, lexical, WORDS, beginnings, 4, 0), *trials(1, contextual, WORDS, beginnings, 4, 0)]


def test_counterparts_are_found_by_what_latents_do() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, generator=generator)
    directions = torch.randn(7, 16, generator=generator)

    def sae(decoder: torch.Tensor, bias: float = 0.0) -> JumpReLUSAE:
        zeros = torch.zeros(len(decoder))
        weights = {"W_enc": decoder.T, "W_dec": decoder, "b_enc": zeros + bias, "b_dec": torch.zeros(16)}
        return JumpReLUSAE({**weights, "threshold": zeros})

    other = torch.cat([directions[[3, 1, 0]] * 2.5, torch.randn(4, 16, generator=generator)])
    mine, again = sae(directions), sae(other)
    mine.weights["b_enc"][6] = -1e6  # never fires
    firings = [Firings.collect(one, x, lambda rows: None) for one in (mine, again)]
    index, correlation = counterparts(*firings)
    assert index[[0, 1, 3]].tolist() == [2, 1, 0]
    assert correlation[[0, 1, 3]] == pytest.approx(1.0, abs=1e-4)
    assert (np.abs(correlation[[2, 4, 5]]) < 0.9).all()
    assert (index[6], correlation[6]) == (0, 0)
    dense = [one.encode(x).numpy() for one in (mine, again)]
    for latent in range(6):
        expected = [np.corrcoef(dense[0][:, latent], column)[0, 1] for column in dense[1].T]
        assert correlation[latent] == pytest.approx(max(expected), abs=1e-4)
    assert cosines(mine, again, index)[[0, 1, 3]] == pytest.approx(1.0, abs=1e-5)


def test_a_feature_passes_when_it_passes_every_gate_and_shares_are_of_live_ones() -> None:
    good = Scores(
        samples=500, predicted=500, precision=0.9, precision_low=0.87, precision_high=0.92, recall=0.8,
        balanced_accuracy=0.88,
    )  # fmt: skip
    results = [
        Validation(0, good, good, correlation=0.9, sensitivity=1.0),
        Validation(1, good, good, correlation=0.3, sensitivity=1.0),
        Validation(2, good, good, correlation=0.9, sensitivity=None),
        Validation(3, Scores(), Scores(), correlation=0.9),
    ]
    rules = gates(ValidationConfig())
    judge(results, rules)
    assert [result.passed for result in results] == [True, False, False, False]
    assert results[1].failed == ["seed stability"]
    found = summary(results, np.array([True, True, True, False]), rules)
    assert found["live"] == 3
    assert found["passed_share"] == pytest.approx(1 / 3)
    assert found["kept_precision_share"] == 1.0
    assert found["gates"]["seed stability"] == pytest.approx(2 / 3)  # a latent that never fires does not count


def test_words_that_keep_the_same_company_are_related_and_random_ones_are_not() -> None:
    generator = np.random.default_rng(0)
    fillers = [VOCABULARY.index(f" w{number}") for number in range(30)]
    topics = [[fillers[i] for i in range(start, start + 6)] for start in (0, 6, 12, 18, 24)]
    sequences = [generator.choice(topics[number % 5], 30).tolist() for number in range(300)]
    related = Relatedness(WORDS, sequences, seed=0)
    together = WORDS.of_token[topics[2][:4]].astype(np.int64)
    apart = WORDS.of_token[[topic[0] for topic in topics[:4]]].astype(np.int64)
    assert (chance := related.chance(together)) is not None and chance < 0.05
    assert (chance := related.chance(apart)) is not None and chance > 0.3
    assert related.chance(together[:1]) is None
