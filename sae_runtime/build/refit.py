"""``sensecheck build concepts``: the concepts of published artefacts fitted anew, over the latents that these hold.

For concepts that were added or changed, and for a better way of fitting: no text, no training, minutes instead of hours.
Dictionary and features stay as they are; see ``docs/build.md``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from sae_runtime.build.concepts import (
    add_concepts,
    calibrate,
    concept_counts,
    fit_signatures,
    reading_figures,
    sense_purities,
)
from sae_runtime.build.config import ConceptConfig
from sae_runtime.build.contexts import Read, contexts_key, run_contexts
from sae_runtime.build.folders import check_target, staged
from sae_runtime.build.publish import complete
from sae_runtime.build.signatures import Signature
from sae_runtime.build.stages import Stage, only_build, stage_key
from sae_runtime.build.workers import LocalWorkers, Workers
from sae_runtime.catalog.packs import ConceptPack, Packs, concepts_of, load_packs
from sae_runtime.catalog.store import catalog_engine
from sae_runtime.catalog.tables import (
    ConceptRow,
    CueRow,
    EarlyReadingRow,
    EarlySignatureRow,
    EarlyWeightRow,
    FeatureRow,
    NoteRow,
    SenseContextRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.catalog.view import latest_build
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.engines.dtype import compute_dtype
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.errors import ArtefactError
from sae_runtime.evaluation.notes import wordings
from sae_runtime.paths import CARD_FILE, CATALOG_FILE, REPORT_JSON_FILE
from sae_runtime.sae import SAE, load_sae

# Of concepts, each before what it refers to.
_TABLES = (
    NoteRow,
    CueRow,
    EarlyWeightRow,
    EarlySignatureRow,
    EarlyReadingRow,
    SignatureWeightRow,
    SignatureRow,
    SenseContextRow,
    SenseRow,
    ConceptRow,
)


@dataclass(frozen=True)
class Refit:
    """What is fitted anew: the artefacts, with the settings of the build that made them; packs by name."""

    artefacts: Artefacts
    settings: dict[str, Any]
    packs: Packs

    @classmethod
    def of(cls, model: str, artefacts: Path | None, packs: list[str] | None) -> Refit:
        """Open the artefacts and load the packs; for arguments and errors see :func:`refit`."""
        found = Artefacts.open(model, folder=artefacts)
        found.check_sae()
        build = latest_build(found.catalog)
        if build is None:
            raise ArtefactError(
                f"The catalog {found.catalog} does not tell how it was built.", "Build it with `sensecheck build`."
            )
        names = packs or build.config["concepts"]["packs"]
        settings = {**build.config, "concepts": {**build.config["concepts"], "packs": names}}
        return cls(found, settings, load_packs(names))

    @property
    def concepts(self) -> ConceptConfig:
        """How signatures are fitted."""
        return ConceptConfig.model_validate(self.settings["concepts"])

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"sensecheck build concepts {self.artefacts.model.name}"

    def sae(self) -> SAE:
        """The artefacts' dictionary, as the build reads with it."""
        return load_sae(self.artefacts.folder.absolute())

    def read_contexts(self, workers: Workers) -> Stage:
        """The finished stage with the features of all labelled sentences; what is missing of it is read."""
        view, model = self.artefacts.view, self.artefacts.model
        dictionary = stage_key(view.model.model_dump(), view.sae_fingerprint, view.layer, self.settings["dtype"])
        stage = Stage(model.name, "contexts", contexts_key(dictionary, self.packs))
        if not stage.done:
            path, dtype = model.path.absolute(), compute_dtype(self.settings["dtype"])
            engine = partial(TransformersEngine, path, view.layer, dtype=dtype)
            job = Read(engine, path, partial(load_sae, self.artefacts.folder.absolute()))
            run_contexts(stage, job, self.packs, workers)
        return stage

    def fit(self, workers: Workers) -> dict[str, Signature]:
        """Signatures of all concepts by slug, over the latents that the catalog has."""
        allowed = sorted(self.artefacts.view.features)
        contexts = self.read_contexts(workers)
        return fit_signatures(self.packs, contexts, self.sae(), allowed, self.concepts, self.settings["seed"])


