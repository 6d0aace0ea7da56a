"""A catalog as people browse it: senses with their figures, and labelled contexts, in a stable order."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from sae_runtime.catalog.browse import SenseSummary, sense_contexts, sense_rows
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.store import create_catalog
from sae_runtime.catalog.tables import ConceptRow, NoteRow, SenseContextRow, SenseRow
from sae_runtime.errors import CatalogError


def sense_row(slug: str, *texts: str, **figures: float) -> SenseRow:
    return SenseRow(
        slug=slug,
        gloss=f"the {slug}",
        domains=[],
        contexts=[SenseContextRow(text=text, start=0, end=4, held_out=False) for text in texts],
        notes=[NoteRow(text="{mention} is " + slug, **figures)],
    )


def concept_row(slug: str, *senses: SenseRow) -> ConceptRow:
    return ConceptRow(
        slug=slug, pack="homographs", forms=[slug, f"{slug}s"], site="rest", accuracy=0.9, text_accuracy=None,
        read_below=0.2, intended_above=0.8, senses=list(senses),
    )  # fmt: skip


@pytest.fixture
def catalog(location: CatalogLocation) -> CatalogLocation:
    """Two concepts, written against the alphabet; one sense was measured, one has no contexts."""
    engine = create_catalog(location)
    measured = {"lift": 0.5, "lift_low": 0.2, "lift_high": 0.8, "accuracy_lift": 0.1, "harm": 0.02, "trials": 40}
    with Session(engine) as session, session.begin():
        session.add(concept_row("seal", sense_row("wax", "seal B", "seal A"), sense_row("animal")))
        session.flush()
        session.add(concept_row("bank", sense_row("river", "bank C", **measured), sense_row("money", "bank D")))
    engine.dispose()
    return location


def test_senses_come_by_concept_then_in_the_catalogs_order(catalog: CatalogLocation) -> None:
    names = [(row.concept, row.sense) for row in sense_rows(catalog)]
    assert names == [("bank", "river"), ("bank", "money"), ("seal", "wax"), ("seal", "animal")]


def test_a_sense_has_its_concepts_and_its_notes_figures(catalog: CatalogLocation) -> None:
    assert sense_rows(catalog)[0] == SenseSummary(
        concept="bank", sense="river", gloss="the river", pack="homographs", forms=("bank", "banks"), read_accuracy=0.9,
        text_accuracy=None, contexts=1, note="{mention} is river", wording="pack", enabled=True, lift=0.5, lift_low=0.2,
        lift_high=0.8, accuracy_lift=0.1, harm=0.02, trials=40,
    )  # fmt: skip


def test_what_was_not_measured_is_none_not_zero(catalog: CatalogLocation) -> None:
    row = sense_rows(catalog)[1]
    assert (row.lift, row.lift_low, row.lift_high, row.accuracy_lift, row.harm, row.trials) == (None,) * 5 + (0,)


def test_contexts_are_counted_per_sense_and_none_is_zero(catalog: CatalogLocation) -> None:
    assert [row.contexts for row in sense_rows(catalog)] == [1, 1, 2, 0]


def test_contexts_keep_their_order_and_a_sense_without_any_is_listed(catalog: CatalogLocation) -> None:
    assert list(sense_contexts(catalog, "seal").items()) == [
        ("wax", [("seal B", 0, 4), ("seal A", 0, 4)]),
        ("animal", []),
    ]


@pytest.mark.parametrize("concept", ["whale", "", "\0", "bank\0", "\ud800", "%"])
def test_an_unknown_concept_has_no_contexts(catalog: CatalogLocation, concept: str) -> None:
    assert sense_contexts(catalog, concept) == {}


def test_concepts_are_in_the_order_of_their_characters_on_every_database(location: CatalogLocation) -> None:
    """PostgreSQL's locale would put more_than behind moreover, and a_b behind ab."""
    slugs = ["ab", "a_b", "moreover", "more_than", "b1", "b_1"]
    engine = create_catalog(location)
    with Session(engine) as session, session.begin():
        session.add_all(concept_row(slug, sense_row("one")) for slug in slugs)
    engine.dispose()
    assert [row.concept for row in sense_rows(location)] == sorted(slugs)


def test_a_missing_catalog_is_a_catalog_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"none\.sqlite"):
        sense_rows(tmp_path / "none.sqlite")
    with pytest.raises(CatalogError, match=r"none\.sqlite"):
        sense_contexts(tmp_path / "none.sqlite", "bank")
