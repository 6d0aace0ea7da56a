"""Numbers that artefacts bring along, and which of them make sense."""

from __future__ import annotations

import math
from collections.abc import Iterable

MOST_LATENTS = 2**24
"""Width of the largest dictionary whose latents' numbers are taken for such: 16 million, as the largest published one."""


def check_latent(index: int) -> None:
    """Refuse what is no latent's number.

    Raises:
        ValueError: it is negative, or not below :data:`MOST_LATENTS`.
    """
    if not 0 <= index < MOST_LATENTS:
        raise ValueError(f"there is no latent {index}")


def check_finite(values: Iterable[float], what: str) -> None:
    """Refuse numbers that are infinite or none at all.

    Raises:
        ValueError: one of ``values`` is; the message says that they are ``what``.
    """
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{what} is infinite or no number")
