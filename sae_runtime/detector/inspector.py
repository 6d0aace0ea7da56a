"""The inspector: one conversation in, its reading out, with the transformers engine in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.detector.detector import Detector, Plan
from sae_runtime.detector.results import Reading
from sae_runtime.engines.chat import ChatEncoder, ChatMessage
from sae_runtime.engines.features import PromptFeatures, encode_prompt
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.errors import FingerprintError, SensecheckError
from sae_runtime.glossary.cache import GlossaryCache
from sae_runtime.glossary.compile import plans, with_glossary
from sae_runtime.glossary.terms import Glossary
from sae_runtime.sae import SAE

_TOGETHER = 16  # conversations that are computed in one forward pass


class Inspector:
    """Reads conversations with one model, one SAE and one catalog. Safe to call from several threads.

    Use :meth:`from_model` to open the artefacts that belong to a model.
    """

    def __init__(
        self, detector: Detector, sae: SAE, engine: TransformersEngine, opened: Artefacts | None = None
    ) -> None:
        self.detector = detector
        self.view = detector.view
        self.engine = engine
        self.sae = sae
        self.opened = opened
        self._glossaries = GlossaryCache()

    @classmethod
    def from_model(
        cls,
        model: str,
        *,
        artefacts: Path | None = None,
        catalog: CatalogLocation | str | None = None,
        device: str = "cpu",
        fetch: bool = True,
    ) -> Inspector:
        """Open a model with its SAE and catalog and check that they belong together.

        Args:
            model: built-in name, folder or hub id.
            artefacts: folder with ``cfg.json``, ``sae_weights.safetensors`` and ``catalog.sqlite``; None takes the
                ones shipped for the model.
            catalog: another file, or the URL of a database, instead of the folder's ``catalog.sqlite``.
            device: torch device of the engine.
            fetch: download a built-in model that is not here yet.

        Raises:
            ModelError, ArtefactError, FingerprintError: see their remedies.
        """
        return cls.from_artefacts(Artefacts.open(model, folder=artefacts, catalog=catalog, fetch=fetch), device=device)

    @classmethod
    def from_artefacts(cls, opened: Artefacts, *, device: str = "cpu") -> Inspector:
        """Read with artefacts that are open already.

        Raises:
            EngineError, ArtefactError, FingerprintError: model or SAE cannot be loaded, or the SAE is another one.
        """
        engine = TransformersEngine(opened.model.path, opened.view.layer, device=device)
        detector = Detector(opened.view, ChatEncoder(opened.model.path), engine.context_length)
        return cls(detector, _fitting_sae(opened, engine), engine, opened)

    def renewed(self, opened: Artefacts) -> Inspector:
        """An inspector with the same model and other artefacts, which are of the same layer. This one goes on as it is.

        Glossaries that are in use here are compiled for the new one, too.

        Raises:
            EngineError, ArtefactError, FingerprintError: the SAE cannot be loaded, is another one, or does not fit.
        """
        old = self.detector
        same = opened.view.sae_fingerprint == self.view.sae_fingerprint
        sae = self.sae if same else _fitting_sae(opened, self.engine)
        found = Inspector(Detector(opened.view, old.encoder, old.context_length), sae, self.engine, opened)
        for glossary in self._glossaries.known():
            with suppress(SensecheckError):  # it is tried again when it is used
                found.detector_for(glossary)
        return found

    def inspect(
        self, messages: Sequence[ChatMessage], *, glossary: Glossary | None = None, tokens: bool = True, **options: Any
    ) -> Reading:
        """Read ``messages`` and flag what was misread.

        Args:
            messages: the conversation as the model will see it.
            glossary: the deployer's own terms; compiled when they are first seen, which takes some seconds.
            tokens: also read every token, for people who look at it.
            options: see :meth:`Detector.plan`.

        Raises:
            InputError: there is nothing to read.
            EngineError: activations could not be captured.
        """
        marks = [time.perf_counter()]
        detector = self.detector_for(glossary)
        plan = detector.plan(messages, tokens=tokens, **options)
        marks.append(time.perf_counter())
        features = self.features([plan])[0] if plan.needs_model else None
        marks.append(time.perf_counter())
        reading = detector.reading(plan, features)
        marks.append(time.perf_counter())
        return reading.timed(marks)

    def inspect_batch(
        self, asked: Sequence[tuple[Sequence[ChatMessage], dict[str, Any]]], *, limit: int | None = None
    ) -> list[Reading | Exception]:
        """Read several conversations; those that need the model are computed together.

        Args:
            asked: messages, and the options of :meth:`inspect`, per conversation.
            limit: conversations that are computed at once; None: 16.

        Returns:
            Per conversation its reading, or the error that it met.
        """
        results: list[Reading | Exception] = []
        size = limit or _TOGETHER
        for start in range(0, len(asked), size):
            results += self._inspect_together(asked[start : start + size])
        return results

    def detector_for(self, glossary: Glossary | None) -> Detector:
        """The detector that also knows the terms of ``glossary``."""
        if glossary is None:
            return self.detector
        if (kept := self._glossaries.get(glossary)) is not None:
            return kept
        planned = plans(self.detector, glossary)
        features = [self.features(some) for some in planned]
        return self._glossaries.put(glossary, with_glossary(self.detector, glossary, planned, features))

    def features(self, planned: Sequence[Plan]) -> list[PromptFeatures]:
        """The features that each plan needs: one forward pass up to the SAE's layer, then the encoder.

        Raises:
            EngineError: activations could not be captured.
        """
        residuals = self.engine.residual([plan.chat.token_ids for plan in planned])
        return [
            encode_prompt(self.sae, residual, plan.latents) for residual, plan in zip(residuals, planned, strict=True)
        ]

    def _inspect_together(
        self, asked: Sequence[tuple[Sequence[ChatMessage], dict[str, Any]]]
    ) -> list[Reading | Exception]:
        marks = [time.perf_counter()]
        planned = [self._planned(messages, dict(options)) for messages, options in asked]
        marks.append(time.perf_counter())
        needed = [found[1] for found in planned if isinstance(found, tuple) and found[1].needs_model]
        try:
            features = iter(self.features(needed) if needed else [])
        except Exception as error:
            return [error if isinstance(found, tuple) else found for found in planned]
        marks.append(time.perf_counter())
        results: list[Reading | Exception] = []
        for found in planned:
            if isinstance(found, tuple):
                detector, plan = found
                own = next(features) if plan.needs_model else None
                try:
                    results.append(detector.reading(plan, own).timed([*marks, time.perf_counter()]))
                except Exception as error:
                    results.append(error)
            else:
                results.append(found)
        return results

    def _planned(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> tuple[Detector, Plan] | Exception:
        """A conversation's plan, or why there is none: one bad prompt does not cost the others their reading."""
        try:
            detector = self.detector_for(options.pop("glossary", None))
            return detector, detector.plan(messages, **options)
        except Exception as error:
            return error


def _fitting_sae(opened: Artefacts, engine: TransformersEngine) -> SAE:
    """The SAE of the artefacts on the engine's device.

    Raises:
        ArtefactError, FingerprintError: it is damaged, another one, or of another width than the model's stream.
    """
    sae = opened.load_sae(str(engine.device))
    if sae.d_in != engine.d_model:
        raise FingerprintError(
            f"The SAE in {opened.folder} reads {sae.d_in} dimensions, the model has {engine.d_model}.",
            "Restore the artefacts of this model.",
        )
    return sae
