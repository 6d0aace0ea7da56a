"""Turning one ``--model`` value into a local folder that transformers and vLLM can open."""

from sae_runtime.models.fingerprint import ModelFingerprint, fingerprint_model
from sae_runtime.models.manifest import DEFAULT_MODEL, Manifest, builtin_manifests, builtin_names
from sae_runtime.models.resolve import ResolvedModel, resolve_model

__all__ = [
    "DEFAULT_MODEL",
    "Manifest",
    "ModelFingerprint",
    "ResolvedModel",
    "builtin_manifests",
    "builtin_names",
    "fingerprint_model",
    "resolve_model",
]
