"""What travels with a vLLM request that is to be read, under ``kv_transfer_params["sensecheck"]``."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sae_runtime.errors import InputError

KEY = "sensecheck"


class ReadRequest(BaseModel):
    """Opt-in of one request.

    Attributes:
        ticket: name under which the result is expected.
        reply: process id of the API server that expects it.
        digest: of the prompt tokens that the asker has in mind; another prompt is refused.
        latents: what to encode; None for all that the SAE's file holds.
        residual: send the residual stream itself instead (only where the server was started for it).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ticket: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    reply: Annotated[int, Field(gt=0)]
    digest: int
    latents: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]] | None, Field(max_length=1_000_000)] = None
    residual: bool = False

    def as_params(self) -> dict[str, Any]:
        """The request's ``kv_transfer_params``."""
        return {KEY: self.model_dump()}

    @classmethod
    def of(cls, params: Any) -> ReadRequest | None:
        """The opt-in in ``kv_transfer_params``; None when there is none.

        Raises:
            InputError: there is one, but malformed.
        """
        if not isinstance(params, dict) or KEY not in params:
            return None
        try:
            return cls.model_validate(params[KEY])
        except ValidationError as error:
            raise InputError(f"kv_transfer_params.{KEY} is malformed: {error.error_count()} errors.") from error


def digest(token_ids: Sequence[int]) -> int:
    """Checksum of a prompt's tokens (CRC-32; it guards against mistakes, not against attacks)."""
    return zlib.crc32(np.asarray(token_ids, dtype=np.int64).tobytes())
