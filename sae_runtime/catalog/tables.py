"""The catalog's tables (SQLAlchemy 2). Migrations in the top-level ``migrations`` folder create and upgrade them.

Lists have an order of their own, since PostgreSQL returns rows in any: sums over them would differ in their last digits.
Text is ordered in Python, since databases collate it differently.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

# Named constraints, so that SQLite's batch migrations can alter them.
_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Root of all tables."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012 (read by SQLAlchemy)


class ModelRow(Base):
    """The model whose readings the catalog holds: name and fingerprints."""

    __tablename__ = "models"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    weights: Mapped[str]
    config: Mapped[str]
    tokenizer: Mapped[str]
    chat_template: Mapped[str]


class SaeRow(Base):
    """The dictionary: the site it reads and its fingerprint."""

    __tablename__ = "saes"
    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    layer: Mapped[int]
    hook_name: Mapped[str]
    architecture: Mapped[str]
    d_in: Mapped[int]
    d_sae: Mapped[int]
    fingerprint: Mapped[str] = mapped_column(unique=True)
    model: Mapped[ModelRow] = relationship()


class BuildRow(Base):
    """Provenance of a build: what went in, which versions made it, what was measured."""

    __tablename__ = "builds"
    id: Mapped[int] = mapped_column(primary_key=True)
    sae_id: Mapped[int] = mapped_column(ForeignKey("saes.id"))
    created_at: Mapped[datetime]
    config: Mapped[dict[str, Any]]
    data: Mapped[dict[str, Any]]
    versions: Mapped[dict[str, Any]]
    figures: Mapped[dict[str, Any]]


class FeatureRow(Base):
    """One SAE latent. ``index`` counts in the full dictionary; ``density`` is the share of tokens on which it fires.

    ``validated``: whether its description passed all gates; the others are here because signatures read them.
    ``description`` is a sentence for people, ``predicate`` the same for machines (see ``build/predicates.py``),
    ``promoted`` the tokens that its decoder direction makes more likely. ``seed_correlation``: of its activations with
    those of its counterpart in a second training run, ``seed_cosine`` of their directions; ``sensitivity``: share of
    fresh texts made to fit the description that fire it; ``context_free``: the same for the description's words alone; ``sense_purity``: share of its activation on held-out contexts that lies in
    the sense it votes for, mean over the concepts that use it. ``histogram``: of its activations on corpus tokens,
    ``{"edges": [floats], "counts": [ints]}``, bins of equal width from 0 to ``max_activation``. Null where it was not
    measured.
    """

    __tablename__ = "features"
    __table_args__ = (UniqueConstraint("sae_id", "index"), CheckConstraint("density BETWEEN 0 AND 1", name="density"))
    id: Mapped[int] = mapped_column(primary_key=True)
    sae_id: Mapped[int] = mapped_column(ForeignKey("saes.id"))
    index: Mapped[int]
    label: Mapped[str]
    validated: Mapped[bool] = mapped_column(server_default="0")
    description: Mapped[str] = mapped_column(server_default="")
    predicate: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    promoted: Mapped[list[str]] = mapped_column(server_default="[]")
    density: Mapped[float]
    max_activation: Mapped[float]
    histogram: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    seed_correlation: Mapped[float | None]
    seed_cosine: Mapped[float | None]
    sensitivity: Mapped[float | None]
    context_free: Mapped[float | None]
    sense_purity: Mapped[float | None]
    examples: Mapped[list[FeatureExampleRow]] = relationship(
        order_by="FeatureExampleRow.activation.desc(), FeatureExampleRow.id"
    )


class FeatureExampleRow(Base):
    """A stretch of corpus text on which a feature fires; ``start`` and ``end`` mark the token in it."""

    __tablename__ = "feature_examples"
    id: Mapped[int] = mapped_column(primary_key=True)
    feature_id: Mapped[int] = mapped_column(ForeignKey("features.id"), index=True)
    text: Mapped[str]
    start: Mapped[int]
    end: Mapped[int]
    activation: Mapped[float]


class FeatureValidationRow(Base):
    """How well a feature's description predicts where it fires on text that was not used to write it.

    ``samples``: tokens on which the feature fires; ``predicted``: tokens on which the description says so;
    ``precision_low`` and ``precision_high``: the precision's 95 % interval. Null in catalogs of revision 0001.
    """

    __tablename__ = "feature_validations"
    id: Mapped[int] = mapped_column(primary_key=True)
    feature_id: Mapped[int] = mapped_column(ForeignKey("features.id"), index=True)
    method: Mapped[str]
    split: Mapped[str]
    samples: Mapped[int]
    predicted: Mapped[int | None]
    precision: Mapped[float]
    precision_low: Mapped[float | None]
    precision_high: Mapped[float | None]
    recall: Mapped[float]
    balanced_accuracy: Mapped[float]


class ConceptRow(Base):
    """A surface form with several senses, and where and how reliably it is read.

    ``site`` names the reading position. ``accuracy`` is the reading's accuracy on held-out contexts, ``text_accuracy``
    that of the text matcher where it does not abstain. A mention is flagged when the reading gives the intended sense
    at most ``read_below`` and the intended source gives it at least ``intended_above``; see :mod:`sae_runtime.detector.rule`
    for what ``early`` adds.
    """

    __tablename__ = "concepts"
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(unique=True)
    pack: Mapped[str]
    forms: Mapped[list[str]]
    site: Mapped[str]
    accuracy: Mapped[float]
    text_accuracy: Mapped[float | None]
    read_below: Mapped[float]
    intended_above: Mapped[float]
    senses: Mapped[list[SenseRow]] = relationship(order_by="SenseRow.id", back_populates="concept")
    early: Mapped[EarlyReadingRow | None] = relationship()


class SenseRow(Base):
    """One meaning of a concept."""

    __tablename__ = "senses"
    __table_args__ = (UniqueConstraint("concept_id", "slug"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    concept_id: Mapped[int] = mapped_column(ForeignKey("concepts.id"))
    slug: Mapped[str]
    gloss: Mapped[str]
    domains: Mapped[list[str]]
    concept: Mapped[ConceptRow] = relationship(back_populates="senses")
    contexts: Mapped[list[SenseContextRow]] = relationship(order_by="SenseContextRow.id")
    signature: Mapped[SignatureRow] = relationship()
    early: Mapped[EarlySignatureRow | None] = relationship()
    cues: Mapped[list[CueRow]] = relationship()
    notes: Mapped[list[NoteRow]] = relationship(order_by="NoteRow.id")


class SenseContextRow(Base):
    """A labelled example of a sense; ``start`` and ``end`` mark the mention."""

    __tablename__ = "sense_contexts"
    id: Mapped[int] = mapped_column(primary_key=True)
    sense_id: Mapped[int] = mapped_column(ForeignKey("senses.id"), index=True)
    text: Mapped[str]
    start: Mapped[int]
    end: Mapped[int]
    held_out: Mapped[bool]


class SignatureRow(Base):
    """The sparse readout of one sense: ``logit = bias + sum(weight * feature)``, softmax over the concept's senses."""

    __tablename__ = "signatures"
    id: Mapped[int] = mapped_column(primary_key=True)
    sense_id: Mapped[int] = mapped_column(ForeignKey("senses.id"), unique=True)
    bias: Mapped[float]
    weights: Mapped[list[SignatureWeightRow]] = relationship(order_by="SignatureWeightRow.feature_id")


