"""Where training begins: decoder directions that point at data, and an encoder of the right size for them.

From random directions a dictionary learns to reconstruct long before it learns features: with a few hundred active latents
any directions span the stream well enough, and most stay where they began (docs/models.md has the figures). So each
latent begins at a token of the training text, as the first centres of k-means do, in whitened coordinates: there
the few dimensions with a huge variance, which all tokens share, do not make all directions alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGE = 0.1  # share of the mean variance that is added to every dimension before whitening
_CALIBRATION_TOKENS = 2048


def data_directions(centred: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Unit rows ``[width, d]``, each the whitened direction of a token drawn from ``centred`` ``[n, d]``.

    Tokens are drawn without replacement while there are enough. Noise far below the data's keeps equal ones apart.
    """
    drawn = torch.cat([torch.randperm(len(centred), generator=generator) for _ in range(-(-width // len(centred)))])
    points = centred[drawn[:width]]
    variance, basis = torch.linalg.eigh(centred.T @ centred / len(centred))
    scales = (variance.clamp_min(0) + _RIDGE * variance.mean()).rsqrt()
    directions = ((points @ basis) * scales) @ basis.T
    directions += 1e-3 * directions.std() * torch.randn(directions.shape, generator=generator)
    return directions / directions.norm(dim=1, keepdim=True)


def encoder_scale(centred: Tensor, directions: Tensor, k: int) -> float:
    """The factor for ``directions`` ``[width, d]`` as encoder rows with which decoding with the same directions errs least
    on ``centred`` ``[n, d]``, when the ``k * n`` largest activations are kept.

    Which are kept does not depend on the factor, so the best one is a quotient. Without it eighty active latents that point
    much the same way would overshoot eighty times.
    """
    some = centred[:_CALIBRATION_TOKENS]
    pre = (some @ directions.T).relu()
    least = pre.flatten().kthvalue(max(1, pre.numel() - k * len(some))).values
    decoded = torch.where(pre > least, pre, 0) @ directions
    return ((some * decoded).sum() / decoded.pow(2).sum().clamp_min(1e-9)).item()
