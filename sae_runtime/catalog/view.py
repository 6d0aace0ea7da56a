"""The part of a catalog that serving needs.

Of a catalog like the shipped ones everything is loaded once into plain objects; no query runs while a prompt waits. From
:data:`WHOLE_CONCEPTS` and :data:`WHOLE_FEATURES` on, what prompts mention is fetched when they do (:mod:`~.stored`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import func, select, union
from sqlalchemy.orm import Session
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from sae_runtime.catalog.entries import Concept, Feature, Sense
from sae_runtime.catalog.excerpts import MAX_LABEL, MAX_LISTED, MAX_TEXT, cut, excerpt
from sae_runtime.catalog.file import check_seal
from sae_runtime.catalog.loading import load_concepts, load_features
from sae_runtime.catalog.location import CatalogLocation, catalog_location
from sae_runtime.catalog.store import open_catalog
from sae_runtime.catalog.stored import CatalogConnection, StoredConcepts, StoredFeatures
from sae_runtime.catalog.tables import (
    BuildRow,
    ConceptRow,
    EarlyWeightRow,
    FeatureExampleRow,
    FeatureRow,
    FeatureValidationRow,
    SaeRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.errors import CatalogError
from sae_runtime.models import ModelFingerprint

__all__ = ["CatalogView", "Concept", "Feature", "FeatureDetail", "Sense", "feature_detail", "latest_build"]

_LARGEST_INDEX = 2**31 - 1  # of the databases' integers

WHOLE_CONCEPTS = 2_000
"""Most concepts of a catalog that is loaded whole: some 100 MB."""
WHOLE_FEATURES = 20_000


@dataclass(frozen=True)
class CatalogView:
    """Everything a detector needs: whose catalog it is, labelled features, concepts.

    Labelled contexts are counted only in catalogs that are loaded whole. ``fingerprint``: of the catalog's file; it is known
    where :class:`~sae_runtime.detector.artefacts.Artefacts` opened one.
    """

    model_name: str
    model: ModelFingerprint
    layer: int
    sae_fingerprint: str
    features: Mapping[int, Feature]
    concepts: Sequence[Concept]
    contexts_per_concept: dict[str, int]
    fingerprint: str | None = None

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the catalog belongs to: the fingerprints of the model's parts, and of the SAE."""
        return {**self.model.model_dump(), "sae": self.sae_fingerprint}

    def labels(self, indices: Collection[int]) -> dict[int, str]:
        """The labels of the catalogued ones among ``indices``."""
        if isinstance(self.features, StoredFeatures):
            return {index: feature.label for index, feature in self.features.fetch(indices).items()}
        return {index: self.features[index].label for index in indices if index in self.features}

    @classmethod
    def load(cls, location: CatalogLocation | str, *, whole: bool | None = None) -> CatalogView:
        """Read the catalog at ``location``.

        Args:
            location: a file, or a database on a server.
            whole: load everything now; False: only what prompts mention, when they do; None: by size.

        Raises:
            CatalogError: it is missing, damaged, of another revision, or empty.
        """
        place = catalog_location(location)
        if isinstance(place, Path):
            check_seal(place)
        with open_catalog(place) as session:
            return cls._from(session, place, whole)

    @classmethod
    def _from(cls, session: Session, location: CatalogLocation, whole: bool | None) -> CatalogView:
        sae = session.scalars(select(SaeRow).order_by(SaeRow.id)).first()
        if sae is None:
            raise CatalogError(f"The catalog {location} is empty.", "Fill it with `sensecheck build`.")
        connection = session.connection()
        count = connection.scalar(select(func.count()).select_from(FeatureRow)) or 0
        if whole is None:
            concepts_count = connection.scalar(select(func.count()).select_from(ConceptRow)) or 0
            whole = concepts_count <= WHOLE_CONCEPTS and count <= WHOLE_FEATURES
        features: Mapping[int, Feature]
        concepts: Sequence[Concept]
        if whole:
            features = load_features(connection)
            concepts = tuple(sorted(load_concepts(connection).values(), key=lambda concept: concept.slug))
        else:
            kept_open = CatalogConnection(location)
            features, concepts = StoredFeatures(kept_open, count), StoredConcepts(kept_open)
        return cls(
            model_name=sae.model.name,
            model=ModelFingerprint.model_validate(sae.model, from_attributes=True),
            layer=sae.layer,
            sae_fingerprint=sae.fingerprint,
            features=features,
            concepts=concepts,
            contexts_per_concept=_context_counts(session) if whole else {},
        )


