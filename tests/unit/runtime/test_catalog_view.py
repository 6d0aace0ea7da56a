"""What serving loads from a catalog: plain objects that match the rows."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from sae_runtime.catalog.store import create_catalog
from sae_runtime.catalog.tables import (
    BuildRow,
    ConceptRow,
    CueRow,
    FeatureExampleRow,
    FeatureRow,
    ModelRow,
    NoteRow,
    SaeRow,
    SenseContextRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.catalog.view import CatalogView, Feature, feature_detail, latest_build
from sae_runtime.errors import CatalogError
from sae_runtime.models import ModelFingerprint


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
def catalog(tmp_path: Path) -> Path:
    """One concept with two senses that read latents 70 and 9 of the full dictionary."""
    path = tmp_path / "catalog.sqlite"
    engine = create_catalog(path)
    with Session(engine) as session, session.begin():
        owner = ModelRow(name="tiny", weights="w", config="c", tokenizer="t", chat_template="h")
        sae = SaeRow(model=owner, layer=3, hook_name="h", architecture="jumprelu", d_in=4, d_sae=99, fingerprint="f")
        session.add(sae)
        session.flush()
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
    engine.dispose()
    return path


def test_the_view_holds_what_the_rows_say(catalog: Path) -> None:
    view = CatalogView.load(catalog)
    assert (view.model_name, view.layer, view.sae_fingerprint) == ("tiny", 3, "f")
    assert view.model == ModelFingerprint(weights="w", config="c", tokenizer="t", chat_template="h")
    assert view.features == {70: Feature(70, "money", 0.1), 9: Feature(9, "water", 0.2)}
    (concept,) = view.concepts
    assert (concept.slug, concept.forms, concept.site) == ("bank", ("bank", "banks"), "after")
    assert (concept.read_below, concept.intended_above, concept.text_accuracy) == (0.1, 0.8, None)
    assert [sense.slug for sense in concept.senses] == ["money", "river"]


def test_signature_weights_are_keyed_by_latent_of_the_full_dictionary(catalog: Path) -> None:
    money, river = CatalogView.load(catalog).concepts[0].senses
    assert (money.bias, money.weights, river.weights) == (0.5, {70: 1.5}, {9: -2.0})
    assert (money.cues, money.domains) == ({"moneystem": 1.25}, frozenset({"money studies"}))
    assert money.note == "{mention} is money"


def test_contexts_are_counted_by_concept(catalog: Path) -> None:
    assert CatalogView.load(catalog).contexts_per_concept == {"bank": 4}


def test_a_feature_s_details_have_its_examples_strongest_first_and_its_concepts(catalog: Path) -> None:
    detail = feature_detail(catalog, 70)
    assert detail is not None
    assert [example["activation"] for example in detail.examples] == [7.0, 5.0, 2.0]
    assert detail.examples[0].keys() == {"text", "start", "end", "activation"}
    assert detail.concepts
    assert feature_detail(catalog, 12345) is None


def test_the_latest_build_is_the_last_one_added(catalog: Path, tmp_path: Path) -> None:
    build = latest_build(catalog)
    assert build is not None
    assert (build.config, build.created_at) == ({"n": 2}, datetime(2025, 1, 2))
    create_catalog(tmp_path / "empty.sqlite").dispose()
    assert latest_build(tmp_path / "empty.sqlite") is None


def test_an_empty_catalog_is_refused(tmp_path: Path) -> None:
    create_catalog(tmp_path / "empty.sqlite").dispose()
    with pytest.raises(CatalogError, match=r"empty\.sqlite is empty") as caught:
        CatalogView.load(tmp_path / "empty.sqlite")
    assert "sensecheck build" in caught.value.remedy