def refit(
    model: str,
    *,
    artefacts: Path | None = None,
    packs: list[str] | None = None,
    out: Path | None = None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Fit signatures, cues and thresholds anew; returns the card.

    Reading the labelled contexts resumes when it was interrupted. Notes that were tried keep their figures where the
    concept's senses and sentences are still the same; other notes have none until ``sensecheck eval notes``.

    Args:
        model: built-in name, folder or hub id.
        artefacts: folder of SAE and catalog; None: the shipped ones.
        packs: concept packs by name or folder; None: those of the build.
        out: where the result goes; None: in the place of what was there.
        workers: who reads the contexts; None: this process. The results are the same.

    Raises:
        InputError: there are no artefacts, ``out`` holds other files, or a build of the model is running.
        PackError: a pack is absent or malformed.
        ModelError, ArtefactError, FingerprintError: something is absent, damaged, or belongs to something else.
    """
    job = Refit.of(model, artefacts, packs)
    target = (out or job.artefacts.folder).resolve()
    check_target(target)
    with only_build(job.artefacts.model.name):
        signatures = job.fit(workers or LocalWorkers())
        with staged(target) as staging:
            return _fill(job, signatures, staging)


def _fill(job: Refit, signatures: dict[str, Signature], staging: Path) -> dict[str, Any]:
    """Write everything to ``staging``; returns the card."""
    shutil.copytree(job.artefacts.folder, staging, dirs_exist_ok=True)
    engine = catalog_engine(staging / CATALOG_FILE, writable=True)
    with Session(engine) as session, session.begin():
        tried = _replace_concepts(session, job.packs, signatures)
    engine.dispose()
    calibrated = calibrate(str(job.artefacts.model.path), staging, signatures)
    card = json.loads((staging / CARD_FILE).read_text("utf-8"))
    if not tried:
        card.pop("notes", None)  # they are of other notes
    made = card["command"].split(" && ")[0]
    card |= {**reading_figures(signatures), **calibrated, **concept_counts(job.packs)}
    card["command"] = f"{made} && {job.command}"
    report = json.loads((staging / REPORT_JSON_FILE).read_text("utf-8"))
    report["readings"] = {name: card[name] for name in report["readings"]}
    report |= {"calibration": card["calibration"], "command": card["command"]}
    complete(staging, job.settings, card, report)
    return card


def _replace_concepts(session: Session, packs: Packs, signatures: dict[str, Signature]) -> bool:
    """Put the concepts of ``packs`` in the place of the catalog's; whether all notes kept what was measured of them."""
    given = {pack.concept: pack for pack in concepts_of(packs)}
    kept = {
        (concept.slug, sense.slug): _values(sense.notes[0])
        for concept in session.scalars(select(ConceptRow))
        if concept.slug in given and _same(concept, given[concept.slug])
        for sense in concept.senses
        if sense.notes and sense.notes[0].text in wordings(given[concept.slug], sense.slug).values()
    }
    session.expunge_all()
    for table in _TABLES:
        session.execute(delete(table))
    features = {index: row for row, index in session.execute(select(FeatureRow.id, FeatureRow.index))}
    add_concepts(session, packs, signatures, features)
    session.flush()
    query = select(NoteRow, ConceptRow.slug, SenseRow.slug).select_from(NoteRow).join(SenseRow).join(ConceptRow)
    notes = {(concept, sense): note for note, concept, sense in session.execute(query)}
    for name, values in kept.items():
        for field, value in values.items():
            setattr(notes[name], field, value)
    session.execute(update(FeatureRow).values(sense_purity=None))
    for index, purity in sense_purities(signatures).items():
        session.execute(update(FeatureRow).where(FeatureRow.id == features[index]).values(sense_purity=purity))
    return kept.keys() == notes.keys()


def _values(note: NoteRow) -> dict[str, Any]:
    """All fields but the note's place."""
    columns = (column.key for column in NoteRow.__table__.columns)
    return {name: getattr(note, name) for name in columns if name not in ("id", "sense_id")}


def _same(concept: ConceptRow, pack: ConceptPack) -> bool:
    """Whether notes of ``concept`` were tried with the senses and sentences that ``pack`` has."""
    stored = {
        sense.slug: (sense.gloss, {(context.text, context.start, context.held_out) for context in sense.contexts})
        for sense in concept.senses
    }
    given = {
        name: (sense.gloss, {(context.text, context.start, held) for held, context in sense.all_labelled()})
        for name, sense in pack.senses.items()
    }
    return stored == given
