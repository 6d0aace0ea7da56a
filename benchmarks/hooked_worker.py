"""How current tools read activations from vLLM: eager mode and a forward hook that copies the residual to the host.

A baseline for ``benchmarks.overhead``; nothing of the product uses it. vLLM's layers return (hidden, residual); the residual
stream is their sum.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker


class HookedWorker(CPUWorker):
    """A CPU worker that keeps the last residual stream of one layer on the host."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load, then hook the layer named by ``SENSECHECK_HOOK_LAYER``."""
        super().load_model(*args, **kwargs)
        layer = self.model_runner.get_model().model.layers[int(os.environ["SENSECHECK_HOOK_LAYER"])]
        self.captured: torch.Tensor | None = None

        def keep(module: Any, inputs: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
            self.captured = (output[0] + output[1]).to("cpu", copy=True)

        layer.register_forward_hook(keep)
