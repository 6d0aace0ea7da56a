"""Publish stage: the catalogued latents, the catalog and the card in one folder, renamed into place when complete."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.orm import Session

from sae_runtime.build.concepts import add_concepts, calibrate, reading_figures, sense_purities
from sae_runtime.build.features.describe import Description, Writer, written_sentence
from sae_runtime.build.features.gates import Validation
from sae_runtime.build.folders import staged
from sae_runtime.build.plan import BuildPlan
from sae_runtime.build.report.card import card_figures, make_card, report_of
from sae_runtime.build.report.page import write_report
from sae_runtime.build.signatures import Signature
from sae_runtime.catalog.masking import mask_all
from sae_runtime.catalog.store import catalog_engine, create_catalog, seal_catalog
from sae_runtime.catalog.tables import (
    BuildRow,
    FeatureExampleRow,
    FeatureRow,
    FeatureValidationRow,
    ModelRow,
    SaeRow,
)
from sae_runtime.models import fingerprint_model
from sae_runtime.paths import CARD_FILE, CATALOG_FILE
from sae_runtime.progress import progress
from sae_runtime.sae import SAE, save_sae
from sae_runtime.sae.fingerprint import fingerprint_sae

_NUMBERS = ("members", "yes", "no", "names")  # a predicate's word numbers; the words themselves stand beside them


@dataclass(frozen=True)
class Built:
    """What the earlier stages made.

    Attributes:
        plan: the build's plan, with the summaries of its steps.
        sae: the full dictionary.
        descriptions, validations: by latent index.
        signatures: by concept slug.
        writer: a language model for the catalogued features' sentences, or None.
    """

    plan: BuildPlan
    sae: SAE
    descriptions: list[Description]
    validations: list[Validation]
    signatures: dict[str, Signature]
    writer: Writer | None


def publish(built: Built, target: Path) -> dict[str, Any]:
    """Write SAE subset, catalog, card and report to ``target``, replacing what stood there; returns the card.

    What comes from the corpus is masked first; see :mod:`sae_runtime.catalog.masking`.

    Raises:
        InputError: ``target`` holds other files.
        ArtefactError: the disk is full, or may not be written to; what stood there stays.
    """
    built = replace(built, descriptions=[masked_description(item) for item in built.descriptions])
    with staged(target) as staging:
        return _fill(built, staging)


def _fill(built: Built, staging: Path) -> dict[str, Any]:
    """Write everything to ``staging``; returns the card."""
    chosen = _catalogued_latents(built)
    save_sae(_shipped(built, chosen).to(dtype=torch.bfloat16), staging)
    engine = create_catalog(staging / CATALOG_FILE)
    with Session(engine) as session, session.begin():
        sae_row = _add_sources(session, built, fingerprint_sae(staging))
        features = _add_features(session, sae_row, built, chosen)
        add_concepts(session, built.plan.packs, built.signatures, {index: row.id for index, row in features.items()})
    engine.dispose()
    calibrated = calibrate(str(built.plan.model.path), staging, built.signatures)
    figures = {**card_figures(built), **reading_figures(built.signatures), **calibrated}
    card = make_card(built, figures, chosen, fingerprint_sae(staging))
    settings = built.plan.config.model_dump(mode="json")
    settings["corpus"].pop("root")  # a path of the machine that built it
    complete(staging, settings, card, report_of(built, card, chosen))
    return card


def complete(staging: Path, settings: dict[str, Any], card: dict[str, Any], report: dict[str, Any]) -> None:
    """The last of artefacts in ``staging``: provenance in the catalog, its seal, the card, the report.

    Args:
        staging: holds SAE and catalog.
        settings: configuration of the build.
        card, report: see :mod:`sae_runtime.build.report`.
    """
    packages = ("torch", "transformers", "scikit-learn", "numpy", "sqlalchemy")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    row = BuildRow(
        sae_id=1, created_at=datetime.now(UTC), config=settings, data=card["data"], versions=versions, figures=card
    )
    engine = catalog_engine(staging / CATALOG_FILE, writable=True)
    with Session(engine) as session, session.begin():
        session.add(row)
    engine.dispose()
    seal_catalog(staging / CATALOG_FILE)
    (staging / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    write_report(report, staging)


def masked_description(item: Description) -> Description:
    """``item`` without the private data that stood in its texts; see :func:`sae_runtime.catalog.masking.mask`."""
    texts = {name: mask_all(getattr(item, name)) for name in ("label", "sentence", "predicate", "promoted", "contexts")}
    return replace(item, **texts)


def _catalogued_latents(built: Built) -> list[int]:
    """Latents of all signatures, then those whose descriptions passed all gates, best ones first, up to the wanted
    number."""
    chosen = {latent for signature in built.signatures.values() for latent in signature.latents}
    rest = [item for item in built.validations if item.index not in chosen and item.passed]
    rest.sort(key=lambda item: (-item.scores.balanced_accuracy, item.index))
    wanted = built.plan.config.concepts.catalogued_latents
    chosen |= {item.index for item in rest[: max(0, wanted - len(chosen))]}
    return sorted(chosen)


def _shipped(built: Built, chosen: list[int]) -> SAE:
    """The catalogued latents alone, unless they cannot be computed without the others."""
    return built.sae.subset(chosen) if built.sae.independent else built.sae


def _add_sources(session: Session, built: Built, fingerprint: str) -> SaeRow:
    plan = built.plan
    model = ModelRow(name=plan.model.name, **fingerprint_model(plan.model.path).model_dump())
    sae = SaeRow(
        model=model,
        layer=plan.config.layer,
        hook_name=built.sae.metadata["hook_name"],
        architecture=built.sae.architecture,
        d_in=built.sae.d_in,
        d_sae=built.sae.d_sae,
        fingerprint=fingerprint,
    )
    session.add(sae)
    session.flush()
    return sae


def _add_features(session: Session, sae: SaeRow, built: Built, chosen: list[int]) -> dict[int, FeatureRow]:
    purities = sense_purities(built.signatures)
    rows = {}
    with progress("features", len(chosen)) as advance:
        for index in chosen:
            item, checked = built.descriptions[index], built.validations[index]
            rows[index] = FeatureRow(
                sae_id=sae.id,
                index=index,
                label=item.label,
                validated=checked.passed,
                description=_sentence(built, item, checked),
                predicate={name: value for name, value in item.predicate.items() if name not in _NUMBERS},
                promoted=item.promoted,
                density=item.density,
                max_activation=item.max_activation,
                histogram=item.histogram,
                seed_correlation=checked.correlation,
                seed_cosine=checked.cosine,
                sensitivity=checked.sensitivity,
                context_free=checked.context_free,
                sense_purity=purities.get(index),
                examples=[FeatureExampleRow(**context) for context in item.contexts],
            )
            advance(1)
    session.add_all(rows.values())
    session.flush()
    session.add_all(
        FeatureValidationRow(feature_id=row.id, method="description", split=split, **asdict(scores))
        for index, row in rows.items()
        for split, scores in (
            ("validation", built.validations[index].scores),
            ("test", built.validations[index].test),
        )
    )
    return rows


def _sentence(built: Built, item: Description, checked: Validation) -> str:
    """What is said of a feature; where no description passed, that none did."""
    if not checked.passed:
        return f"No description passed validation. Strongest on “{item.label}”."
    return written_sentence(built.writer, item) if built.writer else item.sentence
