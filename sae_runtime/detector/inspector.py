"""The inspector: one conversation in, its reading out, with the transformers engine in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.detector.detector import Detector, Plan
from sae_runtime.detector.results import Reading
from sae_runtime.engines.chat import ChatEncoder, ChatMessage
from sae_runtime.engines.features import PromptFeatures, encode_prompt
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.sae import SAE


class Inspector:
    """Reads conversations with one model, one SAE and one catalog. Safe to call from several threads.

    Use :meth:`from_model` to open the artefacts that belong to a model.
    """

    def __init__(self, detector: Detector, sae: SAE, engine: TransformersEngine) -> None:
        self.detector = detector
        self.view = detector.view
        self.engine = engine
        self.sae = sae

    @classmethod
    def from_model(
        cls, model: str, *, artefacts: Path | None = None, device: str = "cpu", fetch: bool = True
    ) -> Inspector:
        """Open a model with its SAE and catalog and check that they belong together.

        Args:
            model: built-in name, folder or hub id.
            artefacts: folder with ``cfg.json``, ``sae_weights.safetensors`` and ``catalog.sqlite``; None takes the
                ones shipped for the model.
            device: torch device of the engine.
            fetch: download a built-in model that is not here yet.

        Raises:
            ModelError, ArtefactError, FingerprintError: see their remedies.
        """
        return cls.from_artefacts(Artefacts.open(model, folder=artefacts, fetch=fetch), device=device)

    @classmethod
    def from_artefacts(cls, opened: Artefacts, *, device: str = "cpu") -> Inspector:
        """Read with artefacts that are open already.

        Raises:
            EngineError, ArtefactError, FingerprintError: model or SAE cannot be loaded, or the SAE is another one.
        """
        engine = TransformersEngine(opened.model.path, opened.view.layer, device=device)
        detector = Detector(opened.view, ChatEncoder(opened.model.path), engine.context_length)
        return cls(detector, opened.load_sae(device), engine)

    def inspect(
        self,
        messages: Sequence[ChatMessage],
        *,
        domain: str | None = None,
        read: Sequence[int] | None = None,
        tokens: bool = True,
    ) -> Reading:
        """Read ``messages`` and flag what was misread; the arguments are those of :meth:`Detector.plan`.

        Raises:
            InputError: there is nothing to read.
            EngineError: activations could not be captured.
        """
        marks = [time.perf_counter()]
        plan = self.detector.plan(messages, domain=domain, read=read, tokens=tokens)
        marks.append(time.perf_counter())
        features = self.features(plan) if plan.needs_model else None
        marks.append(time.perf_counter())
        reading = self.detector.reading(plan, features)
        marks.append(time.perf_counter())
        return reading.timed(marks)

    def features(self, plan: Plan) -> PromptFeatures:
        """The features that ``plan`` needs: one forward pass up to the SAE's layer, then the encoder.

        Raises:
            EngineError: activations could not be captured.
        """
        return encode_prompt(self.sae, self.engine.residual([plan.chat.token_ids])[0], plan.latents)
