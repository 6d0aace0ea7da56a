"""Which stages a build has, in what order, and where each keeps its outputs.

A stage's key is a hash of all its inputs, the stage before among them, so the whole plan is known before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sae_runtime.build.config import BuildConfig
from sae_runtime.build.contexts import contexts_key
from sae_runtime.build.corpus import corpus_key
from sae_runtime.build.features.tokens import Words
from sae_runtime.build.imported import imported_fingerprint
from sae_runtime.build.stages import Stage, stage_key
from sae_runtime.catalog.packs import ConceptPack, load_packs
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.dtype import compute_dtype
from sae_runtime.models import ResolvedModel, fingerprint_model, resolve_model

# The steps whose outputs are kept, in order, each with the stage it belongs to. What is not listed (fitting concepts,
# publishing) takes a minute or two and always runs.
STEPS = {
    "corpus": "corpus",
    "harvest": "harvest",
    "train": "train",
    "measure": "train",
    "describe": "describe",
    "control-harvest": "validate",
    "again": "validate",
    "control-train": "validate",
    "control-describe": "validate",
    "validate": "validate",
    "contexts": "concepts",
}

# Raise a step's number when its code gives other results for the same inputs.
_DEFINITIONS = {"harvest": 2, "train": 3, "measure": 3, "describe": 3, "validate": 2}


@dataclass(frozen=True)
class BuildPlan:
    """A build before it runs.

    Attributes:
        config: its configuration.
        model: the model on disk.
        encoder: the model's tokenizer.
        packs: concept packs by name.
        steps: outputs of each of :data:`STEPS`.
    """

    config: BuildConfig
    model: ResolvedModel
    encoder: ChatEncoder
    packs: dict[str, list[ConceptPack]]
    steps: dict[str, Stage]

    @classmethod
    def of(cls, config: BuildConfig) -> BuildPlan:
        """Resolve the model, hash the inputs, compute all keys; nothing is written.

        Raises:
            InputError: the corpus or a pack is not there.
            ModelError: the model is not there.
        """
        model = resolve_model(config.model)
        encoder = ChatEncoder(model.path)
        packs = load_packs(config.concepts.packs)
        keys = _keys(config, model, encoder, packs)
        return cls(config, model, encoder, packs, {name: Stage(config.model, name, keys[name]) for name in STEPS})

    @cached_property
    def words(self) -> Words:
        """The tokenizer's tokens as words; takes seconds to make."""
        return Words(self.encoder.tokenizer)

    def of_stage(self, stage: str) -> list[Stage]:
        """The kept steps of a stage, in order."""
        return [self.steps[name] for name, owner in STEPS.items() if owner == stage]


def _keys(
    config: BuildConfig, model: ResolvedModel, encoder: ChatEncoder, packs: dict[str, list[ConceptPack]]
) -> dict[str, str]:
    def key(name: str, *parts: Any) -> str:
        return stage_key(_DEFINITIONS.get(name.removeprefix("control-"), 1), *parts)

    fingerprint = fingerprint_model(model.path).model_dump()
    repeated = config.repeated().model_dump()
    dictionary = imported_fingerprint(config.sae) if config.sae else config.train.model_dump()
    validate = config.validation.model_dump()
    keys = {"corpus": corpus_key(config, encoder)}
    keys["harvest"] = key("harvest", keys["corpus"], config.layer, fingerprint, str(compute_dtype(config.dtype)))
    keys["train"] = key("train", keys["harvest"], dictionary, config.seed)
    keys["measure"] = key("measure", keys["train"])
    keys["describe"] = key("describe", keys["train"])
    keys["again"] = key("train", keys["harvest"], repeated, config.seed + 1)
    keys["control-harvest"] = key(
        "harvest", keys["harvest"], "random weights", config.seed, config.validation.control_tokens
    )
    keys["control-train"] = key("train", keys["control-harvest"], repeated, config.seed)
    keys["control-describe"] = key("describe", keys["control-train"])
    keys["validate"] = key("validate", keys["describe"], keys["again"], keys["control-describe"], validate)
    keys["contexts"] = contexts_key(keys["train"], packs)
    return keys
