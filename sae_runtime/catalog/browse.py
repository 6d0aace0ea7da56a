"""A catalog for people who look around in it: senses with what was measured of them, and their labelled contexts."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import selectinload

from sae_runtime.catalog.excerpts import MAX_LABEL, MAX_LISTED, MAX_TEXT, cut, excerpt
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.store import open_catalog, storable
from sae_runtime.catalog.tables import ConceptRow, SenseContextRow, SenseRow


@dataclass(frozen=True)
class SenseSummary:
    """One sense of a concept.

    ``read_accuracy`` and ``text_accuracy`` are the concept's, as shares of held-out contexts; ``contexts`` counts the
    labelled sentences. ``note`` and what follows it are the note's; see
    :class:`~sae_runtime.catalog.tables.NoteRow`. Lifts are in nats, ``accuracy_lift`` and ``harm`` are shares; None where
    it was not measured.
    """

    concept: str
    sense: str
    gloss: str
    pack: str
    forms: tuple[str, ...]
    read_accuracy: float
    text_accuracy: float | None
    contexts: int
    note: str
    wording: str
    enabled: bool
    lift: float | None
    lift_low: float | None
    lift_high: float | None
    accuracy_lift: float | None
    harm: float | None
    trials: int


def sense_rows(location: CatalogLocation | str) -> list[SenseSummary]:
    """All senses of the catalog at ``location``, by concept, then in the catalog's order.

    Raises:
        CatalogError: it is missing, damaged, or of another revision.
    """
    query = select(SenseRow).order_by(SenseRow.id).options(selectinload(SenseRow.concept), selectinload(SenseRow.notes))
    counted = select(SenseContextRow.sense_id, func.count()).group_by(SenseContextRow.sense_id)
    with open_catalog(location) as session:
        counts = {sense: int(count) for sense, count in session.execute(counted)}
        rows = sorted(session.scalars(query), key=lambda row: row.concept.slug)  # databases collate differently
        return [_summary(row, counts.get(row.id, 0)) for row in rows]


def sense_contexts(location: CatalogLocation | str, concept: str) -> dict[str, list[tuple[str, int, int]]]:
    """The labelled sentences of each sense of ``concept`` as ``(text, start, end)``, where ``text[start:end]`` is the
    mention. Both senses and sentences stand in the catalog's order; an unknown concept has no senses.

    Raises:
        CatalogError: the catalog is missing, damaged, or of another revision.
    """
    if not storable(concept):
        return {}
    query = (
        select(SenseRow.slug, SenseContextRow.text, SenseContextRow.start, SenseContextRow.end)
        .join(SenseRow.concept)
        .outerjoin(SenseRow.contexts)
        .where(ConceptRow.slug == concept)
        .order_by(SenseRow.id, SenseContextRow.id)
    )
    found: dict[str, list[tuple[str, int, int]]] = {}
    with open_catalog(location) as session:
        for sense, text, start, end in session.execute(query):
            contexts = found.setdefault(sense, [])
            if text is not None and len(contexts) < MAX_LISTED:  # a sense may have no contexts
                contexts.append(excerpt(text, start, end))
    return found


def _summary(row: SenseRow, contexts: int) -> SenseSummary:
    concept, note = row.concept, row.notes[0]
    return SenseSummary(
        concept=concept.slug,
        sense=row.slug,
        gloss=cut(row.gloss, MAX_LABEL),
        pack=concept.pack,
        forms=tuple(concept.forms),
        read_accuracy=concept.accuracy,
        text_accuracy=concept.text_accuracy,
        contexts=contexts,
        note=cut(note.text, MAX_TEXT),
        wording=note.wording,
        enabled=note.enabled,
        lift=note.lift,
        lift_low=note.lift_low,
        lift_high=note.lift_high,
        accuracy_lift=note.accuracy_lift,
        harm=note.harm,
        trials=note.trials,
    )
