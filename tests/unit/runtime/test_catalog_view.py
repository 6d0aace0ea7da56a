"""What serving loads from a catalog: plain objects that match the rows."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pytest
from small_catalogs import filling
from sqlalchemy import inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from sae_runtime.catalog.entries import Early
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.store import catalog_engine, create_catalog, open_catalog
from sae_runtime.catalog.tables import (
    BuildRow,
    ConceptRow,
    CueRow,
    EarlyReadingRow,
    EarlySignatureRow,
    EarlyWeightRow,
    FeatureExampleRow,
    FeatureRow,
    NoteRow,
    SenseContextRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.catalog.view import CatalogView, Feature, feature_detail, latest_build
from sae_runtime.detector.detector import Readout
from sae_runtime.errors import CatalogError
from sae_runtime.models import ModelFingerprint

Place = TypeVar("Place", bound=CatalogLocation)


def sense_row(slug: str, feature: FeatureRow, weight: float) -> SenseRow:
    return SenseRow(
        slug=slug,
        gloss=f"the {slug}",
        domains=[f"{slug} studies"],
        contexts=[SenseContextRow(text="a bank", start=2, end=6, held_out=held) for held in (False, True)],
        signature=SignatureRow(bias=0.5, weights=[SignatureWeightRow(feature_id=feature.id, weight=weight)]),
        cues=[CueRow(stem=f"{slug}stem", weight=1.25)],
        notes=[NoteRow(text="{mention} is " + slug)],
    )


@pytest.fixture
def catalog(location: CatalogLocation) -> CatalogLocation:
    """One concept with two senses that read latents 70 and 9 of the full dictionary."""
    return write_catalog(location)


def write_catalog(location: Place) -> Place:
    with filling(location) as (session, sae):
        examples = [FeatureExampleRow(text=f"text {n}", start=0, end=4, activation=float(n)) for n in (2, 7, 5)]
        features = [
            FeatureRow(sae_id=sae.id, index=70, label="money", density=0.1, max_activation=9.0, examples=examples),
            FeatureRow(sae_id=sae.id, index=9, label="water", density=0.2, max_activation=3.0),
        ]
        session.add_all(features)
        session.flush()
        session.add(
            ConceptRow(
                slug="bank", pack="test", forms=["bank", "banks"], site="after", accuracy=0.9,
                read_below=0.1, intended_above=0.8,
                senses=[sense_row("money", features[0], 1.5), sense_row("river", features[1], -2.0)],
            )
        )  # fmt: skip
        for number in (1, 2):
            at = datetime(2025, 1, number)
            session.add(BuildRow(sae_id=sae.id, created_at=at, config={"n": number}, data={}, versions={}, figures={}))
    return location


def test_the_view_holds_what_the_rows_say(catalog: CatalogLocation) -> None:
    view = CatalogView.load(catalog)
    assert (view.model_name, view.layer, view.sae_fingerprint) == ("tiny", 3, "f")
    assert view.model == ModelFingerprint(weights="w", config="c", tokenizer="t", chat_template="h")
    assert view.features == {70: Feature(70, "money", 0.1), 9: Feature(9, "water", 0.2)}
    (concept,) = view.concepts
    assert (concept.slug, concept.forms, concept.site) == ("bank", ("bank", "banks"), "after")
    assert (concept.read_below, concept.intended_above, concept.text_accuracy) == (0.1, 0.8, None)
    assert [sense.slug for sense in concept.senses] == ["money", "river"]


def test_signature_weights_are_keyed_by_latent_of_the_full_dictionary(catalog: CatalogLocation) -> None:
    money, river = CatalogView.load(catalog).concepts[0].senses
    assert (money.bias, money.weights, river.weights) == (0.5, {70: 1.5}, {9: -2.0})
    assert (money.cues, money.domains) == ({"moneystem": 1.25}, frozenset({"money studies"}))
    assert money.note == "{mention} is money"


def test_an_early_reading_is_loaded_with_the_senses_in_their_order(location: CatalogLocation) -> None:
    write_catalog(location)
    with open_catalog(location, writable=True) as session:
        concept = session.scalars(select(ConceptRow)).one()
        money, river = concept.senses
        feature = session.scalars(select(FeatureRow).where(FeatureRow.index == 9)).one()
        concept.early = EarlyReadingRow(read_below=0.3, intended_above=0.9, seconded_above=0.95)
        river.early = EarlySignatureRow(bias=1.5, weights=[EarlyWeightRow(feature_id=feature.id, weight=-3.0)])
        money.early = EarlySignatureRow(bias=-1.5)
        session.commit()
    (read,) = CatalogView.load(location).concepts
    assert read.early == Early(
        read_below=0.3, intended_above=0.9, seconded_above=0.95, biases=(-1.5, 1.5), weights=({}, {9: -3.0})
    )
    assert Readout.early(read).latents.tolist() == [9]  # type: ignore[union-attr]
    detail = feature_detail(location, 9)
    assert detail is not None
    assert len(detail.concepts) == 1


def test_contexts_are_counted_by_concept(catalog: CatalogLocation) -> None:
    assert CatalogView.load(catalog).contexts_per_concept == {"bank": 4}


def test_a_feature_s_details_have_its_examples_strongest_first_and_its_concepts(catalog: CatalogLocation) -> None:
    detail = feature_detail(catalog, 70)
    assert detail is not None
    assert [example["activation"] for example in detail.examples] == [7.0, 5.0, 2.0]
    assert detail.examples[0].keys() == {"text", "start", "end", "activation"}
    assert detail.concepts
    assert feature_detail(catalog, 12345) is None
    assert feature_detail(catalog, 70, sae="f") == detail
    assert feature_detail(catalog, 70, sae="another") is None


def test_the_latest_build_is_the_last_one_added(
    catalog: CatalogLocation, new_location: Callable[[], CatalogLocation]
) -> None:
    build = latest_build(catalog)
    assert build is not None
    assert (build.config, build.created_at) == ({"n": 2}, datetime(2025, 1, 2))
    empty = new_location()
    create_catalog(empty).dispose()
    assert latest_build(empty) is None


def test_an_empty_catalog_is_refused(location: CatalogLocation) -> None:
    create_catalog(location).dispose()
    with pytest.raises(CatalogError, match=re.escape(f"{location} is empty")) as caught:
        CatalogView.load(location)
    assert "sensecheck build" in caught.value.remedy


@pytest.mark.parametrize("index", [-1, 2**31, 2**63, -(10**30), 10**30])
def test_an_index_beyond_the_databases_integers_is_not_catalogued(catalog: CatalogLocation, index: int) -> None:
    assert feature_detail(catalog, index) is None


def test_rows_that_were_written_anew_stay_where_they_were(catalog: CatalogLocation) -> None:
    """PostgreSQL writes a changed row to another place, and would return it last."""
    before, details = CatalogView.load(catalog), feature_detail(catalog, 70)
    engine = catalog_engine(catalog, writable=True)
    with Session(engine) as session, session.begin():
        for table in (ConceptRow, SenseRow, CueRow, FeatureRow, NoteRow, SignatureWeightRow, FeatureExampleRow):
            first = session.scalars(select(table).limit(1)).one()
            name = next(column.key for column in inspect(table).columns if not column.primary_key)
            flag_modified(first, name)
    engine.dispose()
    after = CatalogView.load(catalog)
    assert after == before
    assert list(after.features) == list(before.features)
    assert feature_detail(catalog, 70) == details


# Found by fuzzing: what SQLite takes as a value of any column, and what it left behind when rows went.
SENSELESS = {
    "a concept without senses": "DELETE FROM senses",
    "a sense of no concept": "UPDATE senses SET concept_id = 99",
    "a sense without a note": "DELETE FROM notes",
    "a sense without a signature": "DELETE FROM signatures",
    "a site that is none": "UPDATE concepts SET site = 'nowhere'",
    "forms that are no list": "UPDATE concepts SET forms = '\"bank\"'",
    "forms that are no JSON": "UPDATE concepts SET forms = 'x'",
    "a form that is a number": "UPDATE concepts SET forms = '[1]'",
    "domains that are no list": "UPDATE senses SET domains = '\"money\"'",
    "a label of bytes": "UPDATE features SET label = x'fffe'",
    "a slug of bytes": "UPDATE concepts SET slug = x'fffe'",
    "a sense's slug of bytes": "UPDATE senses SET slug = x'fffe' WHERE slug = 'river'",
    "a note of bytes": "UPDATE notes SET text = x'fffe'",
    "a weight that is text": "UPDATE signature_weights SET weight = 'x'",
    "a threshold that is text": "UPDATE concepts SET read_below = 'x'",
    "a cue that weighs text": "UPDATE cues SET weight = 'x'",
}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "stored"])
@pytest.mark.parametrize("damage", SENSELESS.values(), ids=SENSELESS.keys())
def test_values_that_make_no_sense_are_a_catalog_error(sqlite_catalog: Path, damage: str, whole: bool) -> None:
    execute(sqlite_catalog, damage)
    with pytest.raises(CatalogError) as caught:
        view = CatalogView.load(sqlite_catalog, whole=whole)
        list(view.concepts)
        list(view.features.values())
    assert "catalog" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "damage",
    ["UPDATE builds SET config = 'x'", "UPDATE builds SET created_at = 'x'", "UPDATE builds SET created_at = x'ff'"],
)
def test_a_build_that_makes_no_sense_is_a_catalog_error(sqlite_catalog: Path, damage: str) -> None:
    execute(sqlite_catalog, damage)
    with pytest.raises(CatalogError, match=r"makes? no sense"):
        latest_build(sqlite_catalog)


@pytest.mark.parametrize(
    "damage",
    ["UPDATE features SET predicate = 'x'", "UPDATE features SET max_activation = 'x'",
     "UPDATE feature_examples SET activation = 'x'", "UPDATE feature_examples SET text = x'fffe'",
     "UPDATE features SET label = x'fffe'"],
)  # fmt: skip
def test_details_that_make_no_sense_are_a_catalog_error(sqlite_catalog: Path, damage: str) -> None:
    execute(sqlite_catalog, damage)
    with pytest.raises(CatalogError, match=r"makes? no sense"):
        feature_detail(sqlite_catalog, 70)


@pytest.fixture
def sqlite_catalog(tmp_path: Path) -> Path:
    """The same catalog in a file, whatever database the other tests use."""
    return write_catalog(tmp_path / "catalog.sqlite")


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
