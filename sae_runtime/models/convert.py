"""Converting a GGUF into a safetensors folder that transformers and vLLM open alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError

from sae_runtime.errors import ModelError
from sae_runtime.models.manifest import Manifest

_ORIGIN = "sensecheck_origin.json"


def convert_gguf(manifest: Manifest, gguf: Path, target: Path) -> None:
    """De-quantise ``gguf`` to bfloat16 safetensors with tokenizer and chat template in ``target``.

    transformers refuses to save a model that was loaded from GGUF, so the weights move into a fresh model whose
    configuration has no quantization entry. The folder appears under its name only when it is complete.

    Raises:
        ModelError: the file cannot be read as a model, or the disk is full.
    """
    import torch  # seconds, which commands that only print something need not wait for
    from transformers import AutoModelForCausalLM, AutoTokenizer

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        settings = loaded.config.to_dict()
        settings.pop("quantization_config", None)
        config = type(loaded.config)(**settings)
        config.architectures = [type(loaded).__name__]
        plain = type(loaded)(config).to(torch.bfloat16)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        origin = {"name": manifest.name, "gguf_sha256": manifest.gguf_sha256, "notice": manifest.notice}
        (partial / _ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", "utf-8")
        partial.replace(target)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"Could not convert {gguf}: {error}.", "Check the free disk space, then run `sensecheck model fetch` again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_origin(folder: Path) -> dict[str, str] | None:
    """The built-in model that ``folder`` was converted from, or None for any other model folder."""
    path = folder / _ORIGIN
    return json.loads(path.read_text("utf-8")) if path.exists() else None
