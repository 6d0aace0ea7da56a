"""Helpers for the unit tests of ``sae_runtime``: a private cache, catalogs, tiny tokenizers, hand-made concepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from postgres_server import PostgresServer
from sqlalchemy import URL

from sae_runtime.catalog.copying import copy_catalog
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.view import Concept, Sense
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import CATALOG_FILE, artefacts_for

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


_DATABASES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgres))


@pytest.fixture(params=_DATABASES)
def new_location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], CatalogLocation]]:
    """Factory of places for catalogs, on each database in turn: files that are not there yet, or empty databases."""
    if request.param == "sqlite":
        names = (f"catalog-{number}.sqlite" for number in count())
        yield lambda: tmp_path / next(names)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    made: list[URL] = []

    def make() -> URL:
        made.append(server.new_database())
        return made[-1]

    yield make
    for url in made:
        server.drop(url.database)


@pytest.fixture
def location(new_location: Callable[[], CatalogLocation]) -> CatalogLocation:
    """A place for one catalog, on each database in turn."""
    return new_location()


@pytest.fixture(scope="session", params=_DATABASES)
def shipped(request: pytest.FixtureRequest) -> CatalogLocation:
    """The small model's shipped catalog: the file itself, and a copy of it on PostgreSQL; nobody writes to it."""
    file = artefacts_for(SMALL_MODEL) / CATALOG_FILE
    if request.param == "sqlite":
        return file
    url = request.getfixturevalue("postgres").new_database()
    copy_catalog(file, url)
    return url


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
