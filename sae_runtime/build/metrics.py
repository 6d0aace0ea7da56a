"""How good a dictionary is on text it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_runtime.engines.features import content_mask
from sae_runtime.engines.transformers import decoder_layers
from sae_runtime.models import ResolvedModel
from sae_runtime.progress import progress
from sae_runtime.sae import SAE

_BATCH = 4096


TokenMeans = dict[int, Tensor]


def token_means(residual: Tensor, tokens: Tensor) -> TokenMeans:
    """Mean activation ``[d_in]`` of every token id among the rows ``residual`` ``[n, d_in]``."""
    distinct, inverse = tokens.unique(return_inverse=True)
    sums = torch.zeros(len(distinct), residual.shape[1]).index_add_(0, inverse, residual.float())
    means = sums / inverse.bincount()[:, None]
    return dict(zip(distinct.tolist(), means, strict=True))


def reconstruction_figures(
    sae: SAE,
    residual: Tensor,
    tokens: Tensor | None = None,
    means: TokenMeans | None = None,
    advance: Callable[[float], None] = lambda rows: None,
) -> dict[str, float]:
    """Figures on content tokens ``[n, d_in]``, attention sinks excluded.

    ``fvu`` is the fraction of variance unexplained, ``sum |x - x_hat|^2 / sum |x - mean|^2``; ``fvu_per_dimension`` the
    mean over dimensions of each one's own, so that a few dimensions with a large variance cannot hide the rest;
    ``l0_mean`` the mean number of active latents, ``l0_fraction`` the same as a share of the width. With ``tokens``
    ``[n]`` and ``means``, ``fvu_token_mean`` compares with a look-up of each token's mean activation instead of one mean
    for all: above 1 the dictionary would know less than the token alone tells.
    """
    mean = residual.float().mean(0)
    error, variance = torch.zeros(len(mean)), torch.zeros(len(mean))
    active = from_token = 0.0
    for start in range(0, len(residual), _BATCH):
        x = residual[start : start + _BATCH].float()
        features = sae.encode(x)
        error += (sae.decode(features) - x).pow(2).sum(0)
        variance += (x - mean).pow(2).sum(0)
        active += (features > 0).sum().item()
        if tokens is not None and means is not None:
            known = torch.stack([means.get(token, mean) for token in tokens[start : start + _BATCH].tolist()])
            from_token += (x - known).pow(2).sum().item()
        advance(len(x))
    l0 = active / len(residual)
    figures = {
        "fvu": (error.sum() / variance.sum()).item(),
        "fvu_per_dimension": (error / variance).mean().item(),
        "l0_mean": l0,
        "l0_fraction": l0 / sae.d_sae,
    }
    return figures | ({"fvu_token_mean": error.sum().item() / from_token} if from_token else {})


def dead_fraction(sae: SAE, residual: Tensor, advance: Callable[[float], None] = lambda rows: None) -> float:
    """Share of latents that fire on none of the tokens ``[n, d_in]``."""
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    for start in range(0, len(residual), _BATCH):
        x = residual[start : start + _BATCH]
        fired |= (sae.encode(x.float()) > 0).any(0)
        advance(len(x))
    return (~fired).float().mean().item()


@torch.inference_mode()
def cross_entropy_figures(
    model: ResolvedModel, layer: int, sae: SAE, sequences: list[list[int]]
) -> dict[str, float | None]:
    """What the model loses when it goes on from the reconstruction instead of the residual stream.

    Next-token cross-entropy in nats with the stream untouched, with content tokens replaced by their reconstruction,
    and with them replaced by their mean. ``ce_recovered = (mean - spliced) / (mean - clean)``, None
    where the mean costs the model nothing, as it may in one that has learned nothing.
    """
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(
        model.path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    splice: Any = None

    def replace(module: Any, args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        content = content_mask(stream[0])
        if splice is not None:
            stream = stream.clone()
            stream[0, content] = splice(stream[0, content])
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    decoder_layers(network)[layer].register_forward_hook(replace)
    arms = {"clean": None, "spliced": lambda x: sae.decode(sae.encode(x)), "mean": lambda x: x.mean(0).expand_as(x)}
    totals = dict.fromkeys(arms, 0.0)
    tokens = 0
    with progress("cross-entropy", len(sequences) * len(arms)) as advance:
        for ids in sequences:
            batch = torch.tensor([ids])
            tokens += len(ids) - 1
            for name, function in arms.items():
                splice = function
                logits = network(input_ids=batch, use_cache=False).logits[0, :-1]
                totals[name] += torch.nn.functional.cross_entropy(logits, batch[0, 1:], reduction="sum").item()
                advance(1)
    clean, spliced, mean = (totals[name] / tokens for name in arms)
    return {
        "ce_clean": clean,
        "ce_delta": spliced - clean,
        "ce_recovered": (mean - spliced) / (mean - clean) if mean > clean else None,
        "ce_tokens": tokens,
    }
