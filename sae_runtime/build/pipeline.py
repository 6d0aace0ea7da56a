"""The whole build in order.

A stage that ended before with the same inputs is skipped. A killed build goes on where it was: harvest with the first
missing shard, training with its last checkpoint, contexts with the first missing concept; the short stages start again.
Fitting the concepts and publishing take a minute or two and always run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from threadpoolctl import threadpool_limits

from sae_runtime.build.config import BuildConfig
from sae_runtime.build.contexts import load_contexts, run_contexts
from sae_runtime.build.corpus import load_sequences, run_corpus
from sae_runtime.build.describe import load_descriptions, run_describe
from sae_runtime.build.harvest import load_residual, run_harvest
from sae_runtime.build.metrics import cross_entropy_figures, dead_fraction, reconstruction_figures
from sae_runtime.build.publish import Built, check_target, publish
from sae_runtime.build.signatures import Signature, fit_signature
from sae_runtime.build.stages import Stage, stage_key
from sae_runtime.build.train import load_trained, run_train
from sae_runtime.catalog.packs import ConceptPack, load_packs
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.errors import InputError
from sae_runtime.models import ResolvedModel, resolve_model
from sae_runtime.paths import artefacts_for, builds_dir
from sae_runtime.progress import console, progress
from sae_runtime.sae import JumpReLUSAE

STAGES = ("corpus", "harvest", "train", "describe", "contexts", "concepts", "publish")
_CE_TOKENS = 4_000
_DEAD_WINDOW = 250_000


def run_build(config: BuildConfig, *, out: Path | None = None, until: str = "publish") -> dict[str, Any] | None:
    """Build dictionary and catalog; returns the card, or None when ``until`` names an earlier stage.

    Args:
        config: see :func:`sae_runtime.build.config.load_config`.
        out: folder of the artefacts; None takes the shipped ones' place.
        until: last stage to run.

    Raises:
        InputError: the corpus is absent, or another build of the model is running.
    """
    if until not in STAGES:
        raise InputError(f"There is no stage '{until}'.", f"Stages: {', '.join(STAGES)}.")
    builds_dir().mkdir(parents=True, exist_ok=True)
    lock = FileLock(builds_dir() / f"{config.model.replace('/', '--')}.lock")
    try:
        with lock.acquire(timeout=0):
            return _run(config, out, until)
    except Timeout as error:
        raise InputError(f"Another build of {config.model} is running.", "Wait for it, or stop it.") from error


def _run(config: BuildConfig, out: Path | None, until: str) -> dict[str, Any] | None:
    model = resolve_model(config.model)
    check_target((out or artefacts_for(model.name)).resolve())
    encoder = ChatEncoder(model.path)
    last = STAGES.index(until)
    corpus = run_corpus(config, encoder)
    if last < STAGES.index("harvest"):
        return None
    harvest = run_harvest(config, model, corpus)
    if last < STAGES.index("train"):
        return None
    hook = f"blocks.{config.layer}.hook_resid_post"
    train = run_train(config, harvest, {"model_name": model.name, "hook_name": hook})
    sae = load_trained(train)
    figures = _figures(config, model, corpus, harvest, train, sae)
    if last < STAGES.index("describe"):
        return None
    describe = run_describe(config, corpus, harvest, train, sae, encoder.tokenizer)
    if last < STAGES.index("contexts"):
        return None
    packs = load_packs(config.concepts.packs)
    contexts = run_contexts(config, model, train, sae, packs)
    if last < STAGES.index("concepts"):
        return None
    signatures = fit_signatures(config, contexts, packs)
    figures |= reading_figures(signatures)
    if last < STAGES.index("publish"):
        return None
    data = {"corpus_tokens": corpus.summary()["tokens"], "sources": corpus.summary()["sources"]}
    built = Built(model, sae, load_descriptions(describe), packs, signatures, figures, data)
    return publish(config, built, out or artefacts_for(model.name))


def fit_signatures(config: BuildConfig, contexts: Stage, packs: dict[str, list[ConceptPack]]) -> dict[str, Signature]:
    """Signatures of all concepts by slug."""
    concepts = [concept for group in packs.values() for concept in group]
    signatures = {}
    # Thousands of tiny regressions: threads would only wait for each other.
    with threadpool_limits(1), progress("concepts", len(concepts)) as advance:
        for concept in concepts:
            data = load_contexts(contexts, concept.concept)
            signatures[concept.concept] = fit_signature(
                data, max_features=config.concepts.max_features, seed=config.seed
            )
            advance(1, concept.concept)
    return signatures


def reading_figures(signatures: dict[str, Signature]) -> dict[str, Any]:
    """Means over concepts of the readings' accuracy on held-out contexts, and of a dense probe's at the same sites."""
    fitted = list(signatures.values())
    return {
        "reading_accuracy": round(sum(s.accuracy for s in fitted) / len(fitted), 4),
        "reading_accuracy_dense_probe": round(sum(s.dense_accuracy for s in fitted) / len(fitted), 4),
        "reading_sites": {site: sum(s.site == site for s in fitted) for site in sorted({s.site for s in fitted})},
    }


def _figures(
    config: BuildConfig, model: ResolvedModel, corpus: Stage, harvest: Stage, train: Stage, sae: JumpReLUSAE
) -> dict[str, Any]:
    """Reconstruction on the untouched test split; cached as a stage of its own, since it takes minutes."""
    stage = Stage(config.model, "figures", stage_key(train.key, _CE_TOKENS, _DEAD_WINDOW))
    if not stage.done:
        test = load_residual(harvest, "test")["residual"]
        window = load_residual(harvest, "train")["residual"][:_DEAD_WINDOW]
        sequences, tokens = [], 0
        for ids in load_sequences(corpus, "test"):
            if tokens < _CE_TOKENS:
                sequences.append(ids)
                tokens += len(ids)
        stage.finish({
            **reconstruction_figures(sae, test),
            "dead_fraction": dead_fraction(sae, window),
            "dead_window_tokens": len(window),
            **cross_entropy_figures(model, config.layer, sae, sequences),
            "tokens_trained": train.summary()["tokens_trained"],
            "tokens_distinct": corpus.summary()["tokens"]["train"],
        })  # fmt: skip
        console.print(f"dictionary: {stage.summary()}")
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in stage.summary().items()}