class SignatureWeightRow(Base):
    """Weight of one feature in a signature."""

    __tablename__ = "signature_weights"
    signature_id: Mapped[int] = mapped_column(ForeignKey("signatures.id"), primary_key=True)
    feature_id: Mapped[int] = mapped_column(ForeignKey("features.id"), primary_key=True)
    weight: Mapped[float]
    feature: Mapped[FeatureRow] = relationship()


class EarlyReadingRow(Base):
    """Thresholds of a concept's *early* reading: at the mention alone, where the model has not seen what follows.

    ``read_below`` and ``intended_above`` as in :class:`ConceptRow`; ``seconded_above``: what the words and the later reading
    together must give.
    """

    __tablename__ = "early_readings"
    concept_id: Mapped[int] = mapped_column(ForeignKey("concepts.id"), primary_key=True)
    read_below: Mapped[float]
    intended_above: Mapped[float]
    seconded_above: Mapped[float]


class EarlySignatureRow(Base):
    """The readout of one sense at the mention; as :class:`SignatureRow`."""

    __tablename__ = "early_signatures"
    sense_id: Mapped[int] = mapped_column(ForeignKey("senses.id"), primary_key=True)
    bias: Mapped[float]
    weights: Mapped[list[EarlyWeightRow]] = relationship(order_by="EarlyWeightRow.feature_id")


class EarlyWeightRow(Base):
    """Weight of one feature in an early signature."""

    __tablename__ = "early_weights"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012 (read by SQLAlchemy)
    sense_id: Mapped[int] = mapped_column(ForeignKey("early_signatures.sense_id"), primary_key=True)
    feature_id: Mapped[int] = mapped_column(ForeignKey("features.id"), primary_key=True)
    weight: Mapped[float]


class CueRow(Base):
    """Evidence of a word stem in the surrounding text for a sense, as log-odds (the text matcher)."""

    __tablename__ = "cues"
    sense_id: Mapped[int] = mapped_column(ForeignKey("senses.id"), primary_key=True)
    stem: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float]


class NoteRow(Base):
    """A note for a sense; ``{mention}`` is replaced by the prompt's own words.

    Measured by ``sensecheck eval notes`` (:mod:`sae_runtime.evaluation.notes`), null until then, on ``trials`` sentences that
    chose nothing: ``lift``: change in the log-likelihood of the right meaning, nats, with its 95 % interval
    ``lift_low``, ``lift_high``; ``accuracy_lift``: change in accuracy; ``harm``: share that was right without the note and
    is wrong with it; ``margin``: lead of this ``wording`` over the next best on the sentences that chose it, nats.
    ``enabled``: whether the note is given at all; a sense without an enabled note is never flagged.
    """

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    sense_id: Mapped[int] = mapped_column(ForeignKey("senses.id"), index=True)
    text: Mapped[str]
    wording: Mapped[str] = mapped_column(server_default="pack")
    trials: Mapped[int] = mapped_column(server_default="0")
    enabled: Mapped[bool] = mapped_column(server_default="1")
    lift: Mapped[float | None]
    lift_low: Mapped[float | None]
    lift_high: Mapped[float | None]
    accuracy_lift: Mapped[float | None]
    harm: Mapped[float | None]
    margin: Mapped[float | None]
