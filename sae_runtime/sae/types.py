"""The SAE types. All share one affine encoder and decoder and differ only in the activation between them.

::

    f = activation((x - b_dec) @ W_enc + b_enc)        x_hat = f @ W_dec + b_dec

Shapes: ``x`` ``[n, d_in]``, ``f`` ``[n, d_sae]``, ``W_enc`` ``[d_in, d_sae]``, ``W_dec`` ``[d_sae, d_in]``. Names of
weights are those of SAELens; a gated SAE has two biases of its own in place of ``b_enc``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_runtime.errors import InputError


class SAE(ABC):
    """An SAE's weights, on one device and in one dtype.

    Args:
        weights: ``W_enc``, ``W_dec``, ``b_dec`` and the type's :attr:`latent_weights`; others are left out.
        metadata: ``model_name``, ``hook_name`` and whatever else stands in the file's ``metadata``.
        apply_b_dec_to_input: subtract ``b_dec`` before encoding.

    Attributes:
        architecture: name of the type in ``cfg.json``.
        latent_weights: names of the weights that hold one number per latent, ``[d_sae]``.
        independent: whether a latent's activation depends on no other latent, so that some may be computed alone.
        dtype: what is computed in. The weights' own, unless they are kept as a file stores them.

    Raises:
        InputError: a weight is missing or has another shape.
    """

    architecture: ClassVar[str]
    latent_weights: ClassVar[tuple[str, ...]] = ("b_enc",)
    independent: ClassVar[bool] = True

    def __init__(
        self, weights: dict[str, Tensor], metadata: dict[str, Any] | None = None, *, apply_b_dec_to_input: bool = True
    ) -> None:
        names = ("W_enc", "W_dec", "b_dec", *self.latent_weights)
        if missing := [name for name in names if name not in weights]:
            raise InputError(
                f"The {self.architecture} SAE lacks the weights {missing}.", "Check the file's architecture."
            )
        d_in, d_sae = weights["W_enc"].shape
        shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        for name in names:
            shape, expected = tuple(weights[name].shape), shapes.get(name, (d_sae,))
            if shape != expected:
                raise InputError(f"SAE weight {name} has shape {shape}, expected {expected}.")
        self.weights = {name: weights[name] for name in names}
        self.metadata = metadata or {}
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.dtype = weights["W_enc"].dtype

    @property
    def d_in(self) -> int:
        """Width of the residual stream."""
        return self.weights["W_enc"].shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents held in this file."""
        return self.weights["W_enc"].shape[1]

    @property
    def latents(self) -> list[int]:
        """Index in the full dictionary of each latent held here (a file may hold the catalogued ones alone)."""
        return self.metadata.get("sensecheck_latents") or list(range(self.d_sae))

    @cached_property
    def held(self) -> Tensor:
        """:attr:`latents` as a tensor, int64 ``[d_sae]`` on the CPU: a prompt must not pay for the dictionary's size."""
        return torch.tensor(self.latents)

    @property
    def width(self) -> int:
        """Columns that hold every latent under its number in the full dictionary, of which this file may hold a part."""
        return max(self.latents) + 1

    def directions(self) -> Tensor:
        """Decoder directions by latent, float32 ``[width, d_in]`` on the CPU; zeros for latents that are not held."""
        placed = torch.zeros(self.width, self.d_in)
        placed[self.latents] = self.weights["W_dec"].float().cpu()
        return placed

    @cached_property
    def order(self) -> Tensor:
        """Positions in this file by ascending latent; a file may list its latents in any order."""
        return self.held.argsort()

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> SAE:
        """The same SAE on another device or in another dtype."""
        moved = {name: tensor.to(device=device, dtype=dtype) for name, tensor in self.weights.items()}
        result = self._like(moved, self.metadata)
        result.dtype = dtype or self.dtype
        return result

    def encode(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """Latent activations of ``x``.

        Args:
            x: ``[n, d_in]``, any float dtype; computed in the SAE's dtype on its device.
            columns: int64 ``[m]``; encode these latents only (positions in this file). Exact for types whose latents
                are independent, at m/d_sae of the cost.

        Returns:
            ``[n, d_sae]`` or ``[n, m]``.

        Raises:
            InputError: ``x`` has another width, or the type cannot encode a subset.
        """
        if x.shape[-1] != self.d_in:
            raise InputError(f"Activations of width {x.shape[-1]} do not fit an SAE of width {self.d_in}.")
        return self._activate(self.pre_activations(x, columns), columns)

    def pre_activations(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """What the activation function sees, same shapes as :meth:`encode`."""
        return self._project(x, columns) + self._latent("b_enc", columns)

    def decode(self, features: Tensor) -> Tensor:
        """Reconstruction ``[n, d_in]`` of ``features`` ``[n, d_sae]``."""
        return features @ self.weights["W_dec"].to(self.dtype) + self.weights["b_dec"].to(self.dtype)

    def subset(self, columns: list[int]) -> SAE:
        """An SAE that holds the latents ``columns`` (positions in this file) alone; exact where latents are independent.

        Raises:
            InputError: they are not.
        """
        if not self.independent:
            raise InputError(f"Latents of a {self.architecture} SAE depend on each other.", "Keep the full dictionary.")
        at = torch.tensor(columns)
        picked = {name: self.weights[name][at] for name in ("W_dec", *self.latent_weights)}
        picked |= {"W_enc": self.weights["W_enc"][:, at], "b_dec": self.weights["b_dec"]}
        full = self.latents
        metadata = self.metadata | {"sensecheck_latents": [full[column] for column in columns]}
        metadata.setdefault("sensecheck_full_d_sae", self.d_sae)
        result = self._like(picked, metadata)
        result.dtype = self.dtype
        return result

    def config(self) -> dict[str, Any]:
        """Entries of ``cfg.json`` that belong to the type."""
        return {}

    def _like(self, weights: dict[str, Tensor], metadata: dict[str, Any]) -> SAE:
        return type(self)(weights, metadata, apply_b_dec_to_input=self.apply_b_dec_to_input)

    def _project(self, x: Tensor, columns: Tensor | None) -> Tensor:
        """``x``, centred where the SAE wants that, times ``W_enc``."""
        w_enc = self.weights["W_enc"]
        if columns is not None:
            w_enc = w_enc.T[columns].T  # whole rows where `load_sae` laid the matrix out by latent
        w_enc = w_enc.to(self.dtype)
        x = x.to(w_enc)
        return (x - self.weights["b_dec"].to(self.dtype) if self.apply_b_dec_to_input else x) @ w_enc

    def _latent(self, name: str, columns: Tensor | None) -> Tensor:
        """One of :attr:`latent_weights`, for the latents ``columns`` or for all."""
        return (self.weights[name] if columns is None else self.weights[name][columns]).to(self.dtype)

    @abstractmethod
    def _activate(self, pre: Tensor, columns: Tensor | None) -> Tensor: ...


class ReLUSAE(SAE):
    """The standard SAE (Bricken et al. 2023)."""

    architecture = "standard"

    def _activate(self, pre: Tensor, columns: Tensor | None) -> Tensor:
        return pre.relu()


class JumpReLUSAE(SAE):
    """One threshold per latent (Rajamanoharan et al. 2024): a latent passes unchanged above it, else it is zero."""

    architecture = "jumprelu"
    latent_weights = ("b_enc", "threshold")

    def _activate(self, pre: Tensor, columns: Tensor | None) -> Tensor:
        return torch.where(pre > self._latent("threshold", columns), pre, 0).relu()


class GatedSAE(SAE):
    """A gate decides whether a latent is on, a second path how strongly (Rajamanoharan et al. 2024, "Gated SAEs").

    Both paths share ``W_enc``, the second one scaled per latent::

        p = (x - b_dec) @ W_enc        f = (p + b_gate > 0) * relu(p * exp(r_mag) + b_mag)
    """

    architecture = "gated"
    latent_weights = ("b_gate", "b_mag", "r_mag")

    def pre_activations(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """The product that both paths share, ``p``; each adds its own bias to it."""
        return self._project(x, columns)

    def _activate(self, pre: Tensor, columns: Tensor | None) -> Tensor:
        magnitude = pre * self._latent("r_mag", columns).exp() + self._latent("b_mag", columns)
        return torch.where(pre + self._latent("b_gate", columns) > 0, magnitude, 0).relu()


class TopKSAE(SAE):
    """The ``k`` largest latents of each token (Gao et al. 2024)."""

    architecture = "topk"
    independent = False

    def __init__(
        self,
        weights: dict[str, Tensor],
        metadata: dict[str, Any] | None = None,
        *,
        k: int,
        apply_b_dec_to_input: bool = True,
    ) -> None:
        super().__init__(weights, metadata, apply_b_dec_to_input=apply_b_dec_to_input)
        if not 0 < k <= self.d_sae:
            raise InputError(f"TopK needs 1 <= k <= {self.d_sae}, got k = {k}.")
        self.k = k

    def _like(self, weights: dict[str, Tensor], metadata: dict[str, Any]) -> SAE:
        return TopKSAE(weights, metadata, k=self.k, apply_b_dec_to_input=self.apply_b_dec_to_input)

    def config(self) -> dict[str, Any]:
        """Adds ``k``."""
        return {"k": self.k}

    def encode(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """See :meth:`SAE.encode`; which latents win depends on all of them, so all are computed first."""
        features = super().encode(x)
        return features if columns is None else features[:, columns]

    def _activate(self, pre: Tensor, columns: Tensor | None) -> Tensor:
        top = pre.relu().topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
