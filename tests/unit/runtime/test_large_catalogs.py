"""A large catalog stays in its database: readings are the same, and a prompt's work does not grow with what lies there."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, insert, update
from sqlalchemy.orm import Session

from sae_runtime.catalog import stored, view
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.lookup import ListedConcepts, OverlaidConcepts
from sae_runtime.catalog.store import catalog_engine, create_catalog, seal_catalog
from sae_runtime.catalog.stored import Recent, StoredConcepts, StoredFeatures
from sae_runtime.catalog.tables import Base
from sae_runtime.catalog.view import CatalogView, Concept, feature_detail
from sae_runtime.detector import Detector, Plan
from sae_runtime.detector.mentions import MentionFinder
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.errors import CatalogError

TEXT = "The seal by the bank looks worn out, so a bat and a crane broke the ice. It barked in the water."


@pytest.fixture(scope="module")
def small(shipped: CatalogLocation) -> tuple[CatalogView, CatalogView]:
    """The small model's catalog, loaded whole and left in its database."""
    return CatalogView.load(shipped, whole=True), CatalogView.load(shipped, whole=False)


def test_what_is_fetched_is_what_is_loaded_whole(small: tuple[CatalogView, CatalogView]) -> None:
    whole, left = small
    assert isinstance(left.features, StoredFeatures)
    assert isinstance(left.concepts, StoredConcepts)
    assert dict(left.features) == dict(whole.features)
    assert list(left.features) == list(whole.features)
    assert list(left.concepts) == list(whole.concepts)
    assert (len(left.features), len(left.concepts)) == (len(whole.features), len(whole.concepts))
    assert left.fingerprints == whole.fingerprints


def test_concepts_are_found_by_place_key_and_slug(small: tuple[CatalogView, CatalogView]) -> None:
    whole, left = small
    assert isinstance(left.concepts, StoredConcepts)
    assert left.concepts[-1] == whole.concepts[-1]
    assert left.concepts[3:6] == list(whole.concepts[3:6])
    for key in (0, 41, len(whole.concepts) - 1):
        assert left.concepts.key_of(whole.concepts[key].slug) == key
        assert left.concepts.slug_of(key) == whole.concepts[key].slug
        assert left.concepts.named(whole.concepts[key].slug) == whole.concepts[key]
    assert left.concepts.named("zzz") is left.concepts.named("") is left.concepts.named("\0") is None
    with pytest.raises(IndexError):
        left.concepts[len(whole.concepts)]


def test_features_that_are_not_catalogued_are_not_found(small: tuple[CatalogView, CatalogView]) -> None:
    _, left = small
    known = next(iter(left.features))
    assert left.labels([known, 10**8]) == {known: left.features[known].label}
    assert 10**8 not in left.features
    with pytest.raises(KeyError):
        left.features[10**8]


def features_of(plan: Plan, seed: int) -> PromptFeatures:
    """Random activations of a few latents at every token."""
    rng = np.random.default_rng(seed)
    count = len(plan.chat.token_ids)
    wanted = rng.choice(plan.latents or range(9216), (count, 20))
    wanted.sort(axis=1)
    content = np.ones(count, bool)
    content[0] = False
    positions = np.repeat(np.arange(count, dtype=np.int32), 20)
    return PromptFeatures(content, positions, wanted.ravel().astype(np.int32), rng.random(20 * count, np.float32) * 9)


@pytest.mark.parametrize("tokens", [False, True])
def test_readings_are_the_same_however_the_catalog_is_opened(
    small: tuple[CatalogView, CatalogView], tokenizer_folder: Callable[..., Path], tokens: bool
) -> None:
    encoder = ChatEncoder(tokenizer_folder())
    readings = []
    for each in small:
        detector = Detector(each, encoder, 512)
        for seed in range(5):
            plan = detector.plan([{"role": "user", "content": TEXT}], tokens=tokens, domain="biology")
            readings.append(detector.reading(plan, features_of(plan, seed)))
    assert readings[:5] == readings[5:]
    assert len(readings[0].mentions) >= 4
    assert any(reading.misreads for reading in readings)
    assert all(feature.label for reading in readings for misread in reading.misreads for feature in misread.features)


