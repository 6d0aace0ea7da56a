"""From a prompt's residual stream to its sparse features; what every engine hands to the detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from sae_runtime.errors import EngineError
from sae_runtime.sae import SAE

# A token whose residual norm exceeds this multiple of its sequence's median norm is an attention sink: such tokens
# park attention and carry no content (measured: 24,600 against 150-200 on SmolLM2; other tokens stay below 3x).
SINK_FACTOR = 10.0
_BLOCK = 65_536  # latents that are encoded at once


def content_mask(residual: Tensor) -> Tensor:
    """Which tokens carry content: bool ``[tokens]``, False for attention sinks.

    The first token is always a sink; others are recognised by a norm above :data:`SINK_FACTOR` times the median.
    """
    norms = residual.float().norm(dim=-1)
    mask = norms <= SINK_FACTOR * norms.median()
    mask[0] = False
    return mask


@dataclass(frozen=True)
class PromptFeatures:
    """The features of one prompt's tokens, sparse; attention sinks have none.

    Attributes:
        content: bool ``[tokens]``, False for attention sinks.
        positions: int32 ``[n]``, ascending token positions of the activations.
        latents: int32 ``[n]``, indices in the full dictionary.
        values: float32 ``[n]``, activations, all positive.
    """

    content: NDArray[np.bool_]
    positions: NDArray[np.int32]
    latents: NDArray[np.int32]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.content)

    def pooled(self, tokens: range, width: int) -> NDArray[np.float64]:
        """Mean over the content tokens among ``tokens`` of ``sqrt(activation)``, by latent: ``[width]``.

        Zeros when no content token is among them. The square root tames the few huge activations.
        """
        first, last = np.searchsorted(self.positions, (tokens.start, tokens.stop))
        roots = np.sqrt(self.values[first:last].astype(np.float64))
        sums = np.bincount(self.latents[first:last], weights=roots, minlength=width)
        return sums / max(1, int(self.content[tokens.start : tokens.stop].sum()))

    def pooled_at(self, tokens: range, latents: NDArray[np.int64]) -> NDArray[np.float64]:
        """What :meth:`pooled` has for ``latents`` ``[m]``, which ascend; takes no time and room for the others."""
        first, last = np.searchsorted(self.positions, (tokens.start, tokens.stop))
        found = self.latents[first:last]
        places = np.searchsorted(latents, found)
        wanted = places < len(latents)
        wanted[wanted] = latents[places[wanted]] == found[wanted]
        roots = np.sqrt(self.values[first:last][wanted].astype(np.float64))
        sums = np.bincount(places[wanted], weights=roots, minlength=len(latents))
        return sums / max(1, int(self.content[tokens.start : tokens.stop].sum()))

    def strongest(self, count: int) -> list[list[tuple[int, float]]]:
        """Per token its ``count`` largest activations as (latent, value), largest first."""
        order = np.lexsort((self.latents, -self.values, self.positions))
        starts = np.searchsorted(self.positions, np.arange(len(self) + 1))
        rows = []
        for first, last in pairwise(starts.tolist()):
            picked = order[first : min(last, first + count)]
            rows.append(list(zip(self.latents[picked].tolist(), self.values[picked].tolist(), strict=True)))
        return rows

    def to_bytes(self) -> bytes:
        """Serialised as safetensors."""
        return save({name: np.ascontiguousarray(array) for name, array in vars(self).items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> PromptFeatures:
        """The inverse of :meth:`to_bytes`.

        Raises:
            EngineError: ``data`` is something else.
        """
        try:
            features = cls(**load(data))
            features._check()
            return features
        except Exception as error:  # safetensors has its own exception class
            raise EngineError(f"The features are damaged: {error}.", "Read the prompt again.") from error

    def _check(self) -> None:
        """Refuse arrays that are not what the attributes say; judging would fail on them, or mislead.

        Raises:
            ValueError: they are not.
        """
        types = {"content": np.bool_, "positions": np.int32, "latents": np.int32, "values": np.float32}
        if wrong := [name for name, array in vars(self).items() if array.ndim != 1 or array.dtype != types[name]]:
            raise ValueError(f"{', '.join(wrong)} of another type or shape")
        if not len(self.positions) == len(self.latents) == len(self.values):
            raise ValueError("positions, latents and values differ in number")
        inside = (self.positions >= 0) & (self.positions < len(self)) & (self.latents >= 0)
        if not (inside & np.isfinite(self.values) & (self.values > 0)).all() or (np.diff(self.positions) < 0).any():
            raise ValueError("a position, latent or value makes no sense")


def check_residual(residual: Tensor) -> None:
    """Refuse a residual stream ``[tokens, d_model]`` that was not captured as a whole.

    Raises:
        EngineError: it is empty, or a token's vector is zero throughout or not finite.
    """
    if not len(residual) or not bool((residual.abs().sum(-1) > 0).all()) or not bool(torch.isfinite(residual).all()):
        raise EngineError("The residual stream is incomplete or not finite.", "Read the prompt again.")


def encode_prompt(sae: SAE, residual: Tensor, latents: Sequence[int] | None = None) -> PromptFeatures:
    """Encode the residual stream of one prompt.

    Args:
        sae: the dictionary.
        residual: ``[tokens, d_model]``, any float dtype, on the SAE's device.
        latents: encode these alone (indices in the full dictionary); None takes all that the SAE's file holds.

    Raises:
        EngineError: a token's residual is zero throughout or not finite, so it was not captured, or a latent is not
            in the file.
    """
    check_residual(residual)
    content = content_mask(residual)
    columns, held = _columns(sae, latents)
    found = [_active(sae, residual, content, some, held) for some in _blocks(sae, columns)]
    positions, indices, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if len(found) > 1:
        order = np.argsort(positions, kind="stable")
        positions, indices, values = positions[order], indices[order], values[order]
    return PromptFeatures(content.cpu().numpy(), positions, indices, values)


def _blocks(sae: SAE, columns: Tensor | None) -> list[tuple[Tensor | None, int]]:
    """``columns`` (None: all) in blocks that bound the room which the activations take, each with its start."""
    count = sae.d_sae if columns is None else len(columns)
    if count <= _BLOCK or not sae.independent:
        return [(columns, 0)]
    device = sae.weights["W_enc"].device
    whole = torch.arange(count, device=device) if columns is None else columns
    return [(whole[first : first + _BLOCK], first) for first in range(0, count, _BLOCK)]


def _active(
    sae: SAE, residual: Tensor, content: Tensor, block: tuple[Tensor | None, int], held: Tensor
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Positions, latents and values of what is active among the columns of ``block``, by position, then latent."""
    columns, first = block
    features = sae.encode(residual, columns)
    features[~content] = 0
    positions, places = features.nonzero(as_tuple=True)
    return (
        positions.to(torch.int32).cpu().numpy(),
        held[places.cpu() + first].to(torch.int32).numpy(),
        features[positions, places].float().cpu().numpy(),
    )


def _columns(sae: SAE, latents: Sequence[int] | None) -> tuple[Tensor | None, Tensor]:
    """Columns of the SAE's weights to encode (None: all), and the dictionary index of each encoded column."""
    held = sae.held
    if latents is None:
        return None, held
    wanted = torch.tensor(sorted(set(latents)), dtype=torch.int64)
    places = torch.searchsorted(held, wanted, sorter=sae.order)
    if len(wanted) and (int(places.max()) >= len(held) or bool((held[sae.order[places]] != wanted).any())):
        raise EngineError("The SAE does not hold all latents that are asked for.", "Restore SAE and catalog together.")
    return sae.order[places].to(sae.weights["W_enc"].device), wanted
