"""Fingerprints that bind readings to the exact model they were made for."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from sae_runtime.errors import ModelError
from sae_runtime.paths import cache_dir

_DEFINITION = 3  # raise it when the fingerprint's definition changes, so that cached ones are not used on

# Settings that change activations; everything else in config.json (versions, dtype, cache flags) does not, or shows in
# the weights' shapes.
_CONFIG_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "vocab_size", "hidden_act", "rms_norm_eps", "tie_word_embeddings", "sliding_window",
)  # fmt: skip

# More such settings, of architectures that have them; an absent one leaves no trace, so that the list can grow.
_FURTHER_KEYS = (
    # GPT-2, GPT-NeoX
    "n_layer", "n_head", "activation_function", "layer_norm_epsilon", "layer_norm_eps", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "use_parallel_residual", "rotary_pct", "rotary_emb_base",
    # Gemma
    "hidden_activation", "query_pre_attn_scalar", "attn_logit_softcapping", "use_bidirectional_attention",
    "sliding_window_pattern", "rope_local_base_freq",
    # Granite, OLMo, Phi
    "embedding_multiplier", "residual_multiplier", "attention_multiplier", "clip_qkv", "partial_rotary_factor",
)  # fmt: skip
_PLAIN_ROPE = {"rope_theta", "rope_type", "type"}


class ModelFingerprint(BaseModel):
    """SHA-256 of what determines a model's activations for given messages (first 16 hex digits each)."""

    model_config = ConfigDict(frozen=True)

    weights: str
    config: str
    tokenizer: str
    chat_template: str

    def differences(self, other: ModelFingerprint) -> list[str]:
        """Names of the parts that differ."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [name for name in mine if mine[name] != theirs[name]]


def digest(data: bytes) -> str:
    """First 16 hex digits of the SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()[:16]


def fingerprint_model(folder: Path) -> ModelFingerprint:
    """Fingerprint of the model in ``folder``.

    Weights are hashed tensor by tensor (name, dtype, shape, bytes), so that the split into files and the order inside
    them do not matter. The result is cached by the files' sizes and modification times.

    Raises:
        ModelError: the folder has no safetensors weights, or a file is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} has no safetensors weights.", "Only safetensors models are opened; convert it first."
        )
    watched = sorted({*files, *folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.model")})
    stamp = digest(
        json.dumps(
            [_DEFINITION, *((str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in watched)]
        ).encode()
    )
    cached = cache_dir() / "fingerprints" / f"{stamp}.json"
    if cached.exists():
        return ModelFingerprint.model_validate_json(cached.read_text("utf-8"))
    result = _compute(folder, files)
    with suppress(OSError):  # without room or permission it is computed again next time
        cached.parent.mkdir(exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(result.model_dump_json(), "utf-8")
        partial.replace(cached)
    return result


def _compute(folder: Path, files: list[Path]) -> ModelFingerprint:
    import torch  # seconds, which commands that only print something need not wait for
    from transformers import AutoTokenizer

    tensors: dict[str, str] = {}
    try:
        for file in files:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                    tensor = weights.get_tensor(name)
                    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
                    tensors[name] = f"{tensor.dtype}{tuple(tensor.shape)}{hashlib.sha256(raw).hexdigest()}"
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # safetensors raises its own exception class for damaged files
        raise ModelError(
            f"The model in {folder} is damaged: {error}.", "Delete the folder and fetch it again."
        ) from error
    return ModelFingerprint(
        weights=digest(json.dumps(sorted(tensors.items())).encode()),
        config=digest(json.dumps(_settings(config), sort_keys=True).encode()),
        tokenizer=digest(json.dumps([sorted(tokenizer.get_vocab().items()), _merges(tokenizer)]).encode()),
        chat_template=digest((tokenizer.chat_template or "").encode()),
    )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What in a ``config.json`` changes activations."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    settings = {key: config.get(key) for key in _CONFIG_KEYS}
    settings["rope_theta"] = rope.get("rope_theta", config.get("rope_theta"))
    settings |= {key: config[key] for key in _FURTHER_KEYS if config.get(key) is not None}
    # Gemma-3 has one set of rope settings per kind of layer, GPT-NeoX turns a part of each head.
    if rope.get("rope_type", rope.get("type", "default")) != "default" or set(rope) - _PLAIN_ROPE:
        settings["rope"] = rope
    if set(config.get("layer_types") or []) - {"full_attention"}:
        settings["layer_types"] = config["layer_types"]
    if isinstance(text := config.get("text_config"), dict):  # models that also see or hear
        settings["text"] = _settings(text)
    return settings


def _merges(tokenizer: Any) -> list[str]:
    """Byte-pair merges in order, in one spelling (files hold them as pairs or as joined strings)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges") or [] if backend is not None else []
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
