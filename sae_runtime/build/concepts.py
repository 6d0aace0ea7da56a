"""Concepts of a catalog: their signatures are fitted, their rows written, their thresholds chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session
from threadpoolctl import threadpool_limits

from sae_runtime.build.calibrate import MIN_READ_ACCURACY, NEVER, NO_FLAGS, Both, choose_bounds
from sae_runtime.build.config import ConceptConfig
from sae_runtime.build.contexts import load_contexts
from sae_runtime.build.cues import fit_cues
from sae_runtime.build.signatures import Fit, Signature, fit_signature
from sae_runtime.build.stages import Stage
from sae_runtime.catalog.packs import ConceptPack, Packs, concepts_of
from sae_runtime.catalog.store import catalog_engine
from sae_runtime.catalog.tables import (
    ConceptRow,
    CueRow,
    EarlyReadingRow,
    EarlySignatureRow,
    EarlyWeightRow,
    NoteRow,
    SenseContextRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.detector.context import is_declared, stem_places, told_senses
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
    concepts = concepts_of(packs)
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
        for column, purity in zip(signature.late.readout.columns, signature.purity, strict=True):
            if not math.isnan(purity):
                found.setdefault(int(column), []).append(float(purity))
    return {index: sum(values) / len(values) for index, values in found.items()}


def _concept_row(pack: str, concept: ConceptPack, signature: Signature, features: Mapping[int, int]) -> ConceptRow:
    cues = fit_cues(concept)
    late, early = signature.late.readout, signature.early.readout
    senses = []
    for number, (name, sense) in enumerate(concept.senses.items()):
        contexts = [
            SenseContextRow(text=context.text, start=context.start, end=context.end, held_out=held)
            for held, context in sense.all_labelled()
        ]
        senses.append(
            SenseRow(
                slug=name,
                gloss=sense.gloss,
                domains=[domain.lower() for domain in sense.domains],
                contexts=contexts,
                signature=SignatureRow(
                    bias=float(late.bias[number]),
                    weights=[
                        SignatureWeightRow(feature_id=features[latent], weight=weight)
                        for latent, weight in late.of_sense(number)
                    ],
                ),
                early=EarlySignatureRow(
                    bias=float(early.bias[number]),
                    weights=[
                        EarlyWeightRow(feature_id=features[latent], weight=weight)
                        for latent, weight in early.of_sense(number)
                    ],
                ),
                cues=[CueRow(stem=key, weight=weight) for key, weight in cues[name].items()],
                notes=[NoteRow(text=sense.note)],
            )
        )
    return ConceptRow(
        slug=concept.concept,
        pack=pack,
        forms=[form.lower() for form in concept.forms],
        site=signature.late.site,
        accuracy=signature.accuracy,
        read_below=NEVER[0],  # until calibrated
        intended_above=NEVER[1],
        early=EarlyReadingRow(
            read_below=NO_FLAGS.early_below,
            intended_above=NO_FLAGS.early_above,
            seconded_above=NO_FLAGS.seconded_above,
        ),
        senses=senses,
    )


def read_calibration(model: str, artefacts: Path, signatures: Mapping[str, Signature]) -> list[Both]:
    """The calibration prompts as ``artefacts`` read them."""
    inspector = Inspector.from_model(model, artefacts=artefacts)
    known = {concept.slug: concept for concept in inspector.view.concepts}
    prompts = [prompt for prompt in calibration_prompts() if prompt.concept in signatures]
    return [
        Both(
            prompt,
            mention.reading,
            mention.early,
            mention.intended,
            told_senses(known[prompt.concept], stem_places(prompt.prompt), prompt.start),
            is_declared(known[prompt.concept], prompt.domain),
            _own_bound(signatures[prompt.concept].late),
            _own_bound(signatures[prompt.concept].early),
        )
        for prompt, _, mention in read_planted(inspector, prompts, "calibrate")
        if mention
    ]


def calibrate(model: str, artefacts: Path, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Choose the thresholds with ``artefacts`` and store them in their catalog; returns the card's figures."""
    judged = read_calibration(model, artefacts, signatures)
    bounds, figures = choose_bounds(judged)
    engine = catalog_engine(artefacts / CATALOG_FILE, writable=True)
    with Session(engine) as session, session.begin():
        for row in session.scalars(select(ConceptRow)):
            signature = signatures[row.slug]
            row.read_below = min(bounds.read_below, _own_bound(signature.late))
            row.intended_above = bounds.intended_above
            assert row.early is not None  # noqa: S101 (see _concept_row)
            row.early.read_below = min(bounds.early_below, _own_bound(signature.early))
            row.early.intended_above = bounds.early_above
            row.early.seconded_above = bounds.seconded_above
    engine.dispose()
    figures = {name: round(value, 4) for name, value in figures.items()}
    flagging = sum(_own_bound(s.late) >= 0 or _own_bound(s.early) >= 0 for s in signatures.values())
    about = {"prompts": len(judged), "concepts_that_flag": flagging}
    return {"calibration": {**bounds._asdict(), **about, **figures}}


def _own_bound(fit: Fit) -> float:
    """The most that a reading may give the intended sense of a misread; below zero where it reads too poorly to flag.

    Cross-validated on the fit contexts, so that the held-out ones select nothing.
    """
    return fit.own_sense_low if fit.accuracy >= MIN_READ_ACCURACY else NEVER[0]


def concept_counts(packs: Packs) -> dict[str, int]:
    """How many concepts and senses there are, for the card."""
    concepts = concepts_of(packs)
    return {"concepts": len(concepts), "senses": sum(len(concept.senses) for concept in concepts)}


def reading_figures(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Means over concepts of the readings' accuracy on held-out contexts, and of a dense probe's at the same sites."""
    fitted = list(signatures.values())
    purity = np.concatenate([signature.purity for signature in fitted])
    return {
        "reading_accuracy": round(sum(s.accuracy for s in fitted) / len(fitted), 4),
        "reading_accuracy_dense_probe": round(sum(s.dense_accuracy for s in fitted) / len(fitted), 4),
        "reading_sites": {
            site: sum(s.late.site == site for s in fitted) for site in sorted({s.late.site for s in fitted})
        },
        "sense_purity": round(float(np.nanmean(purity)), 4),
    }
