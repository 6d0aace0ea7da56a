"""Which tokens a latent's decoder direction promotes, read through the model's own output head ("logit lens")."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sae_runtime.models import ResolvedModel
from sae_runtime.sae import SAE

_TOKENS = 5
_BATCH = 512
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


@torch.inference_mode()
def promoted_tokens(model: ResolvedModel, sae: SAE, tokenizer: Any) -> list[list[str]]:
    """Per latent the readable tokens whose logits its direction raises most, up to five.

    The direction ``W_dec[j]`` goes through the final norm and the output head, less the mean over latents, so that tokens
    which every direction promotes do not crowd out the rest.
    """
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(
        model.path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    head, norm = network.get_output_embeddings(), _final_norm(network)
    directions = sae.weights["W_dec"].float()
    parts = directions.split(_BATCH)
    mean = torch.stack([head(norm(part)).sum(0) for part in parts]).sum(0) / len(directions)
    result = []
    for part in parts:
        for tokens in (head(norm(part)) - mean).topk(3 * _TOKENS).indices.tolist():
            words = [tokenizer.decode([token]).strip() for token in tokens]
            readable = [word for word in dict.fromkeys(words) if word and "\ufffd" not in word]
            result.append(readable[:_TOKENS])
    return result


def _final_norm(network: nn.Module) -> nn.Module:
    base: Any = network.base_model
    for name in _FINAL_NORMS:
        if hasattr(base, name):
            return getattr(base, name)
    return nn.Identity()  # the directions are read as they are
