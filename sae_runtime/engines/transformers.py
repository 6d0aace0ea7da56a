"""Capturing the residual stream with transformers: any decoder model, no layer beyond the one that is read."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_runtime.errors import EngineError

# Neither a pickle nor Python files of the folder; without the second word transformers would ask whoever sits at the terminal.
_NO_CODE: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}


class TransformersEngine:
    """The first ``layer + 1`` layers of a decoder model, with a hook on the output of the last of them.

    Args:
        folder: transformers model folder.
        layer: 0-based index L; what is captured is the residual stream after layer L (``resid_post``).
        device: torch device, ``cpu`` or ``cuda``.
        dtype: compute dtype. float32 is the faster choice on CPUs without bfloat16 units.
        random_seed: draw the weights at random instead of reading them: the model's untrained twin, a control.

    Raises:
        EngineError: the model has no such layer, or it is no decoder with a stack of layers.
    """

    def __init__(
        self,
        folder: Path,
        layer: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        random_seed: int | None = None,
    ) -> None:
        from transformers import AutoConfig, AutoModel

        self.layer = layer
        self.device = torch.device(device)
        self.dtype = dtype
        try:
            if random_seed is None:
                model = AutoModel.from_pretrained(folder, dtype=dtype, **_NO_CODE)
            else:
                torch.manual_seed(random_seed)
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
                model = AutoModel.from_config(config, dtype=dtype)
        except (OSError, ValueError) as error:
            raise EngineError(f"The model in {folder} cannot be loaded: {error}.", "Check the folder.") from error
        self._model = model.to(self.device).eval()
        config = self._model.config.get_text_config()
        layers = decoder_layers(self._model)
        if not 0 <= layer < len(layers):
            raise EngineError(
                f"Layer {layer} does not exist; the model has {len(layers)} layers.", "Use 0-based indices."
            )
        self.d_model: int = config.hidden_size
        self.context_length: int = config.max_position_embeddings
        del layers[layer + 1 :]
        config.num_hidden_layers = layer + 1
        self._captured: Tensor | None = None
        self._lock = threading.Lock()  # the hook hands over one forward's result at a time
        layers[layer].register_forward_hook(self._keep)

    @staticmethod
    def width(folder: Path) -> int:
        """Width of the residual stream of the model in ``folder``."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().hidden_size

    @staticmethod
    def depth(folder: Path) -> int:
        """Number of decoder layers of the model in ``folder``."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().num_hidden_layers

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._captured = output[0] if isinstance(output, tuple) else output

    @torch.inference_mode()
    def residual(self, sequences: list[list[int]]) -> list[Tensor]:
        """Residual stream after the engine's layer for a batch of token sequences.

        Args:
            sequences: non-empty token id lists, each at most ``context_length`` long; padded on the right internally.

        Returns:
            One tensor per sequence, shape ``[tokens, d_model]``, in the engine's dtype and on its device.

        Raises:
            EngineError: a sequence is empty or too long, or the model produced no or non-finite activations.
        """
        lengths = [len(ids) for ids in sequences]
        if not lengths or min(lengths) == 0 or max(lengths) > self.context_length:
            raise EngineError(
                f"Sequences of {sorted(set(lengths))} tokens cannot be read.",
                f"Give 1 to {self.context_length} tokens.",
            )
        width = max(lengths)
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : lengths[row]] = torch.tensor(sequence)
            mask[row, : lengths[row]] = 1
        captured = self.forward(ids, None if min(lengths) == width else mask)
        rows = [captured[row, :length] for row, length in enumerate(lengths)]
        if not all(torch.isfinite(row).all() for row in rows):
            raise EngineError("The residual stream holds non-finite values.", "Use a wider dtype, such as float32.")
        return rows

    @torch.inference_mode()
    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The stream ``[batch, width, d_model]`` of token ids ``[batch, width]``, padded where ``mask`` is 0.

        Raises:
            EngineError: the model produced no activations.
        """
        attention = None if mask is None else mask.to(self.device)
        with self._lock:
            self._model(input_ids=ids.to(self.device), attention_mask=attention, use_cache=False)
            captured, self._captured = self._captured, None
        if captured is None or captured.shape[:2] != ids.shape:
            raise EngineError("The model produced no residual stream.", "Report the model's architecture.")
        return captured

    def close(self) -> None:
        """Free the model's weights; the engine cannot be used afterwards."""
        del self._model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers of any transformers model (``model.layers``, ``h``, ``blocks`` ...).

    Only the text decoder is searched, since a model's vision tower may have as many layers.

    Raises:
        EngineError: the model has an encoder for its text, or no module list has as many members as the configuration
            has layers.
    """
    if model.config.is_encoder_decoder:  # type: ignore[union-attr]
        raise EngineError(f"{type(model).__name__} has an encoder.", "Only decoder models are supported.")
    wanted = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for module in model.get_decoder().modules():  # type: ignore[operator]
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise EngineError(f"{type(model).__name__} has no stack of {wanted} layers.", "Only decoder models are supported.")
