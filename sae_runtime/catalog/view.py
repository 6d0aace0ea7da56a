"""The part of a catalog that serving needs, loaded once into plain objects; no query runs while a prompt waits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from sae_runtime.catalog.store import open_catalog
from sae_runtime.catalog.tables import (
    BuildRow,
    ConceptRow,
    FeatureRow,
    FeatureValidationRow,
    SaeRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.errors import CatalogError
from sae_runtime.models import ModelFingerprint


@dataclass(frozen=True)
class Feature:
    """A labelled latent; ``index`` counts in the full dictionary."""

    index: int
    label: str
    density: float


@dataclass(frozen=True)
class Sense:
    """A sense with its readouts: ``weights`` by feature index (signature), ``cues`` by word stem (text matcher).

    ``noted``: whether its note may be given; see :class:`~sae_runtime.catalog.tables.NoteRow`.
    """

    slug: str
    gloss: str
    note: str
    domains: frozenset[str]
    bias: float
    weights: dict[int, float]
    cues: dict[str, float]
    noted: bool = True


@dataclass(frozen=True)
class Concept:
    """A concept and its calibrated thresholds; see :class:`sae_runtime.catalog.tables.ConceptRow`.

    ``declared``: the sense that the deployer's glossary says is meant; None for concepts of the catalog.
    """

    slug: str
    pack: str
    forms: tuple[str, ...]
    site: str
    accuracy: float
    text_accuracy: float | None
    read_below: float
    intended_above: float
    senses: tuple[Sense, ...]
    declared: str | None = None


@dataclass(frozen=True)
class CatalogView:
    """Everything a detector needs: whose catalog it is, labelled features, concepts."""

    model_name: str
    model: ModelFingerprint
    layer: int
    sae_fingerprint: str
    features: dict[int, Feature]
    concepts: tuple[Concept, ...]
    contexts_per_concept: dict[str, int]

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the catalog belongs to: the fingerprints of the model's parts, and of the SAE."""
        return {**self.model.model_dump(), "sae": self.sae_fingerprint}

    @classmethod
    def load(cls, location: Path | str) -> CatalogView:
        """Read the catalog at ``location``.

        Raises:
            CatalogError: it is missing, damaged, of another revision, or empty.
        """
        with open_catalog(location) as session:
            return cls._from(session, location)

    @classmethod
    def _from(cls, session: Session, location: Path | str) -> CatalogView:
        sae = session.scalars(select(SaeRow)).first()
        if sae is None:
            raise CatalogError(f"The catalog {location} is empty.", "Fill it with `sensecheck build`.")
        query = select(ConceptRow).order_by(ConceptRow.slug)
        senses = selectinload(ConceptRow.senses)
        query = query.options(
            senses.selectinload(SenseRow.signature).selectinload(SignatureRow.weights),
            senses.selectinload(SenseRow.cues),
            senses.selectinload(SenseRow.notes),
        )
        features = session.scalars(select(FeatureRow)).all()
        index_of = {row.id: row.index for row in features}
        counts = session.execute(
            select(ConceptRow.slug, func.count()).join(SenseRow, SenseRow.concept_id == ConceptRow.id)
            .join(SenseRow.contexts).group_by(ConceptRow.slug)
        )  # fmt: skip
        return cls(
            model_name=sae.model.name,
            model=ModelFingerprint.model_validate(sae.model, from_attributes=True),
            layer=sae.layer,
            sae_fingerprint=sae.fingerprint,
            features={row.index: Feature(row.index, row.label, row.density) for row in features},
            concepts=tuple(_concept(row, index_of) for row in session.scalars(query)),
            contexts_per_concept={slug: int(count) for slug, count in counts},
        )


def latest_build(location: Path | str) -> BuildRow | None:
    """Provenance of the newest build in the catalog."""
    with open_catalog(location) as session:
        row = session.scalars(select(BuildRow).order_by(BuildRow.id.desc())).first()
        if row is not None:
            session.expunge(row)
        return row


class FeatureDetail(BaseModel):
    """Everything that the catalog knows of one feature.

    ``examples``: texts with the token ``text[start:end]`` and its activation, strongest first. ``validations``: scores of
    the description on unseen text. ``concepts``: those whose signatures use the feature. For the rest see
    :class:`~sae_runtime.catalog.tables.FeatureRow`.
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
    examples: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    concepts: list[str]


def feature_detail(location: Path | str, index: int) -> FeatureDetail | None:
    """The feature ``index`` of the full dictionary, or None when it is not catalogued."""
    with open_catalog(location) as session:
        row = session.scalars(select(FeatureRow).where(FeatureRow.index == index)).first()
        if row is None:
            return None
        concepts = session.scalars(
            select(ConceptRow.slug).distinct().order_by(ConceptRow.slug)
            .join(SenseRow, SenseRow.concept_id == ConceptRow.id)
            .join(SignatureRow, SignatureRow.sense_id == SenseRow.id)
            .join(SignatureWeightRow, SignatureWeightRow.signature_id == SignatureRow.id)
            .where(SignatureWeightRow.feature_id == row.id)
        )  # fmt: skip
        examples = sorted(row.examples, key=lambda example: -example.activation)
        validations = session.scalars(select(FeatureValidationRow).where(FeatureValidationRow.feature_id == row.id))
        return FeatureDetail(
            **{name: getattr(row, name) for name in FeatureDetail.model_fields.keys() & row.__table__.columns.keys()},
            examples=[_columns(example) for example in examples],
            validations=[_columns(validation) for validation in validations],
            concepts=list(concepts),
        )


def _columns(row: Any) -> dict[str, Any]:
    """A row's values without its keys."""
    names = (column.name for column in row.__table__.columns)
    return {name: getattr(row, name) for name in names if name not in ("id", "feature_id")}


def _concept(row: ConceptRow, index_of: dict[int, int]) -> Concept:
    return Concept(
        slug=row.slug,
        pack=row.pack,
        forms=tuple(row.forms),
        site=row.site,
        accuracy=row.accuracy,
        text_accuracy=row.text_accuracy,
        read_below=row.read_below,
        intended_above=row.intended_above,
        senses=tuple(_sense(sense, index_of) for sense in row.senses),
    )


def _sense(row: SenseRow, index_of: dict[int, int]) -> Sense:
    return Sense(
        slug=row.slug,
        gloss=row.gloss,
        note=row.notes[0].text,
        domains=frozenset(row.domains),
        bias=row.signature.bias,
        weights={index_of[weight.feature_id]: weight.weight for weight in row.signature.weights},
        cues={cue.stem: cue.weight for cue in row.cues},
        noted=row.notes[0].enabled,
    )
