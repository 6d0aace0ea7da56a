"""What vLLM is started with so that it reads prompts in its worker."""

from __future__ import annotations

import json
from pathlib import Path

# Settings that hold unless the user's environment says otherwise.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}

# vLLM's message for models whose layers do not hand out hidden states (those outside its SupportsEagle3 set).
UNSUPPORTED = "does not support EAGLE3 interface"


def in_worker_arguments(
    artefacts: Path | None, layer: int, channel: str, *, sae: str | None = None, residual: bool = False
) -> list[str]:
    """Command line options.

    Args:
        artefacts: folder of the SAE; None when there is none yet, and only residual streams are wanted.
        layer: 0-based layer L whose output is read (``resid_post``); vLLM counts the streams before layers, so that
            one is its number L + 1.
        channel: name of the way back, unique to the server.
        sae: fingerprint of the SAE that the worker is to load; it refuses another one.
        residual: allow requests for the residual stream itself.
    """
    speculative = {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [layer + 1]}},
    }
    transfer = {
        "kv_connector": "SAEConnector",
        "kv_connector_module_path": "sae_runtime.engines.vllm.connector",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {
            "artefacts": artefacts and str(artefacts),
            "sae": sae,
            "channel": channel,
            "residual": residual,
        },
    }
    return [
        "--speculative-config", json.dumps(speculative),
        "--kv-transfer-config", json.dumps(transfer),
        "--scheduler-cls", "sae_runtime.engines.vllm.scheduler.DraftlessScheduler",
    ]  # fmt: skip
