"""The validated configuration of a build; a commented one is packaged for every built-in model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sae_runtime.errors import InputError

_CONFIGS = Path(__file__).parent / "configs"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextSource(_Strict):
    """Plain text files, cut into passages of ``sequence_length`` tokens."""

    kind: Literal["text"]
    name: str
    paths: list[str]
    licence: str
    weight: float = 1.0


class DialogueSource(_Strict):
    """Conversations: blocks of ``Speaker: text`` lines, rendered through the chat template.

    ``column`` reads the blocks from a CSV column; otherwise blocks are separated by blank lines. ``user`` and
    ``assistant`` are the two speakers' names.
    """

    kind: Literal["dialogue"]
    name: str
    paths: list[str]
    licence: str
    weight: float = 1.0
    user: str = "User"
    assistant: str = "Assistant"
    column: str | None = None


class RecordSource(_Strict):
    """JSON or JSON-lines records with a request and an answer, rendered through the chat template.

    ``user`` and ``assistant`` are format strings over the record's fields.
    """

    kind: Literal["records"]
    name: str
    paths: list[str]
    licence: str
    weight: float = 1.0
    user: str
    assistant: str


Source = Annotated[TextSource | DialogueSource | RecordSource, Field(discriminator="kind")]


class CorpusConfig(_Strict):
    """Which text is read and how much of it."""

    root: Path = Path("../shared/data/corpus")
    sources: list[Source]
    sequence_length: Annotated[int, Field(ge=16)] = 256
    train_tokens: int
    validation_tokens: int = 30_000
    test_tokens: int = 30_000


class TrainConfig(_Strict):
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


class ConceptConfig(_Strict):
    """How signatures are fitted to the labelled contexts."""

    packs: list[str] = ["homographs", "arithmetic", "figurative"]
    # Cross-validated accuracy on the fit contexts at 24, 48, 96, 192 features: 0.885, 0.888, 0.887, 0.886 (small model)
    # and 0.874, 0.888, 0.888, 0.882 (default model).
    max_features: int = 48
    catalogued_latents: int = 2048


class BuildConfig(_Strict):
    """Everything that determines a build."""

    model: str
    layer: int
    seed: int = 0
    source: str = Field(default="CONFIG.yaml", exclude=True)
    corpus: CorpusConfig
    harvest_batch_tokens: int = 4096
    train: TrainConfig
    concepts: ConceptConfig = ConceptConfig()


def load_config(value: str, *, corpus_root: Path | None = None) -> BuildConfig:
    """Read the packaged configuration of a built-in model by name, or any YAML file.

    ``corpus_root`` (or the environment variable ``SENSECHECK_CORPUS``) replaces the configured text folder.

    Raises:
        InputError: there is no such configuration, or a field of it is wrong.
    """
    path = _CONFIGS / f"{value}.yaml"
    if not path.exists():
        path = Path(value)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in _CONFIGS.glob("*.yaml")))
        raise InputError(
            f"There is no build configuration '{value}'.", f"Use one of {names}, or a YAML file like them."
        )
    try:
        config = BuildConfig.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The build configuration {path} is wrong: {error}", "Compare it with a packaged one."
        ) from error
    config.source = value
    root = corpus_root or os.environ.get("SENSECHECK_CORPUS")
    if root:
        config.corpus.root = Path(root)
    return config
