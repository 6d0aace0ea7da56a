"""The KV connector: encodes prompts in the worker, from the hidden states that vLLM keeps in its paged cache.

With speculative method ``extract_hidden_states`` vLLM writes the residual stream of one layer into a cache-only attention
layer. Its blocks are allocated, hashed, shared and evicted together with the KV cache's, so a prompt whose head comes from
the prefix cache has all its positions there as well. The scheduler half of this connector notices the step in which an
inspected prompt becomes complete; the worker half encodes it right after that step's hidden states were written, and
sends the sparse result to the API server that asked (:mod:`sae_runtime.engines.vllm.channel`). Nothing is loaded, nothing
is kept beyond the step, and requests that did not opt in are never looked at.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer
from vllm.v1.kv_cache_interface import HiddenStateCacheSpec

from sae_runtime import logs
from sae_runtime.engines.features import PromptFeatures, check_residual, encode_prompt
from sae_runtime.engines.vllm.channel import Outbox
from sae_runtime.engines.vllm.requests import ReadRequest, digest
from sae_runtime.errors import EngineError, FingerprintError, InputError
from sae_runtime.sae import load_sae
from sae_runtime.sae.fingerprint import fingerprint_sae

logger = logging.getLogger("sensecheck")


@dataclass(frozen=True)
class Job:
    """A prompt that is complete after this step: its length, the blocks of its hidden states, what is asked."""

    request: ReadRequest
    tokens: int
    blocks: list[int]


@dataclass
class Jobs(KVConnectorMetadata):
    """What the scheduler half tells the worker half for one step."""

    jobs: list[Job] = field(default_factory=list)


class SAEConnector(KVConnectorBase_V1, SupportsHMA):
    """Encodes inspected prompts; see the module.

    Settings in ``kv_connector_extra_config``: ``artefacts`` (folder of the SAE, or None), ``sae`` (fingerprint of the one
    that is meant; None: whatever is there), ``channel`` (name of the way back),
    ``residual`` (whether the residual stream itself may be asked for).
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        logs.configure_from_environment()  # the engine's and the workers' processes
        settings = vllm_config.kv_transfer_config.kv_connector_extra_config
        self._group = _hidden_state_group(kv_cache_config)
        self._outbox = Outbox(settings["channel"])
        self._residual_allowed = bool(settings.get("residual"))
        self._artefacts: str | None = settings["artefacts"]
        self._fingerprint: str | None = settings.get("sae")
        self._pending: dict[str, tuple[ReadRequest, Any]] = {}  # scheduler half
        self._cache: torch.Tensor | None = None  # worker half; None on ranks that do not encode
        self._layer = ""
        self._written = False

    @property
    def requires_kv_delivery(self) -> bool:
        """No other instance waits for KV blocks of ours."""
        return False

    # The scheduler half

    def on_new_request(self, request: Any) -> None:
        """Take note of a request that wants to be read."""
        try:
            wanted = ReadRequest.of(request.kv_transfer_params)
        except InputError as error:
            logger.warning("%s", error)
            return
        if wanted is None:
            return
        if wanted.digest != digest(request.prompt_token_ids or ()):
            self._refuse(wanted, "The server renders the conversation into other tokens than the reader expects.")
        elif self._artefacts is None and not wanted.residual:
            self._refuse(wanted, "There is no SAE to encode with.")
        elif wanted.residual and not self._residual_allowed:
            self._refuse(wanted, "This server does not hand out residual streams.")
        else:
            self._pending[request.request_id] = (wanted, request)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Name the prompts that this step completes. Preempted requests stay pending and start over."""
        meta = Jobs()
        for request_id in self._pending.keys() & scheduler_output.num_scheduled_tokens.keys():
            wanted, request = self._pending[request_id]
            computed = request.num_computed_tokens + scheduler_output.num_scheduled_tokens[request_id]
            if computed >= request.num_prompt_tokens:
                blocks = scheduler_output.kv_connector_block_state.get_block_ids(request_id)[self._group]
                meta.jobs.append(Job(wanted, request.num_prompt_tokens, list(blocks)))
                del self._pending[request_id]
        return meta

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Forget a request that ended before its prompt was complete; its blocks are free at once."""
        if pending := self._pending.pop(request.request_id, None):
            self._refuse(pending[0], "The request ended before its prompt was computed.")
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, None]:
        """See :meth:`request_finished`."""
        return self.request_finished(request, [])

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Nothing is loaded from elsewhere."""
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is loaded from elsewhere."""

    def _refuse(self, wanted: ReadRequest, reason: str) -> None:
        self._outbox.send(wanted.reply, wanted.ticket, EngineError(reason))

    # The worker half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Find the hidden states' cache ``[blocks, 1, block_size, d_model]``; load the SAE beside it on rank 0."""
        if get_tensor_model_parallel_rank() != 0:
            return
        layers = get_layers_from_vllm_config(self._vllm_config, CacheOnlyAttentionLayer, list(kv_caches))
        self._layer = next(iter(layers))
        self._cache = kv_caches[self._layer]
        if self._artefacts is None:
            return
        folder = Path(self._artefacts)
        self._sae = load_sae(folder, device=str(self._cache.device), compact=True)
        if self._fingerprint and fingerprint_sae(folder) != self._fingerprint:
            raise FingerprintError(
                f"The SAE in {folder} was replaced while the server was starting.", "Start it again."
            )

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Called after each attention layer; ours tells that this step's hidden states are in the cache."""
        self._written |= layer_name == self._layer

    def wait_for_save(self) -> None:
        """Encode what the step completed. An error goes to whoever asked, never into the engine."""
        written, self._written = self._written, False
        if self._cache is None or not self.has_connector_metadata():
            return
        for job in self._get_connector_metadata().jobs:
            result: Any
            try:
                if not written:
                    raise EngineError("The step wrote no hidden states.")
                result = self._read(job)
            except EngineError as error:
                result = error
            except Exception as error:
                logger.exception("encoding failed")
                result = EngineError(f"Encoding failed: {type(error).__name__}.")
            self._outbox.send(job.request.reply, job.request.ticket, result)

    @torch.inference_mode()
    def _read(self, job: Job) -> PromptFeatures | torch.Tensor:
        residual = self._hidden_states(job)
        if job.request.residual:
            check_residual(residual)
            return residual.cpu()
        return encode_prompt(self._sae, residual, job.request.latents)

    def _hidden_states(self, job: Job) -> torch.Tensor:
        assert self._cache is not None  # noqa: S101 (checked by the caller)
        size = self._cache.shape[2]
        slots = torch.arange(job.tokens, device=self._cache.device)
        blocks = torch.tensor(job.blocks, device=self._cache.device)[slots // size]
        return self._cache[blocks, :, slots % size][:, 0]

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded from elsewhere."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded from elsewhere."""

    def get_finished_count(self) -> int:
        """Only rank 0 encodes."""
        return 1

    def shutdown(self) -> None:
        """Close the way back."""
        self._outbox.close()

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str:
        """A token's hidden state is contiguous in this layout."""
        return "LBNHC"


def _hidden_state_group(kv_cache_config: Any) -> int:
    """Number of the KV cache group that holds the hidden states.

    Raises:
        EngineError: there is not exactly one.
    """
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if len(specs) == 1:
        return 0  # all layers share block tables, the hidden states' layer among them
    groups = [number for number, spec in enumerate(specs) if isinstance(spec, HiddenStateCacheSpec)]
    if len(groups) != 1:
        raise EngineError(
            f"vLLM keeps hidden states in {len(groups)} cache groups.",
            "Serve with `--engine transformers`; models with latent attention (MLA) cannot be read in the worker.",
        )
    return groups[0]
