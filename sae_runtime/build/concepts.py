"""Concepts of a catalog: their signatures are fitted, their rows written, their thresholds chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import update
from sqlalchemy.orm import Session
from threadpoolctl import threadpool_limits

from sae_runtime.build.calibrate import MIN_READ_ACCURACY, NEVER, Judged, choose_thresholds
from sae_runtime.build.config import ConceptConfig
from sae_runtime.build.contexts import Packs, load_contexts
from sae_runtime.build.cues import fit_cues
from sae_runtime.build.signatures import Signature, fit_signature
from sae_runtime.build.stages import Stage
from sae_runtime.catalog.packs import ConceptPack
from sae_runtime.catalog.store import catalog_engine
from sae_runtime.catalog.tables import (
    ConceptRow,
    CueRow,
    NoteRow,
    SenseContextRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.detector.inspector import Inspector
from sae_runtime.evaluation.planted import read_planted
from sae_runtime.evaluation.prompts import calibration_prompts
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.progress import progress
from sae_runtime.sae import SAE


def fit_signatures(
    packs: Packs, contexts: Stage, sae: SAE, allowed: list[int], settings: ConceptConfig, seed: int
) -> dict[str, Signature]:
    """Signatures of all concepts by slug, over the latents ``allowed`` of ``sae``, from a finished stage *contexts*."""
    concepts = [concept for group in packs.values() for concept in group]
    directions = sae.directions().double().numpy()
    signatures = {}
    # Thousands of tiny regressions: threads would only wait for each other.
    with threadpool_limits(1), progress("concepts", len(concepts)) as advance:
        for concept in concepts:
            signatures[concept.concept] = fit_signature(
                load_contexts(contexts, concept.concept),
                directions,
                max_features=settings.max_features,
                seed=seed,
                allowed=allowed,
            )
            advance(1, concept.concept)
    return signatures


def add_concepts(
    session: Session, packs: Packs, signatures: Mapping[str, Signature], features: Mapping[int, int]
) -> None:
    """Add the rows of all concepts; ``features``: row ids by latent. Nothing is flagged until :func:`calibrate`."""
    for pack, concepts in packs.items():
        for concept in concepts:
            session.add(_concept_row(pack, concept, signatures[concept.concept], features))


def sense_purities(signatures: Mapping[str, Signature]) -> dict[int, float]:
    """Sense purity of each latent, mean over the concepts in whose held-out contexts it fired."""
    found: dict[int, list[float]] = {}
    for signature in signatures.values():
        for column, purity in zip(signature.readout.columns, signature.purity, strict=True):
            if not math.isnan(purity):
                found.setdefault(int(column), []).append(float(purity))
    return {index: sum(values) / len(values) for index, values in found.items()}


def _concept_row(pack: str, concept: ConceptPack, signature: Signature, features: Mapping[int, int]) -> ConceptRow:
    cues = fit_cues(concept)
    readout = signature.readout
    senses = []
    for number, (name, sense) in enumerate(concept.senses.items()):
        weights = [
            SignatureWeightRow(feature_id=features[int(column)], weight=float(weight))
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


def calibrate(model: str, artefacts: Path, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Choose the thresholds with ``artefacts`` and store them in their catalog; returns the card's figures."""
    inspector = Inspector.from_model(model, artefacts=artefacts)
    # Cross-validated on the fit contexts, so that the held-out ones select nothing.
    trusted = {slug for slug, fit in signatures.items() if fit.validation_accuracy >= MIN_READ_ACCURACY}
    prompts = [prompt for prompt in calibration_prompts() if prompt.concept in signatures]
    judged = [
        Judged(
            prompt,
            mention.reading,
            mention.intended,
            prompt.concept in trusted,
            signatures[prompt.concept].own_sense_low,
        )
        for prompt, _, mention in read_planted(inspector, prompts, "calibrate")
        if mention
    ]
    read_below, intended_above, figures = choose_thresholds(judged)
    engine = catalog_engine(artefacts / CATALOG_FILE, writable=True)
    with Session(engine) as session, session.begin():
        for slug in trusted:
            own = min(read_below, signatures[slug].own_sense_low)
            thresholds = {"read_below": own, "intended_above": intended_above}
            session.execute(update(ConceptRow).where(ConceptRow.slug == slug).values(**thresholds))
    engine.dispose()
    figures = {name: round(value, 4) for name, value in figures.items()}
    thresholds = {"read_below": read_below, "intended_above": intended_above}
    return {"calibration": {**thresholds, "prompts": len(judged), "concepts_that_flag": len(trusted), **figures}}


def reading_figures(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Means over concepts of the readings' accuracy on held-out contexts, and of a dense probe's at the same sites."""
    fitted = list(signatures.values())
    purity = np.concatenate([signature.purity for signature in fitted])
    return {
        "reading_accuracy": round(sum(s.accuracy for s in fitted) / len(fitted), 4),
        "reading_accuracy_dense_probe": round(sum(s.dense_accuracy for s in fitted) / len(fitted), 4),
        "reading_sites": {site: sum(s.site == site for s in fitted) for site in sorted({s.site for s in fitted})},
        "sense_purity": round(float(np.nanmean(purity)), 4),
    }
