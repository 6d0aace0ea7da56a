"""From a catalog's rows to plain objects: all of them, or those that are asked for, by the same few queries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, select

from sae_runtime.catalog.entries import Concept, Early, Feature, Sense
from sae_runtime.catalog.tables import (
    ConceptRow,
    CueRow,
    EarlyReadingRow,
    EarlySignatureRow,
    EarlyWeightRow,
    FeatureRow,
    NoteRow,
    SaeRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)

_Query = TypeVar("_Query", bound=Select[*tuple[Any, ...]])
_TOGETHER = 500  # values in one query; databases bound how many it may have


def load_features(connection: Connection, indices: Collection[int] | None = None) -> dict[int, Feature]:
    """Features by index in the catalog's order: those of ``indices`` that are catalogued (None: all)."""
    query = select(FeatureRow.index, FeatureRow.label, FeatureRow.density).order_by(FeatureRow.id)
    if indices is None:
        return {index: Feature(index, label, density) for index, label, density in connection.execute(query)}
    # The SAE's number makes the pair that is indexed.
    sae = select(SaeRow.id).order_by(SaeRow.id).limit(1).scalar_subquery()
    return {
        index: Feature(index, label, density)
        for some in _pieces(indices)
        for index, label, density in connection.execute(
            query.where(FeatureRow.sae_id == sae, FeatureRow.index.in_(some))
        )
    }


def load_concepts(connection: Connection, ids: Collection[int] | None = None) -> dict[int, Concept]:
    """Concepts by the id of their row: those of ``ids`` that exist (None: all).

    Raises:
        LookupError, TypeError, ValueError: the rows contradict each other or hold other values than they should.
    """
    if ids is None:
        return _concepts(connection, None)
    return {id_: concept for some in _pieces(ids) for id_, concept in _concepts(connection, some).items()}


def _concepts(connection: Connection, ids: list[int] | None) -> dict[int, Concept]:
    senses, ids_of_senses = _senses(connection, ids)
    early = _early(connection, ids, ids_of_senses)
    query = select(
        ConceptRow.id,
        ConceptRow.slug,
        ConceptRow.pack,
        ConceptRow.forms,
        ConceptRow.site,
        ConceptRow.accuracy,
        ConceptRow.text_accuracy,
        ConceptRow.read_below,
        ConceptRow.intended_above,
    ).order_by(ConceptRow.id)
    rows = connection.execute(query if ids is None else query.where(ConceptRow.id.in_(ids)))
    return {
        row.id: Concept(
            slug=row.slug,
            pack=row.pack,
            forms=tuple(texts(row.forms)),
            site=row.site,
            accuracy=row.accuracy,
            text_accuracy=row.text_accuracy,
            read_below=row.read_below,
            intended_above=row.intended_above,
            senses=tuple(senses[row.id]),
            early=early.get(row.id),
        )
        for row in rows
    }


def _senses(connection: Connection, ids: list[int] | None) -> tuple[dict[int, list[Sense]], dict[int, list[int]]]:
    """The senses of each concept in the catalog's order, and the ids of their rows."""
    notes: dict[int, Any] = {}
    for note in connection.execute(
        _of(ids, select(NoteRow.sense_id, NoteRow.text, NoteRow.enabled).join(SenseRow).order_by(NoteRow.id))
    ):
        notes.setdefault(note.sense_id, note)
    weights = _weights(connection, ids)
    cues: dict[int, list[tuple[str, float]]] = {}
    for sense_id, stem, weight in connection.execute(
        _of(ids, select(CueRow.sense_id, CueRow.stem, CueRow.weight).join(SenseRow, SenseRow.id == CueRow.sense_id))
    ):
        cues.setdefault(sense_id, []).append((stem, weight))
    signatures = connection.execute(_of(ids, select(SignatureRow.sense_id, SignatureRow.bias).join(SenseRow)))
    biases = {row.sense_id: row.bias for row in signatures}
    query = select(SenseRow.id, SenseRow.concept_id, SenseRow.slug, SenseRow.gloss, SenseRow.domains)
    found: dict[int, list[Sense]] = {}
    rows: dict[int, list[int]] = {}
    for row in connection.execute(_of(ids, query.order_by(SenseRow.id))):
        sense = Sense(
            slug=row.slug,
            gloss=row.gloss,
            note=notes[row.id].text,
            domains=frozenset(texts(row.domains)),
            bias=biases[row.id],
            weights=weights.get(row.id, {}),
            cues=dict(sorted(cues.get(row.id, []))),  # databases collate differently
            noted=notes[row.id].enabled,
        )
        found.setdefault(row.concept_id, []).append(sense)
        rows.setdefault(row.concept_id, []).append(row.id)
    return found, rows


