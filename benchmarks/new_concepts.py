"""What it costs a concept that the published dictionary was cut down without it: ``python -m benchmarks.new_concepts MODEL``.

Artefacts hold the latents that some concept reads, and those that are described. ``sensecheck build concepts`` lets a new concept
choose among these. Here each concept in turn is the new one: it is fitted without the latents that it alone reads, and compared with the
concept as it was fitted with them, on the same held-out sentences.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import numpy as np
import typer
from sqlalchemy import select

from sae_runtime.build.contexts import load_contexts
from sae_runtime.build.refit import Refit
from sae_runtime.build.signatures import fit_signature
from sae_runtime.build.workers import LocalWorkers
from sae_runtime.catalog.store import open_catalog
from sae_runtime.catalog.tables import FeatureRow
from sae_runtime.detector.detector import Readout
from sae_runtime.evaluation.scoring import interval
from sae_runtime.models import DEFAULT_MODEL
from sae_runtime.progress import progress


def main(model: Annotated[str, typer.Argument(help="Built-in name, folder or hub id.")] = DEFAULT_MODEL) -> None:
    """Fit every concept without the latents that it alone reads."""
    job = Refit.of(model, None, None)
    with open_catalog(job.artefacts.catalog) as session:
        described = set(session.scalars(select(FeatureRow.index).where(FeatureRow.validated)))
    reads = {
        concept.slug: {
            latent for one in (Readout.of(concept), Readout.early(concept)) if one for latent in one.latents.tolist()
        }
        for concept in job.artefacts.view.concepts
    }
    readers = Counter(latent for own in reads.values() for latent in own)
    contexts = job.read_contexts(LocalWorkers())
    directions = job.sae().directions().double().numpy()
    settings = {"max_features": job.concepts.max_features, "seed": job.settings["seed"]}
    gaps, with_them, lost = [], [], []
    with progress("concepts", len(reads)) as advance:
        for concept in job.artefacts.view.concepts:
            alone = {latent for latent in reads[concept.slug] if readers[latent] == 1} - described
            allowed = [latent for latent in job.artefacts.view.features if latent not in alone]
            fit = fit_signature(load_contexts(contexts, concept.slug), directions, **settings, allowed=allowed)
            gaps.append(fit.accuracy - concept.accuracy)
            with_them.append(concept.accuracy)
            lost.append(len(alone))
            advance(1, concept.slug)
    low, high = interval(np.array(gaps), np.arange(len(gaps)))
    print(
        f"{job.artefacts.model.name}: {len(gaps)} concepts, {np.mean(lost):.1f} latents of their own each. "
        f"Held-out accuracy {np.mean(with_them):.4f}, as a new concept {np.mean(with_them) + np.mean(gaps):.4f} "
        f"({np.mean(gaps) + 0.0:+.4f}, {low:+.4f} to {high:+.4f})."
    )


if __name__ == "__main__":
    typer.run(main)
