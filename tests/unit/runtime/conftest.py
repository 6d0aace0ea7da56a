"""Helpers for the unit tests of ``sae_runtime``: a private cache, tiny tokenizers, hand-made concepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from sae_runtime.catalog.view import Concept, Sense

# The machine may be busy, so examples have no deadline; the same examples run every time.
settings.register_profile("sensecheck", deadline=None, derandomize=True, database=None)
settings.load_profile("sensecheck")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Frequent words and runs of line ends, so that the tokenizer has tokens that cross the template's borders.
_TRAINING_TEXT = ["the user said that the bank of the river is the assistant's bank\n\n", "\n\n", "  the  "] * 20


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own cache."""
    home = tmp_path_factory.mktemp("sensecheck-home")
    monkeypatch.setenv("SENSECHECK_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of folders with a byte-level BPE tokenizer: ``tokenizer_folder(template, normalise=False)``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def make(template: str | None = CHATML, *, normalise: bool = False) -> Path:
        tokenizer = Tokenizer(models.BPE())
        if normalise:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = ["<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(_TRAINING_TEXT, trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special)
        fast.chat_template = template
        folder = tmp_path_factory.mktemp("tokenizer")
        fast.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def make_sense() -> Callable[..., Sense]:
    """Factory of senses; every field but the slug has a default."""

    def make(slug: str, **fields: Any) -> Sense:
        defaults: dict[str, Any] = {
            "gloss": f"the {slug} sense",
            "note": 'Here "{mention}" means ' + slug + ".",
            "domains": frozenset(),
            "bias": 0.0,
            "weights": {},
            "cues": {},
        }
        return Sense(slug=slug, **(defaults | fields))

    return make


@pytest.fixture(scope="session")
def make_concept(make_sense: Callable[..., Sense]) -> Callable[..., Concept]:
    """Factory of concepts, two plain senses by default."""

    def make(slug: str = "bank", **fields: Any) -> Concept:
        defaults: dict[str, Any] = {
            "pack": "test",
            "forms": (slug,),
            "site": "mention",
            "accuracy": 1.0,
            "text_accuracy": None,
            "read_below": 0.2,
            "intended_above": 0.8,
            "senses": (make_sense("first"), make_sense("second")),
        }
        return Concept(slug=slug, **(defaults | fields))

    return make