def _early(connection: Connection, ids: list[int] | None, senses: dict[int, list[int]]) -> dict[int, Early]:
    """The early readings of those concepts that have one; ``senses``: ids of each concept's senses."""
    thresholds = select(
        EarlyReadingRow.concept_id,
        EarlyReadingRow.read_below,
        EarlyReadingRow.intended_above,
        EarlyReadingRow.seconded_above,
    )
    rows = connection.execute(
        thresholds if ids is None else thresholds.where(EarlyReadingRow.concept_id.in_(ids))
    ).all()
    if not rows:
        return {}
    signatures = select(EarlySignatureRow.sense_id, EarlySignatureRow.bias).join(
        SenseRow, SenseRow.id == EarlySignatureRow.sense_id
    )
    biases = {row.sense_id: row.bias for row in connection.execute(_of(ids, signatures))}
    query = (
        select(EarlyWeightRow.sense_id, FeatureRow.index, EarlyWeightRow.weight)
        .join(SenseRow, SenseRow.id == EarlyWeightRow.sense_id)
        .outerjoin(FeatureRow, FeatureRow.id == EarlyWeightRow.feature_id)
        .order_by(EarlyWeightRow.sense_id, EarlyWeightRow.feature_id)
    )
    weights = _by_sense(connection.execute(_of(ids, query)))
    return {
        row.concept_id: Early(
            read_below=row.read_below,
            intended_above=row.intended_above,
            seconded_above=row.seconded_above,
            biases=tuple(biases[sense] for sense in senses[row.concept_id]),
            weights=tuple(weights.get(sense, {}) for sense in senses[row.concept_id]),
        )
        for row in rows
    }


def _weights(connection: Connection, ids: list[int] | None) -> dict[int, dict[int, float]]:
    """The weights of each sense by feature index."""
    query = (
        select(SignatureRow.sense_id, FeatureRow.index, SignatureWeightRow.weight)
        .join(SenseRow, SenseRow.id == SignatureRow.sense_id)
        .join(SignatureWeightRow, SignatureWeightRow.signature_id == SignatureRow.id)
        .outerjoin(FeatureRow, FeatureRow.id == SignatureWeightRow.feature_id)
        .order_by(SignatureRow.id, SignatureWeightRow.feature_id)
    )
    return _by_sense(connection.execute(_of(ids, query)))


def _by_sense(rows: Iterable[Any]) -> dict[int, dict[int, float]]:
    """Weights by sense and feature index of ``rows`` (sense, index, weight)."""
    found: dict[int, dict[int, float]] = {}
    for sense, index, weight in rows:
        if index is None:
            raise LookupError(f"sense {sense} reads a feature that is not there")
        found.setdefault(sense, {})[index] = weight
    return found


def _of(ids: list[int] | None, query: _Query) -> _Query:
    """``query``, which knows the senses, for the concepts ``ids`` alone."""
    return query if ids is None else query.where(SenseRow.concept_id.in_(ids))


def texts(value: Any) -> list[str]:
    """The texts in a JSON column; a single text there would pass for a list of letters.

    Raises:
        TypeError: there is something else.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("something else in place of a list of texts")
    return value


def _pieces(values: Collection[int]) -> Iterator[list[int]]:
    listed: Sequence[int] = list(values)
    for first in range(0, len(listed), _TOGETHER):
        yield list(listed[first : first + _TOGETHER])