def test_picks_are_checked_by_name(
    small: tuple[CatalogView, CatalogView], tokenizer_folder: Callable[..., Path]
) -> None:
    detectors = [Detector(each, ChatEncoder(tokenizer_folder()), 512) for each in small]
    messages: list[Any] = [{"role": "user", "content": TEXT}]
    complaints = []
    for detector in detectors:
        for picks in ({"bank": "no such sense"}, {"no such concept": "river"}):
            with pytest.raises(Exception, match="cannot be picked") as caught:
                detector.plan(messages, picks=picks)
            complaints.append(str(caught.value))
    assert complaints[:2] == complaints[2:]


def test_several_threads_may_ask_at_once(small: tuple[CatalogView, CatalogView]) -> None:
    whole, left = small
    assert isinstance(left.concepts, StoredConcepts)
    left.concepts.forget()
    keys = [key * 7 % len(whole.concepts) for key in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(left.concepts.__getitem__, keys)) == [whole.concepts[key] for key in keys]


def test_what_was_mentioned_lately_is_not_fetched_again(
    small: tuple[CatalogView, CatalogView], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, left = small
    assert isinstance(left.concepts, StoredConcepts)
    left.concepts.forget()
    fetched: list[int] = []

    def counted(connection: Any, ids: Any) -> Any:
        fetched.extend(ids)
        return load(connection, ids)

    load = stored.load_concepts
    monkeypatch.setattr(stored, "load_concepts", counted)
    for keys in ([1, 2], [2, 3], [3, 1], [2]):
        assert left.concepts.many(keys).keys() == set(keys)
    assert len(fetched) == 3


def test_of_values_that_are_kept_the_last_used_ones_stay() -> None:
    recent: Recent[int, str] = Recent(2)
    recent.put({1: "a", 2: "b"})
    assert recent.get([1, 1, 3]) == ({1: "a"}, [3])
    recent.put({3: "c"})
    assert recent.get([1, 2, 3]) == ({1: "a", 3: "c"}, [2])
    recent.forget()
    assert recent.get([1]) == ({}, [1])


# What becomes of a catalog that stays open.


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """Factory of catalogs: ``made(concepts, features, name)``, each concept of two senses over four latents."""

    def make(concepts: int, features: int, name: str = "catalog.sqlite") -> Path:
        path = tmp_path / name
        engine = create_catalog(path)
        numbers = range(1, concepts + 1)
        senses = [(2 * number + which, number, which) for number in numbers for which in (0, 1)]
        picks = [[1 + (number * 7919 + step * features // 4) % features for step in range(4)] for number in numbers]
        rows: dict[str, list[dict[str, Any]]] = {
            "models": [{"id": 1, "name": "tiny", "weights": "w", "config": "c", "tokenizer": "t", "chat_template": "h"}],
            "saes": [{"id": 1, "model_id": 1, "layer": 3, "hook_name": "h", "architecture": "jumprelu", "d_in": 4,
                      "d_sae": features, "fingerprint": "f"}],
            "features": [{"id": number + 1, "sae_id": 1, "index": 2 * number, "label": f"label {number}", "density": 0.1,
                          "max_activation": 1.0} for number in range(features)],
            "concepts": [{"id": number, "slug": f"word{number}", "pack": "p", "forms": [f"word{number}"], "site": "mention",
                          "accuracy": 1.0, "read_below": 0.5, "intended_above": 0.5} for number in numbers],
            "senses": [{"id": s, "concept_id": number, "slug": f"sense{which}", "gloss": "g", "domains": ["d"] * which}
                       for s, number, which in senses],
            "signatures": [{"id": s, "sense_id": s, "bias": 0.0} for s, _, _ in senses],
            "signature_weights": [{"signature_id": s, "feature_id": f, "weight": 1.0 - 2 * which}
                                  for s, number, which in senses for f in set(picks[number - 1])],
            "cues": [{"sense_id": s, "stem": "cue", "weight": 1.0} for s, _, _ in senses],
            "notes": [{"sense_id": s, "text": "A note."} for s, _, _ in senses],
        }  # fmt: skip
        with engine.begin() as connection:
            for table, values in rows.items():
                connection.execute(insert(Base.metadata.tables[table]), values)
        engine.dispose()
        seal_catalog(path)
        return path

    return make


def test_a_catalog_is_left_in_its_database_from_some_size_on(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(6, 40)
    assert isinstance(CatalogView.load(path).concepts, tuple)
    for limit in ("WHOLE_CONCEPTS", "WHOLE_FEATURES"):
        with monkeypatch.context() as patch:
            patch.setattr(view, limit, 5)
            assert isinstance(CatalogView.load(path).concepts, StoredConcepts)


def test_a_file_that_is_open_is_read_to_the_end_when_another_takes_its_place(made: Callable[..., Path]) -> None:
    path = made(6, 40)
    open_one = CatalogView.load(path, whole=False)
    made(3, 10, "other.sqlite").replace(path)
    assert [concept.slug for concept in open_one.concepts] == [f"word{number}" for number in range(1, 7)]
    assert len(CatalogView.load(path, whole=False).concepts) == 3
    path.unlink()
    assert open_one.features[0].label == "label 0"


def test_a_catalog_that_is_written_over_by_another_build_is_noticed(made: Callable[..., Path]) -> None:
    path = made(6, 40)
    open_one = CatalogView.load(path, whole=False)
    assert open_one.features[0].label == "label 0"
    engine = catalog_engine(path, writable=True)
    with Session(engine) as session, session.begin():
        session.execute(update(Base.metadata.tables["saes"]).values(fingerprint="other"))
    engine.dispose()
    with pytest.raises(CatalogError, match="was replaced") as caught:
        open_one.concepts[0]
    assert caught.value.remedy


def test_notes_that_are_switched_off_in_place_do_not_disturb_readers(made: Callable[..., Path]) -> None:
    path = made(6, 40)
    open_one = CatalogView.load(path, whole=False)
    assert open_one.concepts[0].senses[0].noted
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as writer:  # nobody holds a lock
        writer.execute("UPDATE notes SET enabled = 0")
        writer.commit()
    assert not open_one.concepts[1].senses[0].noted


def test_a_locked_catalog_is_told_and_heals(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_runtime.catalog.store.BUSY_TIMEOUT_MS", 10)
    path = made(6, 40)
    open_one = CatalogView.load(path, whole=False)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogError, match="locked"):
            open_one.concepts[0]
        writer.execute("ROLLBACK")
    assert open_one.concepts[0].slug == "word1"


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM notes", "DELETE FROM signatures", "DELETE FROM features", "UPDATE concepts SET forms = '3'",
     "DELETE FROM concepts"],
)  # fmt: skip
def test_rows_that_contradict_each_other_are_a_catalog_error(made: Callable[..., Path], damage: str) -> None:
    path = made(6, 40)
    open_one = CatalogView.load(path, whole=False)
    with contextlib.closing(sqlite3.connect(path)) as writer:
        writer.execute(damage)
        writer.commit()
    with pytest.raises(CatalogError) as caught:
        open_one.concepts[0]
    assert "make no sense" in caught.value.message
    assert "Restore it" in caught.value.remedy


# The law: work by prompt, not by catalog.


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts the instructions of SQLite's machine on connections that stay open: ``steps[0]``."""
    counter = [0]

    def tick() -> int:
        counter[0] += 1
        return 0

    def counted(location: CatalogLocation, *, writable: bool) -> Any:
        engine = catalog_engine(location, writable=writable)
        event.listen(engine, "connect", lambda connection, _: connection.set_progress_handler(tick, 1))
        return engine

    monkeypatch.setattr(stored, "catalog_engine", counted)
    yield counter


def test_a_prompt_takes_as_many_steps_in_a_hundredfold_catalog(
    made: Callable[..., Path], steps: list[int], tokenizer_folder: Callable[..., Path]
) -> None:
    encoder = ChatEncoder(tokenizer_folder())
    taken, readings = [], []
    for size in (20, 2_000):
        detector = Detector(CatalogView.load(made(size, 10 * size, f"{size}.sqlite"), whole=False), encoder, 512)
        steps[0] = 0
        plan = detector.plan([{"role": "user", "content": "word3 or word17, then a cue"}], tokens=False, domain="d")
        assert plan.latents is not None
        assert len(plan.latents) == 8
        count = len(plan.chat.token_ids)
        at = np.repeat(np.arange(1, count, dtype=np.int32), 8)
        values = np.ones(len(at), np.float32)
        content = np.arange(count) > 0
        found = PromptFeatures(content, at, np.tile(np.array(plan.latents, np.int32), count - 1), values)
        readings.append([(m.concept, m.read_as, len(m.features)) for m in detector.reading(plan, found).misreads])
        taken.append(steps[0])
    assert readings == [[("word3", "sense0", 4), ("word17", "sense0", 4)]] * 2
    assert 0 < taken[1] < 1.1 * taken[0]


def test_a_feature_s_row_is_found_by_index_not_by_search(made: Callable[..., Path]) -> None:
    path = made(2, 500)
    detail = feature_detail(path, 2 * 123)
    assert detail is not None
    assert detail.label == "label 123"
    assert feature_detail(path, 2 * 123 + 1) is None
    with contextlib.closing(sqlite3.connect(path)) as connection:
        query = 'SELECT label FROM features WHERE sae_id = (SELECT id FROM saes ORDER BY id LIMIT 1) AND "index" = 246'
        plan = " ".join(row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + query))
    assert "SEARCH features USING INDEX" in plan


# Finders beside each other.

WORDS = st.text("ab ", min_size=1, max_size=3).map(str.strip).filter(bool)
FORMS = st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=4)


@given(base=FORMS, own=FORMS, more=FORMS, text=st.text("ab A", max_size=30))
def test_a_finder_beside_another_finds_what_one_of_all_would(
    make_concept: Callable[..., Concept], base: Any, own: Any, more: Any, text: str
) -> None:
    def named(kind: str, some: list[list[str]]) -> list[Concept]:
        return [make_concept(f"{kind}{number}", forms=tuple(forms)) for number, forms in enumerate(some)]

    known, finder = named("base", base), MentionFinder(named("base", base))
    for coming in (named("own", own), named("more", more)):
        taken = {form.casefold() for concept in coming for form in concept.forms}
        known = [c for c in known if not taken & {form.casefold() for form in c.forms}] + coming
        finder = finder.beside(coming)
    assert list(finder.concepts) == known
    assert finder.find(text) == MentionFinder(known).find(text)


def test_overlaid_concepts_are_found_by_key_and_slug(make_concept: Callable[..., Concept]) -> None:
    base = ListedConcepts([make_concept("bank"), make_concept("bat")])
    both = OverlaidConcepts(base, frozenset({1}), ListedConcepts([make_concept("own")], base.free_key))
    assert [concept.slug for concept in both] == ["bank", "own"]
    assert [both.key_of(slug) for slug in ("bank", "bat", "own")] == [0, None, 2]
    assert [both.slug_of(key) for key in both.keys] == ["bank", "own"]
    assert dict(both.forms()) == {0: ("bank",), 2: ("own",)}
    assert both.free_key == 3
    assert both.named("bat") is None
