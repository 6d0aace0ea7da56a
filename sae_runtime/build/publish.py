"""Publish stage: the catalogued latents, the catalog and the card in one folder, renamed into place when complete."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import update
from sqlalchemy.orm import Session

from sae_runtime.build.calibrate import MIN_READ_ACCURACY, NEVER, Judged, choose_thresholds
from sae_runtime.build.config import BuildConfig
from sae_runtime.build.cues import fit_cues
from sae_runtime.build.describe import Description
from sae_runtime.build.signatures import Signature
from sae_runtime.catalog.packs import ConceptPack
from sae_runtime.catalog.store import catalog_engine, create_catalog, seal_catalog
from sae_runtime.catalog.tables import (
    BuildRow,
    ConceptRow,
    CueRow,
    FeatureExampleRow,
    FeatureRow,
    FeatureValidationRow,
    ModelRow,
    NoteRow,
    SaeRow,
    SenseContextRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.detector.inspector import Inspector
from sae_runtime.errors import InputError
from sae_runtime.evaluation.planted import read_planted
from sae_runtime.evaluation.prompts import calibration_prompts
from sae_runtime.models import ResolvedModel, fingerprint_model
from sae_runtime.paths import CARD_FILE, CATALOG_FILE, SAE_CONFIG_FILE, SAE_WEIGHTS_FILE
from sae_runtime.sae import JumpReLUSAE, save_sae
from sae_runtime.sae.fingerprint import fingerprint_sae


@dataclass(frozen=True)
class Built:
    """What the earlier stages made. ``signatures`` by concept slug; ``figures`` and ``data`` go into card and catalog."""

    model: ResolvedModel
    sae: JumpReLUSAE
    descriptions: list[Description]
    packs: dict[str, list[ConceptPack]]
    signatures: dict[str, Signature]
    figures: dict[str, Any]
    data: dict[str, Any]


def publish(config: BuildConfig, built: Built, target: Path) -> dict[str, Any]:
    """Write SAE subset, catalog and card to ``target``, replacing what stood there; returns the card."""
    target = target.resolve()
    check_target(target)
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    chosen = _catalogued_latents(built, config.concepts.catalogued_latents)
    save_sae(built.sae.subset(chosen).to(dtype=torch.bfloat16), staging)
    catalog = staging / CATALOG_FILE
    figures = dict(built.figures)
    engine = create_catalog(catalog)
    with Session(engine) as session, session.begin():
        sae_row = _add_sources(session, config, built, fingerprint_sae(staging))
        features = _add_features(session, sae_row, built.descriptions, chosen)
        for pack, concepts in built.packs.items():
            for concept in concepts:
                session.add(_concept_row(pack, concept, built.signatures[concept.concept], features))
    engine.dispose()
    figures |= _calibrate(built, staging)
    card = _card(config, built, figures, len(chosen), fingerprint_sae(staging))
    engine = catalog_engine(catalog, writable=True)
    with Session(engine) as session, session.begin():
        session.add(_build_row(config, built, card))
    engine.dispose()
    seal_catalog(catalog)
    (staging / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    _replace_folder(staging, target)
    return card


def check_target(target: Path) -> None:
    """Refuse to replace a folder that holds anything but artefacts.

    Raises:
        InputError: it does.
    """
    if not target.exists():
        return
    ours = {SAE_CONFIG_FILE, SAE_WEIGHTS_FILE, CATALOG_FILE, CARD_FILE}
    if not target.is_dir() or {path.name for path in target.iterdir()} - ours:
        raise InputError(f"{target} holds other files; publishing would replace them.", "Name a new folder with --out.")


def _catalogued_latents(built: Built, wanted: int) -> list[int]:
    """Latents of all signatures, then those whose labels predict best on unseen text, up to ``wanted`` in all."""
    chosen = {int(column) for signature in built.signatures.values() for column in signature.readout.columns}
    rest = [item for item in built.descriptions if item.index not in chosen and item.samples >= 10]
    rest.sort(key=lambda item: (-item.balanced_accuracy, item.index))
    chosen |= {item.index for item in rest[: max(0, wanted - len(chosen))]}
    return sorted(chosen)


def _add_sources(session: Session, config: BuildConfig, built: Built, fingerprint: str) -> SaeRow:
    prints = fingerprint_model(built.model.path)
    model = ModelRow(name=built.model.name, **prints.model_dump())
    sae = SaeRow(
        model=model,
        layer=config.layer,
        hook_name=built.sae.metadata["hook_name"],
        architecture=built.sae.architecture,
        d_in=built.sae.d_in,
        d_sae=built.sae.d_sae,
        fingerprint=fingerprint,
    )
    session.add(sae)
    session.flush()
    return sae


def _add_features(session: Session, sae: SaeRow, items: list[Description], chosen: list[int]) -> dict[int, FeatureRow]:
    rows = {}
    for index in chosen:
        item = items[index]
        rows[index] = FeatureRow(
            sae_id=sae.id,
            index=index,
            label=item.label,
            density=item.density,
            max_activation=item.max_activation,
            examples=[FeatureExampleRow(**example) for example in item.examples],
        )
    session.add_all(rows.values())
    session.flush()
    session.add_all(
        FeatureValidationRow(
            feature_id=row.id,
            method="token set",
            split="validation",
            samples=items[index].samples,
            precision=items[index].precision,
            recall=items[index].recall,
            balanced_accuracy=items[index].balanced_accuracy,
        )
        for index, row in rows.items()
    )
    return rows


def _concept_row(pack: str, concept: ConceptPack, signature: Signature, features: dict[int, FeatureRow]) -> ConceptRow:
    cues = fit_cues(concept)
    readout = signature.readout
    senses = []
    for number, (name, sense) in enumerate(concept.senses.items()):
        weights = [
            SignatureWeightRow(feature_id=features[int(column)].id, weight=float(weight))
            for column, weight in zip(readout.columns, readout.weights[number], strict=True)
        ]
        contexts = [
            SenseContextRow(text=context.text, start=context.start, end=context.end, held_out=held)
            for held in (False, True)
            for context in sense.labelled(held_out=held)
        ]
        senses.append(
            SenseRow(
                slug=name,
                gloss=sense.gloss,
                domains=[domain.lower() for domain in sense.domains],
                contexts=contexts,
                signature=SignatureRow(bias=float(readout.bias[number]), weights=weights),
                cues=[CueRow(stem=key, weight=weight) for key, weight in cues[name].items()],
                notes=[NoteRow(text=sense.note)],
            )
        )
    return ConceptRow(
        slug=concept.concept,
        pack=pack,
        forms=[form.lower() for form in concept.forms],
        site=signature.site,
        accuracy=signature.accuracy,
        read_below=NEVER[0],  # until calibrated
        intended_above=NEVER[1],
        senses=senses,
    )


def _calibrate(built: Built, staging: Path) -> dict[str, Any]:
    """Choose thresholds with the staged artefacts and store them in the staged catalog; returns the figures."""
    inspector = Inspector.from_model(str(built.model.path), artefacts=staging)
    # Cross-validated on the fit contexts, so that the held-out ones select nothing.
    trusted = {slug for slug, fit in built.signatures.items() if fit.validation_accuracy >= MIN_READ_ACCURACY}
    judged = [
        Judged(prompt, mention.reading, mention.intended, prompt.concept in trusted)
        for prompt, _, mention in read_planted(inspector, calibration_prompts(), "calibrate")
        if mention
    ]
    read_below, intended_above, figures = choose_thresholds(judged)
    engine = catalog_engine(staging / CATALOG_FILE, writable=True)
    with Session(engine) as session, session.begin():
        thresholds = {"read_below": read_below, "intended_above": intended_above}
        session.execute(update(ConceptRow).where(ConceptRow.slug.in_(trusted)).values(**thresholds))
    engine.dispose()
    figures = {name: round(value, 4) for name, value in figures.items()}
    return {"calibration": {**thresholds, "prompts": len(judged), "concepts_that_flag": len(trusted), **figures}}


def _card(
    config: BuildConfig, built: Built, figures: Mapping[str, Any], shipped: int, fingerprint: str
) -> dict[str, Any]:
    senses = sum(len(concept.senses) for concepts in built.packs.values() for concept in concepts)
    return {
        "model": built.model.name,
        "layer": config.layer,
        "d_in": built.sae.d_in,
        "d_sae": built.sae.d_sae,
        **figures,
        "features_validated_fraction": None,
        "features_validated_reason": "validation against controls is the next milestone of the offline build",
        "concepts": len(built.signatures),
        "senses": senses,
        "latents_shipped": shipped,
        "shipped": "full dictionary" if shipped == built.sae.d_sae else "catalogued latents alone (exact for readings)",
        "fingerprint": fingerprint,
        "licence": "Apache-2.0",
        "data": built.data,
        "command": f"sensecheck build {config.source} --corpus PATH",
    }


def _build_row(config: BuildConfig, built: Built, card: dict[str, Any]) -> BuildRow:
    packages = ("torch", "transformers", "scikit-learn", "numpy", "sqlalchemy")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    settings = config.model_dump(mode="json")
    settings["corpus"].pop("root")  # a path of the machine that built it
    return BuildRow(
        sae_id=1, created_at=datetime.now(UTC), config=settings, data=built.data, versions=versions, figures=card
    )


def _replace_folder(staging: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    staging.replace(target)
    shutil.rmtree(old, ignore_errors=True)
