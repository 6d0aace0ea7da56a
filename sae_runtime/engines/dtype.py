"""In which floating point type this machine computes fastest."""

from __future__ import annotations

import torch


def compute_dtype(name: str = "auto") -> torch.dtype:
    """The type called ``name``; ``auto`` is bfloat16 on GPUs and on CPUs with units for it, else float32.

    On a CPU without such units bfloat16 is emulated, six times slower than float32 (measured with vLLM's prefill).
    """
    if name != "auto":
        return getattr(torch, name)
    able = torch.cpu.get_capabilities()
    fast = torch.cuda.is_available() or any(able.get(unit) for unit in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    return torch.bfloat16 if fast else torch.float32
