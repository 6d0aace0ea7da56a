"""Batches in the real inspector, with an engine that needs no model: few passes, and each prompt's errors are its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from batching import BOOM, PATIENCE, noted

from middleware import CatalogSource, Glossary, SAEAnnotator, Stats
from sae_runtime.catalog.view import CatalogView, Concept, Feature, Sense
from sae_runtime.detector import Detector, Inspector, Reading
from sae_runtime.engines.chat import EncodedChat, TokenSpan
from sae_runtime.errors import EngineError, InputError
from sae_runtime.models import ModelFingerprint
from sae_runtime.sae import JumpReLUSAE

Call = Callable[..., Any]

WORDS = {"river": 0, "money": 1, "bank": 2}


class WordEncoder:
    """A token per word; a conversation that says "overlong" is refused."""

    def encode(self, messages: Any, *, limit: int) -> EncodedChat:
        spans, ids = [TokenSpan("<user>", None, 0, 0)], [9]
        for number, message in enumerate(messages):
            if "overlong" in message["content"]:
                raise InputError("Too long.", "Shorten it.")
            start = 0
            for word in message["content"].split(" "):
                spans.append(TokenSpan(word, number, start, start + len(word)))
                ids.append(WORDS.get(word, 3))
                start += len(word) + 1
        return EncodedChat(ids, spans, False)


class WordEngine:
    """The residual stream says which word each token is; later tokens know of earlier ones.

    Attributes:
        passes: numbers of conversations that were computed together.
        errors: raised by the first passes; None means success.
    """

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.errors: list[Exception | None] = []

    def residual(self, sequences: Sequence[list[int]]) -> list[torch.Tensor]:
        self.passes.append(len(sequences))
        error = self.errors.pop(0) if self.errors else None
        if error:
            raise error
        return [0.1 + torch.nn.functional.one_hot(torch.tensor(ids), 10).float().cumsum(0) for ids in sequences]


def sense(slug: str, latent: int, cue: str) -> Sense:
    return Sense(slug, f"the {slug}", f"{{mention}} is of a {slug}.", frozenset(), 0.0, {latent: 9.0}, {cue: 9.0})


@pytest.fixture
def engine() -> WordEngine:
    return WordEngine()


@pytest.fixture
def inspector(engine: WordEngine) -> Inspector:
    """Reads "bank" by the words "river" and "money"; "sat" and "loan" tell what is meant."""
    concept = Concept("bank", "test", ("bank",), "rest", 1.0, None, 0.4, 0.7,
                      (sense("river", 0, "sat"), sense("money", 1, "loan")))  # fmt: skip
    view = CatalogView(
        "tiny", ModelFingerprint(weights="w", config="c", tokenizer="t", chat_template="h"), 0, "s",
        {n: Feature(n, f"f{n}", 0.1) for n in range(10)}, (concept,), {},
    )  # fmt: skip
    sae = JumpReLUSAE({"W_enc": torch.eye(10), "W_dec": torch.eye(10), "b_enc": torch.zeros(10),
                       "b_dec": torch.zeros(10), "threshold": torch.full((10,), 0.5)})  # fmt: skip
    return Inspector(Detector(view, WordEncoder(), 512), sae, engine)  # type: ignore[arg-type]


def asked(*texts: str, **options: Any) -> list[Any]:
    return [([{"role": "user", "content": text}], {"tokens": False, **options}) for text in texts]


PROMPTS = ["money money bank sat here", "nothing to read", "river bank loan please", "river bank sat here"]


def untimed(readings: Sequence[Any]) -> list[Any]:
    return [reading.model_copy(update={"timings_ms": {}}) for reading in readings]


def test_a_batch_reads_what_single_calls_read(inspector: Inspector, engine: WordEngine) -> None:
    together = inspector.inspect_batch(asked(*PROMPTS))
    assert engine.passes == [3]  # the prompt without a mention did not cost the model anything
    assert [[m.read_as for m in reading.misreads] for reading in together] == [["money"], [], ["river"], []]  # type: ignore[union-attr]
    alone = [inspector.inspect(messages, **options) for messages, options in asked(*PROMPTS)]
    assert untimed(together) == untimed(alone)
    assert all(set(reading.timings_ms) == {"plan", "features", "detect", "total"} for reading in together)  # type: ignore[union-attr]


@pytest.mark.parametrize(("limit", "passes"), [(None, [16, 4]), (1, [1] * 20), (7, [7, 7, 6]), (100, [20])])
def test_a_batch_is_computed_in_passes_of_at_most_the_limit(
    inspector: Inspector, engine: WordEngine, limit: int | None, passes: list[int]
) -> None:
    found = inspector.inspect_batch(asked(*["money bank sat"] * 20), limit=limit)
    assert engine.passes == passes
    assert [len(reading.misreads) for reading in found] == [1] * 20  # type: ignore[union-attr]


def test_a_bad_prompt_keeps_its_error_to_itself(inspector: Inspector, engine: WordEngine) -> None:
    found = inspector.inspect_batch(asked(PROMPTS[0], "overlong bank", PROMPTS[2]))
    assert [type(item) for item in found] == [Reading, InputError, Reading]
    assert engine.passes == [2]


def test_a_failed_pass_costs_the_prompts_of_that_pass_alone(inspector: Inspector, engine: WordEngine) -> None:
    engine.errors = [BOOM]
    found = inspector.inspect_batch(asked(PROMPTS[0], "overlong", PROMPTS[2], PROMPTS[3]), limit=3)
    assert [type(item) for item in found] == [EngineError, InputError, EngineError, Reading]


def test_a_batch_without_mentions_asks_no_model(inspector: Inspector, engine: WordEngine) -> None:
    found = inspector.inspect_batch(asked("nothing", "to read"))
    assert [len(reading.mentions) for reading in found] == [0, 0]  # type: ignore[union-attr]
    assert engine.passes == []


def test_options_hold_for_their_own_prompt(inspector: Inspector) -> None:
    plain, without = asked(PROMPTS[0]), asked(PROMPTS[0], without=frozenset({"bank"}))
    found = inspector.inspect_batch([*plain, *without])
    assert [len(reading.mentions) for reading in found] == [1, 0]  # type: ignore[union-attr]


TERMS = {
    "bank": {
        "meaning": "the river one",
        "otherwise": "the money one",
        "examples": ["river river bank", "a river bank", "the river bank sat"],
        "counterexamples": ["money money bank", "a money bank", "the money bank sat"],
    }
}


def test_prompts_of_a_batch_may_have_glossaries_which_are_compiled_once(
    inspector: Inspector, engine: WordEngine
) -> None:
    glossary = Glossary.from_dict(TERMS)
    found = inspector.inspect_batch(
        [*asked("money money bank"), *asked("money money bank", "river river bank", glossary=glossary)]
    )
    assert engine.passes == [12, 3]  # the term's sentences once, then the prompts
    flagged = [[misread.concept for misread in reading.misreads] for reading in found]  # type: ignore[union-attr]
    assert flagged == [[], ["glossary:bank"], []]


def test_a_term_that_nothing_tells_apart_is_unknown_and_costs_nobody_a_reading(
    inspector: Inspector, engine: WordEngine
) -> None:
    glossary = Glossary.from_dict({"zinc": {"meaning": "this", "otherwise": "that"}})  # the engine knows none of these
    found = inspector.inspect_batch(
        [*asked("zinc", "zinc money money bank sat here", glossary=glossary), *asked(PROMPTS[0])]
    )
    assert [len(reading.misreads) for reading in found] == [0, 1, 1]  # type: ignore[union-attr]
    first = found[0].mentions[0]  # type: ignore[union-attr]
    assert first.concept == "glossary:zinc"
    assert first.reading == {"meant": 0.5, "otherwise": 0.5}
    assert found[1].mentions[0] == first.model_copy(update={"text": "zinc"})  # type: ignore[union-attr]


def test_an_error_in_judging_a_prompt_is_its_own(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = inspector.detector.reading

    def judged(plan: Any, features: Any) -> Reading:
        if "loan" in plan.messages[0]["content"]:
            raise BOOM
        return judge(plan, features)

    monkeypatch.setattr(inspector.detector, "reading", judged)
    found = inspector.inspect_batch(asked(*PROMPTS))
    assert [type(item) for item in found] == [Reading, Reading, EngineError, Reading]
    assert [len(item.misreads) for item in found if isinstance(item, Reading)] == [1, 0, 0]  # each its own features


def test_the_annotator_reads_batches_with_the_real_inspector(
    inspector: Inspector, engine: WordEngine, call: Call
) -> None:
    annotator = SAEAnnotator(source=CatalogSource(inspector), deadline=PATIENCE, grace=None)
    results = call(annotator, "batch", [*PROMPTS, "overlong bank"], config={"max_concurrency": 2})
    notes = ["bank is of a river.", None, "bank is of a money.", None, None]
    texts = [*PROMPTS, "overlong bank"]
    assert [result[0] for result in results] == [
        noted(text, *([note] if note else [])) for text, note in zip(texts, notes, strict=True)
    ]
    assert engine.passes == [1, 2]
    assert annotator.stats == Stats(4, 2, Counter({"InputError": 1}))
