"""Publish stage: the catalogued latents, the catalog and the card in one folder, renamed into place when complete."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import math
import os
import platform
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import update
from sqlalchemy.orm import Session

from sae_runtime.build.calibrate import MIN_READ_ACCURACY, NEVER, Judged, choose_thresholds
from sae_runtime.build.cues import fit_cues
from sae_runtime.build.features.describe import Description, Writer, written_sentence
from sae_runtime.build.features.gates import Validation
from sae_runtime.build.plan import BuildPlan
from sae_runtime.build.report.card import card_figures, make_card, report_of
from sae_runtime.build.report.page import write_report
from sae_runtime.build.signatures import Signature
from sae_runtime.catalog.masking import mask_all
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
from sae_runtime.disk import writing
from sae_runtime.errors import InputError
from sae_runtime.evaluation.planted import read_planted
from sae_runtime.evaluation.prompts import calibration_prompts
from sae_runtime.models import fingerprint_model
from sae_runtime.paths import (
    CARD_FILE,
    CATALOG_FILE,
    REPORT_JSON_FILE,
    REPORT_PAGE_FILE,
    SAE_CONFIG_FILE,
    SAE_WEIGHTS_FILE,
)
from sae_runtime.progress import progress
from sae_runtime.sae import SAE, save_sae
from sae_runtime.sae.fingerprint import fingerprint_sae

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux: relative to the current folder; exchange
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
    target = target.resolve()
    check_target(target)
    built = replace(built, descriptions=[masked_description(item) for item in built.descriptions])
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with writing(target):
            staging.mkdir(parents=True)
            card = _fill(built, staging)
            _replace_folder(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def _fill(built: Built, staging: Path) -> dict[str, Any]:
    """Write everything to ``staging``; returns the card."""
    chosen = _catalogued_latents(built)
    save_sae(_shipped(built, chosen).to(dtype=torch.bfloat16), staging)
    catalog = staging / CATALOG_FILE
    engine = create_catalog(catalog)
    with Session(engine) as session, session.begin():
        sae_row = _add_sources(session, built, fingerprint_sae(staging))
        features = _add_features(session, sae_row, built, chosen)
        for pack, concepts in built.plan.packs.items():
            for concept in concepts:
                session.add(_concept_row(pack, concept, built.signatures[concept.concept], features))
    engine.dispose()
    figures = {**card_figures(built), **_calibrate(built, staging)}
    card = make_card(built, figures, chosen, fingerprint_sae(staging))
    engine = catalog_engine(catalog, writable=True)
    with Session(engine) as session, session.begin():
        session.add(_build_row(built, card))
    engine.dispose()
    seal_catalog(catalog)
    (staging / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    write_report(report_of(built, card, chosen), staging)
    return card


def masked_description(item: Description) -> Description:
    """``item`` without the private data that stood in its texts; see :func:`sae_runtime.catalog.masking.mask`."""
    texts = {name: mask_all(getattr(item, name)) for name in ("label", "sentence", "predicate", "promoted", "contexts")}
    return replace(item, **texts)


def check_target(target: Path) -> None:
    """Refuse to replace a folder that holds anything but artefacts; put back what a killed publication left aside.

    Raises:
        InputError: it does.
    """
    if _aside(target).is_dir() and not target.exists():
        _aside(target).replace(target)
    if not target.exists():
        return
    ours = {SAE_CONFIG_FILE, SAE_WEIGHTS_FILE, CATALOG_FILE, CARD_FILE, REPORT_JSON_FILE, REPORT_PAGE_FILE}
    if not target.is_dir() or {path.name for path in target.iterdir()} - ours:
        raise InputError(f"{target} holds other files; publishing would replace them.", "Name a new folder with --out.")


def _catalogued_latents(built: Built) -> list[int]:
    """Latents of all signatures, then those whose descriptions passed all gates, best ones first, up to the wanted
    number."""
    chosen = {int(column) for signature in built.signatures.values() for column in signature.readout.columns}
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
    purities = _purities(built.signatures)
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


def _purities(signatures: dict[str, Signature]) -> dict[int, float]:
    """Sense purity of each latent, mean over the concepts in whose held-out contexts it fired."""
    found: dict[int, list[float]] = {}
    for signature in signatures.values():
        for column, purity in zip(signature.readout.columns, signature.purity, strict=True):
            if not math.isnan(purity):
                found.setdefault(int(column), []).append(float(purity))
    return {index: sum(values) / len(values) for index, values in found.items()}


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
    inspector = Inspector.from_model(str(built.plan.model.path), artefacts=staging)
    # Cross-validated on the fit contexts, so that the held-out ones select nothing.
    trusted = {slug for slug, fit in built.signatures.items() if fit.validation_accuracy >= MIN_READ_ACCURACY}
    prompts = [prompt for prompt in calibration_prompts() if prompt.concept in built.signatures]
    judged = [
        Judged(
            prompt,
            mention.reading,
            mention.intended,
            prompt.concept in trusted,
            built.signatures[prompt.concept].own_sense_low,
        )
        for prompt, _, mention in read_planted(inspector, prompts, "calibrate")
        if mention
    ]
    read_below, intended_above, figures = choose_thresholds(judged)
    engine = catalog_engine(staging / CATALOG_FILE, writable=True)
    with Session(engine) as session, session.begin():
        for slug in trusted:
            own = min(read_below, built.signatures[slug].own_sense_low)
            thresholds = {"read_below": own, "intended_above": intended_above}
            session.execute(update(ConceptRow).where(ConceptRow.slug == slug).values(**thresholds))
    engine.dispose()
    figures = {name: round(value, 4) for name, value in figures.items()}
    thresholds = {"read_below": read_below, "intended_above": intended_above}
    return {"calibration": {**thresholds, "prompts": len(judged), "concepts_that_flag": len(trusted), **figures}}


def _build_row(built: Built, card: dict[str, Any]) -> BuildRow:
    packages = ("torch", "transformers", "scikit-learn", "numpy", "sqlalchemy")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    settings = built.plan.config.model_dump(mode="json")
    settings["corpus"].pop("root")  # a path of the machine that built it
    return BuildRow(
        sae_id=1, created_at=datetime.now(UTC), config=settings, data=card["data"], versions=versions, figures=card
    )


def _replace_folder(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``; whoever looks finds the one or the other, whole."""
    if target.exists() and _exchange(staging, target):
        shutil.rmtree(staging, ignore_errors=True)
        return
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    staging.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _aside(target: Path) -> Path:
    """Where the old folder waits while the new one comes, if they cannot be exchanged at once."""
    return target.with_name(f".{target.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths at once (Linux, see ``renameat2(2)``); False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
