"""The inspector: one conversation in, its reading out. Engine, SAE and catalog meet here, bound by fingerprints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_runtime.catalog.view import CatalogView, Concept
from sae_runtime.detector.context import intended_senses, softmax
from sae_runtime.detector.mentions import Mention, MentionFinder
from sae_runtime.detector.notes import render_note
from sae_runtime.detector.results import FeatureActivation, MentionReading, Misread, Reading, TokenReading
from sae_runtime.detector.sites import pool, site_tokens
from sae_runtime.engines.chat import ChatEncoder, ChatMessage, EncodedChat
from sae_runtime.engines.transformers import TransformersEngine, content_mask
from sae_runtime.errors import FingerprintError, InputError
from sae_runtime.models import fingerprint_model, resolve_model
from sae_runtime.paths import ARTEFACTS, CATALOG_FILE, artefacts_for
from sae_runtime.sae import SAE, load_sae
from sae_runtime.sae.fingerprint import fingerprint_sae

_TOKEN_FEATURES = 6
_DECIDING_FEATURES = 5


class Inspector:
    """Reads conversations with one model, one SAE and one catalog. Safe to call from several threads.

    Use :meth:`from_model` to open the artefacts that belong to a model.
    """

    def __init__(self, view: CatalogView, sae: SAE, engine: TransformersEngine, encoder: ChatEncoder) -> None:
        self.view = view
        self.engine = engine
        self.encoder = encoder
        self._sae = sae
        self._finder = MentionFinder(view.concepts)
        self._column = {index: column for column, index in enumerate(sae.latents)}
        self._indices = torch.tensor(sae.latents)

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
        resolved = resolve_model(model, fetch=fetch)
        folder = artefacts or artefacts_for(resolved.name)
        if not folder.is_dir():
            shipped = ", ".join(sorted(path.name for path in ARTEFACTS.iterdir() if path.is_dir()))
            raise InputError(
                f"There are no artefacts for model '{resolved.name}' ({folder}).",
                f"Shipped ones exist for {shipped}. Make your own with `sensecheck build`, then pass --artefacts.",
            )
        view = CatalogView.load(folder / CATALOG_FILE)
        if differing := view.model.differences(fingerprint_model(resolved.path)):
            raise FingerprintError(
                f"The catalog {folder / CATALOG_FILE} was built for another model: {', '.join(differing)} differ.",
                f"It belongs to '{view.model_name}'. Serve that model, or build a catalog for yours.",
            )
        sae = load_sae(folder, device=device)
        if fingerprint_sae(folder) != view.sae_fingerprint:
            raise FingerprintError(
                f"The SAE in {folder} is not the one that its catalog was built on.", "Restore both files together."
            )
        return cls(view, sae, TransformersEngine(resolved.path, view.layer, device=device), ChatEncoder(resolved.path))

    def inspect(
        self, messages: Sequence[ChatMessage], *, domain: str | None = None, read: Sequence[int] | None = None
    ) -> Reading:
        """Read ``messages`` and flag what was misread.

        Args:
            messages: the conversation as the model will see it.
            domain: the deployer's declared domain; senses of that domain count as intended.
            read: indices of the messages in which mentions are looked for; None takes the last user message.

        Raises:
            InputError: there is nothing to read.
            EngineError: activations could not be captured.
        """
        began = time.perf_counter()
        wanted = _last_user(messages) if read is None else list(read)
        chat = self.encoder.encode(messages, limit=self.engine.context_length)
        captured = time.perf_counter()
        residual = self.engine.residual([chat.token_ids])[0]
        content = content_mask(residual)
        forward = time.perf_counter()
        features = self._sae.encode(residual)
        features[~content] = 0
        encoded = time.perf_counter()
        mentions, misreads = [], []
        for message in wanted:
            text = messages[message]["content"]
            for mention in self._finder.find(text):
                reading, misread = self._judge(mention, text, message, chat, features, content, domain)
                mentions += [reading] if reading else []
                misreads += [misread] if misread else []
        tokens = self._token_readings(chat, features)
        ended = time.perf_counter()
        marks = {"tokenise": (began, captured), "forward": (captured, forward), "encode": (forward, encoded),
                 "detect": (encoded, ended), "total": (began, ended)}  # fmt: skip
        return Reading(
            model=self.view.model_name,
            mentions=mentions,
            misreads=misreads,
            tokens=tokens,
            truncated=chat.truncated,
            timings_ms={name: round((b - a) * 1e3, 2) for name, (a, b) in marks.items()},
        )

    def _judge(
        self,
        mention: Mention,
        text: str,
        message: int,
        chat: EncodedChat,
        features: Tensor,
        content: Tensor,
        domain: str | None,
    ) -> tuple[MentionReading | None, Misread | None]:
        concept = mention.concept
        tokens = site_tokens(concept.site, chat.spans, message, mention.start, mention.end)
        if not tokens:
            return None, None
        pooled = pool(features, content, tokens)
        reading = read_senses(concept, pooled, self._column)
        intended, evidence = intended_senses(concept, text, mention.start, mention.end, domain)
        words = text[mention.start : mention.end]
        place: dict[str, Any] = {
            "concept": concept.slug,
            "text": words,
            "message": message,
            "start": mention.start,
            "end": mention.end,
        }
        result = MentionReading(**place, reading=_rounded(reading), intended=_rounded(intended))
        verdict = misread_senses(concept, reading, intended)
        if verdict is None:
            return result, None
        read_as, meant = verdict
        note = next(sense.note for sense in concept.senses if sense.slug == meant)
        return result, Misread(
            **place,
            read_as=read_as,
            intended=meant,
            p_read_as=round(reading[read_as], 4),
            p_intended=round(intended[meant], 4),
            evidence=evidence[meant],
            note=render_note(note, words),
            features=self._deciding(concept, pooled, read_as, meant),
        )

    def _deciding(self, concept: Concept, pooled: Tensor, read_as: str, meant: str) -> list[FeatureActivation]:
        """The features that pulled most towards ``read_as`` and away from ``meant``."""
        weights = {sense.slug: sense.weights for sense in concept.senses}
        pulls = []
        for index in weights[read_as].keys() | weights[meant].keys():
            value = pooled[self._column[index]].item()
            pull = value * (weights[read_as].get(index, 0.0) - weights[meant].get(index, 0.0))
            if pull > 0:
                pulls.append((pull, index, value))
        top = sorted(pulls, key=lambda item: (-item[0], item[1]))[:_DECIDING_FEATURES]
        return [self._activation(index, value**2) for _, index, value in top]

    def _token_readings(self, chat: EncodedChat, features: Tensor) -> list[TokenReading]:
        top = features.topk(min(_TOKEN_FEATURES, features.shape[1]), dim=1)
        indices = self._indices[top.indices.cpu()].tolist()
        return [
            TokenReading(
                text=span.text,
                message=span.message,
                start=span.start,
                end=span.end,
                features=[self._activation(i, v) for i, v in zip(row, values, strict=True) if v > 0],
            )
            for span, row, values in zip(chat.spans, indices, top.values.tolist(), strict=True)
        ]

    def _activation(self, index: int, value: float) -> FeatureActivation:
        feature = self.view.features.get(index)
        label = feature.label if feature else f"latent {index}"
        return FeatureActivation(index=index, label=label, activation=round(value, 3))


def read_senses(concept: Concept, pooled: Tensor, column: dict[int, int]) -> dict[str, float]:
    """What the model understood: softmax over the senses of ``bias + sum(weight * pooled feature)``."""
    scores = [
        sense.bias + sum(weight * pooled[column[index]].item() for index, weight in sense.weights.items())
        for sense in concept.senses
    ]
    return dict(zip((sense.slug for sense in concept.senses), softmax(scores), strict=True))


def misread_senses(concept: Concept, reading: dict[str, float], intended: dict[str, float]) -> tuple[str, str] | None:
    """The misread rule with the concept's calibrated thresholds; see :func:`disagreement`."""
    return disagreement(reading, intended, concept.read_below, concept.intended_above)


def disagreement(
    reading: dict[str, float], intended: dict[str, float], read_below: float, intended_above: float
) -> tuple[str, str] | None:
    """The misread rule: (read as, intended), or None to abstain.

    Flags when the intended source is sure of a sense (at least ``intended_above``) and the reading gives that very
    sense little (at most ``read_below``). Both thresholds are calibrated; between them nothing is said.
    """
    meant = max(intended, key=intended.__getitem__)
    read_as = max(reading, key=reading.__getitem__)
    sure = intended[meant] >= intended_above and reading[meant] <= read_below
    return (read_as, meant) if sure and read_as != meant else None


def _last_user(messages: Sequence[ChatMessage]) -> list[int]:
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not users or not messages[users[-1]]["content"].strip():
        raise InputError("The prompt is empty.", "Write something in the last user message.")
    return users[-1:]


def _rounded(probabilities: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in probabilities.items()}
