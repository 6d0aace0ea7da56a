"""The validated configuration of a build; a commented one is packaged for every built-in model."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from sae_runtime.build.corpus_config import CorpusConfig, Strict
from sae_runtime.errors import InputError
from sae_runtime.yaml_file import faults, is_file, read_yaml

STAGES = ("corpus", "harvest", "train", "describe", "validate", "concepts", "publish")
_CONFIGS = Path(__file__).parent / "configs"


class TrainConfig(Strict):
    """BatchTopK training (Bussmann et al. 2024) with an auxiliary loss for dead latents (Gao et al. 2024)."""

    width: int
    k: int
    batch_tokens: int = 2048
    epochs: float = 1.0
    learning_rate: float = 4e-4
    warmup_steps: int = 50
    decay_fraction: float = 0.25
    auxiliary_k: int = 256
    auxiliary_weight: float = 1 / 32
    dead_after_tokens: int = 200_000
    bias: Literal["mean", "geometric median"] = "mean"
    """Where the decoder's bias begins."""
    directions: Literal["data", "random"] = "data"
    """Where the decoder's directions begin; see :mod:`sae_runtime.build.beginning`."""
    nested_widths: list[int] = []  # noqa: RUF012 (pydantic copies it)
    """Matryoshka nesting (Bussmann et al. 2025): the first latents, so many of each, must reconstruct alone too."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if not 0 < self.k <= self.width:
            raise ValueError(f"k must be between 1 and the width {self.width}, not {self.k}")
        if any(a >= b for a, b in pairwise([0, *self.nested_widths, self.width])):
            raise ValueError(f"nested_widths must grow and stay below the width {self.width}")
        return self


class ValidationConfig(Strict):
    """What a feature must show on documents that were not used to describe it; see docs/build.md."""

    min_samples: int = 30
    """Tokens of the validation split on which it fires, and on which its description says so."""
    min_balanced_accuracy: float = 0.7
    """Of its description, against hard negatives."""
    max_interval: float = 0.06
    """Width of the 95 % interval of its description's precision."""
    min_precision: float = 0.5
    """Lower end of that interval."""
    min_correlation: float = 0.7
    """Of its activations with those of a latent of a second training run."""
    min_sensitivity: float = 0.5
    """Share of fresh texts made to fit the description on which it fires."""
    fresh_texts: int = 6
    """Per feature."""
    epochs: float | None = None
    """Passes of the second run over the text; None: as many as the dictionary's own."""
    control_tokens: int | None = 300_000
    """Training tokens of the control, which is trained for as many steps as the second run; None: all."""


class ConceptConfig(Strict):
    """How signatures are fitted to the labelled contexts."""

    packs: list[str] = ["homographs", "arithmetic", "figurative"]  # noqa: RUF012 (pydantic copies it)
    # Cross-validated accuracy on the fit contexts, small model, shipped dictionary: 0.910 at 128 features, 0.913 at 256 and 512.
    max_features: int = 128
    min_correlation: float = 0.5
    """Of the latents that signatures may use: with a latent of a second training run, on unseen text."""
    min_samples: int = 10
    """Of those latents: tokens of the validation split on which they fire."""
    catalogued_latents: int = 2048


class BuildConfig(Strict):
    """Everything that determines a build."""

    model: str
    layer: int
    seed: int = 0
    source: str = Field(default="CONFIG.yaml", exclude=True)
    corpus: CorpusConfig
    harvest_engine: Literal["transformers", "vllm"] = "transformers"
    """What captures activations; vLLM is for GPU machines. The control is always captured with transformers."""
    harvest_batch_tokens: int = 4096
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the model computes in while it is harvested; auto: bfloat16 where the hardware has units for it."""
    sae: str | None = None
    """A dictionary to take instead of training one; ``train`` then says how the second run and the control are trained."""
    train: TrainConfig
    validation: ValidationConfig = ValidationConfig()
    concepts: ConceptConfig = ConceptConfig()

    def repeated(self) -> TrainConfig:
        """How the second run is trained; the control takes as many steps."""
        return self.train.model_copy(update={"epochs": self.validation.epochs or self.train.epochs})


def load_config(value: str, *, corpus_root: Path | None = None, sae: str | None = None) -> BuildConfig:
    """Read the packaged configuration of a built-in model by name, or any YAML file.

    ``corpus_root`` (or the environment variable ``SENSECHECK_CORPUS``) replaces the configured text folder, ``sae`` the
    configured dictionary.

    Raises:
        InputError: there is no such configuration, or a field of it is wrong.
    """
    packaged = {path.stem: path for path in _CONFIGS.glob("*.yaml")}
    path = packaged.get(value, Path(value))
    if not is_file(path):
        raise InputError(
            f"There is no build configuration '{value}'.",
            f"Use one of {', '.join(sorted(packaged))}, or a YAML file like them.",
        )
    try:
        config = BuildConfig.model_validate(read_yaml(path))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        wrong = faults(error) if isinstance(error, ValidationError) else error
        raise InputError(
            f"The build configuration {path} is wrong: {wrong}.", "Compare it with a packaged one."
        ) from error
    config.source = value
    root = corpus_root or os.environ.get("SENSECHECK_CORPUS")
    if root:
        config.corpus.root = Path(root)
    if sae:
        config.sae = sae
    return config