def _context_counts(session: Session) -> dict[str, int]:
    counts = session.execute(
        select(ConceptRow.slug, func.count()).join(SenseRow, SenseRow.concept_id == ConceptRow.id)
        .join(SenseRow.contexts).group_by(ConceptRow.slug)
    )  # fmt: skip
    return {slug: int(count) for slug, count in counts}


def latest_build(location: CatalogLocation | str) -> BuildRow | None:
    """Provenance of the newest build in the catalog."""
    with open_catalog(location) as session:
        row = session.scalars(select(BuildRow).order_by(BuildRow.id.desc())).first()
        if row is not None:
            session.expunge(row)
        return row


class FeatureExample(TypedDict):
    """A text on which a feature fires: on the token ``text[start:end]``, so strongly."""

    text: str
    start: int
    end: int
    activation: float


class FeatureScores(TypedDict):
    """How well a feature's description does; see :class:`~sae_runtime.catalog.tables.FeatureValidationRow`."""

    method: str
    split: str
    samples: int
    predicted: int | None
    precision: float
    precision_low: float | None
    precision_high: float | None
    recall: float
    balanced_accuracy: float


class FeatureDetail(BaseModel):
    """Everything that the catalog knows of one feature.

    ``examples``: texts with the token ``text[start:end]`` and its activation, strongest first. ``validations``: scores of
    the description on unseen text. ``concepts``: those whose signatures use the feature. For the rest see
    :class:`~sae_runtime.catalog.tables.FeatureRow`. Long texts and lists are cut (:mod:`~sae_runtime.catalog.excerpts`).
    """

    index: int
    label: str
    validated: bool
    description: str
    predicate: dict[str, Any]
    promoted: list[str]
    density: float
    max_activation: float
    histogram: dict[str, Any] | None
    seed_correlation: float | None
    seed_cosine: float | None
    sensitivity: float | None
    context_free: float | None
    sense_purity: float | None
    examples: list[FeatureExample]
    validations: list[FeatureScores]
    concepts: list[str]


def feature_detail(location: CatalogLocation | str, index: int, *, sae: str | None = None) -> FeatureDetail | None:
    """The feature ``index`` of the full dictionary, or None when it is not catalogued.

    With ``sae``, a fingerprint, only a feature of that dictionary: in a database another catalog may have come since.
    """
    if not 0 <= index <= _LARGEST_INDEX:
        return None
    with open_catalog(location) as session:
        # The SAE's number makes the pair that is indexed.
        owner = select(SaeRow.id).order_by(SaeRow.id).limit(1)
        owner = owner if sae is None else owner.where(SaeRow.fingerprint == sae)
        of_owner = FeatureRow.sae_id == owner.scalar_subquery()
        row = session.scalars(select(FeatureRow).where(of_owner, FeatureRow.index == index)).first()
        if row is None:
            return None
        readers = union(
            select(SignatureRow.sense_id).join(SignatureRow.weights).where(SignatureWeightRow.feature_id == row.id),
            select(EarlyWeightRow.sense_id).where(EarlyWeightRow.feature_id == row.id),
        )
        concepts = session.scalars(
            select(ConceptRow.slug).distinct()
            .join(SenseRow, SenseRow.concept_id == ConceptRow.id)
            .where(SenseRow.id.in_(readers))
        )  # fmt: skip
        examples = session.scalars(
            select(FeatureExampleRow)
            .where(FeatureExampleRow.feature_id == row.id)
            .order_by(FeatureExampleRow.activation.desc(), FeatureExampleRow.id)
            .limit(MAX_LISTED)
        )
        validations = session.scalars(
            select(FeatureValidationRow)
            .where(FeatureValidationRow.feature_id == row.id)
            .order_by(FeatureValidationRow.id)
            .limit(MAX_LISTED)
        )
        own = {name: getattr(row, name) for name in FeatureDetail.model_fields.keys() & row.__table__.columns.keys()}
        own |= {"label": cut(row.label, MAX_LABEL), "description": cut(row.description, MAX_TEXT)}
        own["promoted"] = [cut(token, MAX_LABEL) for token in row.promoted[:MAX_LISTED]]
        return FeatureDetail(
            **own,
            examples=[_example(example) for example in examples],
            validations=[_columns(validation) for validation in validations],
            concepts=sorted(concepts),
        )


def _example(row: FeatureExampleRow) -> FeatureExample:
    text, start, end = excerpt(row.text, row.start, row.end)
    return {"text": text, "start": start, "end": end, "activation": row.activation}


def _columns(row: Any) -> Any:
    """A row's values without its keys."""
    names = (column.name for column in row.__table__.columns)
    return {name: getattr(row, name) for name in names if name not in ("id", "feature_id")}
