"""The detector: from a conversation and its features to readings and misreads. It never runs the model itself.

:meth:`Detector.plan` looks at the text alone: tokens, mentions, and which latents are needed to read them. An engine
supplies those (or none, when nothing is mentioned), and :meth:`Detector.reading` judges.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_runtime.catalog.stored import KEPT_CONCEPTS, Recent
from sae_runtime.catalog.view import CatalogView, Concept
from sae_runtime.detector.context import (
    SECONDED,
    Places,
    intended_senses,
    is_declared,
    softmax,
    stem_places,
    told_senses,
)
from sae_runtime.detector.imitations import find_imitations
from sae_runtime.detector.mentions import Mention, MentionFinder
from sae_runtime.detector.notes import render_note
from sae_runtime.detector.results import FeatureActivation, Imitation, MentionReading, Misread, Reading, TokenReading
from sae_runtime.detector.rule import Verdict, judge, likeliest
from sae_runtime.detector.sites import TokenPlaces
from sae_runtime.engines.chat import ChatEncoder, ChatMessage, EncodedChat
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.errors import EngineError, InputError

MAX_MENTIONS = 512
"""Mentions that one reading judges, the first ones: each costs time and a place in the answer."""
_TOKEN_FEATURES = 6
_DECIDING_FEATURES = 5


@dataclass(frozen=True)
class PlacedMention:
    """A mention in message number ``message``, read over the prompt tokens ``tokens`` (empty: they were cut off).

    ``own``: the mention's own tokens, where it is read early.
    """

    mention: Mention
    message: int
    tokens: range
    own: range


@dataclass(frozen=True)
class Plan:
    """What is to be read.

    Attributes:
        messages: the conversation.
        chat: its tokens.
        mentions: the mentions to read.
        latents: latents that the reading needs (indices in the full dictionary); None for all.
        domain: the deployer's declared domain.
        picks: senses that the user chose, by concept.
        left_out: how many mentions beyond :data:`MAX_MENTIONS` there are.
        imitations: what looks like a note in the messages as they came.
    """

    messages: Sequence[ChatMessage]
    chat: EncodedChat
    mentions: list[PlacedMention]
    latents: list[int] | None
    domain: str | None
    picks: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0
    imitations: list[Imitation] = field(default_factory=list)

    @property
    def needs_model(self) -> bool:
        """Whether activations are needed at all; without a mention there is nothing to read in them."""
        return self.latents is None or bool(self.latents)


class Detector:
    """Finds and judges mentions with one catalog. Deterministic, and safe to call from several threads.

    Args:
        view: the catalog.
        encoder: tokenises conversations as the model sees them.
        context_length: longer prompts are cut to this many tokens, their head.
    """

    def __init__(
        self, view: CatalogView, encoder: ChatEncoder, context_length: int, *, finder: MentionFinder | None = None
    ) -> None:
        self.encoder = encoder
        self.context_length = context_length
        self._finder = finder or MentionFinder(view.concepts)
        self.view = replace(view, concepts=self._finder.concepts)
        self._readouts: Recent[str, _Readouts] = Recent(KEPT_CONCEPTS)

    @cached_property
    def width(self) -> int:
        """One more than the largest index of a catalogued feature."""
        return max(self.view.features, default=0) + 1

    def with_concepts(self, concepts: Sequence[Concept]) -> Detector:
        """A detector with ``concepts`` beside the catalog's, and instead of those that share a form with them."""
        return Detector(self.view, self.encoder, self.context_length, finder=self._finder.beside(concepts))

    def plan(
        self,
        messages: Sequence[ChatMessage],
        *,
        domain: str | None = None,
        read: Sequence[int] | None = None,
        tokens: bool = True,
        only: Collection[str] | None = None,
        without: Collection[str] = (),
        picks: Mapping[str, str] | None = None,
    ) -> Plan:
        """Tokenise ``messages`` and find the mentions.

        Args:
            messages: the conversation as the model will see it.
            domain: the deployer's declared domain; senses of that domain count as intended.
            read: indices of the messages in which mentions are looked for, each once; None: the last user message.
            tokens: also read every token, for people who look at it; otherwise only what the mentions need.
            only: slugs of the concepts to look for; None: all.
            without: slugs of concepts to pass over.
            picks: senses that the user chose, by slug of the concept; they are always noted, however they are read.

        Raises:
            InputError: there is nothing to read, or a picked sense does not exist.
        """
        self._check_picks(picks or {})
        wanted = _last_user(messages) if read is None else list(dict.fromkeys(read))
        chat = self.encoder.encode(messages, limit=self.context_length)
        places = TokenPlaces(chat.spans)
        slug_of = self._finder.concepts.slug_of
        found = [
            (message, hit, own)
            for message in wanted
            for hit in self._finder.hits(messages[message]["content"])
            if (only is None or slug_of(hit.key) in only)
            and slug_of(hit.key) not in without
            and (own := places.site("mention", message, hit.start, hit.end))
        ]
        left_out = max(0, len(found) - MAX_MENTIONS)
        found = found[:MAX_MENTIONS]
        concepts = self._finder.concepts.many({hit.key for _, hit, _ in found})
        mentions = [
            PlacedMention(
                Mention(concepts[hit.key], hit.start, hit.end),
                message,
                places.site(concepts[hit.key].site, message, hit.start, hit.end),
                own,
            )
            for message, hit, own in found
        ]
        needed = {latent for placed in mentions for one in self._of(placed) if one for latent in one.latents.tolist()}
        return Plan(
            messages=messages,
            chat=chat,
            mentions=mentions,
            latents=None if tokens else sorted(needed),
            domain=domain,
            picks=dict(picks or {}),
            left_out=left_out,
            imitations=find_imitations(messages),
        )

    def reading(self, plan: Plan, features: PromptFeatures | None) -> Reading:
        """Judge what was planned.

        Args:
            plan: from :meth:`plan`.
            features: at least the plan's latents at all its tokens; None when the plan needs no model.

        Raises:
            EngineError: the features are of another prompt.
        """
        if features is None and plan.needs_model:
            raise EngineError("There are no features to read.", "Read the prompt again.")
        if features is not None and len(features) != len(plan.chat.token_ids):
            raise EngineError(
                f"{len(features)} tokens were captured, but the prompt has {len(plan.chat.token_ids)}.",
                "The server renders the conversation differently; check chat template and tools.",
            )
        mentions, misreads = [], []
        places = {
            message: stem_places(plan.messages[message]["content"]) for message in {p.message for p in plan.mentions}
        }
        for placed in plan.mentions:
            mention, misread = self._judge(placed, plan, features, places[placed.message])
            mentions.append(mention)
            misreads += [misread] if misread else []
        return Reading(
            model=self.view.model_name,
            mentions=mentions,
            misreads=misreads,
            tokens=self._tokens(plan.chat, features) if features is not None and plan.latents is None else [],
            truncated=plan.chat.truncated,
            mentions_left_out=plan.left_out,
            imitations=plan.imitations,
            catalog=self.view.fingerprint,
        )

    def _check_picks(self, picks: Mapping[str, str]) -> None:
        for concept, sense in picks.items():
            known = self._finder.concepts.named(concept)
            slugs = [one.slug for one in known.senses] if known else []
            if sense not in slugs:
                senses = f"has the senses {', '.join(slugs)}" if known else "is no concept of the catalog"
                raise InputError(
                    f"'{sense}' cannot be picked: '{concept}' {senses}.", "Pick one of a concept's senses."
                )

    def _of(self, placed: PlacedMention) -> _Readouts:
        concept = placed.mention.concept
        known, missing = self._readouts.get([concept.slug])
        if missing:
            known = {concept.slug: _Readouts(Readout.of(concept), Readout.early(concept))}
            self._readouts.put(known)
        return known[concept.slug]

    def _judge(
        self, placed: PlacedMention, plan: Plan, features: PromptFeatures | None, places: Places
    ) -> tuple[MentionReading, Misread | None]:
        concept, start, end = placed.mention.concept, placed.mention.start, placed.mention.end
        text = plan.messages[placed.message]["content"]
        late, first = self._of(placed)
        reading, pooled = _read(late, features, placed.tokens)
        early, pooled_early = _read(first, features, placed.own) if first else (None, np.zeros(0))
        picked = plan.picks.get(concept.slug)
        intended, evidence = intended_senses(concept, places, end, plan.domain, picked)
        place = {
            "concept": concept.slug,
            "text": text[start:end],
            "message": placed.message,
            "start": start,
            "end": end,
        }
        probabilities = {"reading": _rounded(reading), "early": _rounded(early or {}), "intended": _rounded(intended)}
        result = MentionReading.model_validate({**place, **probabilities})
        told, declared = told_senses(concept, places, start), is_declared(concept, plan.domain)
        verdict = judge(concept, reading, intended, early, told=told, declared=declared)
        if picked is not None:
            read_as = likeliest(reading)
            verdict = Verdict(read_as, picked, reading[read_as], intended[picked])
        if verdict is None:
            return result, None
        sense = next(sense for sense in concept.senses if sense.slug == verdict.intended)
        if not sense.noted and picked is None:  # its note was tried and did not help
            return result, None
        decided = (first, pooled_early) if verdict.early and first else (late, pooled)
        why = {
            "read_as": verdict.read_as,
            "intended": verdict.intended,
            "p_read_as": round(verdict.p_read_as, 4),
            "p_intended": round(verdict.p_intended, 4),
            "early": verdict.early,
            "evidence": [*evidence[verdict.intended], *([SECONDED] if verdict.seconded else [])],
            "note": render_note(sense.note, text[start:end]),
            "features": self._deciding(*decided, verdict.read_as, verdict.intended),
        }
        return result, Misread.model_validate({**place, **why})

    def _deciding(
        self, readout: Readout, pooled: NDArray[np.float64], read_as: str, meant: str
    ) -> list[FeatureActivation]:
        """The features that pulled most towards ``read_as`` and away from ``meant``."""
        rows = {sense: row for row, sense in enumerate(readout.slugs)}
        pulls = pooled * (readout.weights[rows[read_as]] - readout.weights[rows[meant]])
        order = np.lexsort((readout.latents, -pulls))[:_DECIDING_FEATURES]
        deciding = [(int(readout.latents[i]), float(pooled[i]) ** 2) for i in order if pulls[i] > 0]
        labels = self.view.labels([latent for latent, _ in deciding])
        return [_activation(labels, latent, value) for latent, value in deciding]

    def _tokens(self, chat: EncodedChat, features: PromptFeatures) -> list[TokenReading]:
        strongest = features.strongest(_TOKEN_FEATURES)
        labels = self.view.labels({latent for row in strongest for latent, _ in row})
        return [
            TokenReading(
                text=span.text,
                message=span.message,
                start=span.start,
                end=span.end,
                features=[_activation(labels, latent, value) for latent, value in row],
            )
            for span, row in zip(chat.spans, strongest, strict=True)
        ]


@dataclass(frozen=True)
class Readout:
    """A concept's signatures as arrays: sense ``slugs``, ``latents`` ``[m]``, ``weights`` ``[senses, m]``, ``bias``."""

    slugs: list[str]
    latents: NDArray[np.int64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    @classmethod
    def of(cls, concept: Concept) -> Readout:
        """The readout of ``concept`` at its site."""
        return cls._made(concept, [sense.weights for sense in concept.senses], [sense.bias for sense in concept.senses])

    @classmethod
    def early(cls, concept: Concept) -> Readout | None:
        """The readout of ``concept`` at the mention alone, if it has one."""
        return cls._made(concept, concept.early.weights, concept.early.biases) if concept.early else None

    @classmethod
    def _made(cls, concept: Concept, weights: Sequence[dict[int, float]], biases: Sequence[float]) -> Readout:
        latents = sorted({latent for own in weights for latent in own})
        return cls(
            slugs=[sense.slug for sense in concept.senses],
            latents=np.array(latents, dtype=np.int64),
            weights=np.array([[own.get(latent, 0.0) for latent in latents] for own in weights]),
            bias=np.array(biases),
        )

    def senses(self, pooled: NDArray[np.float64]) -> dict[str, float]:
        """What the model understood: softmax over the senses of ``bias + weights @ pooled``."""
        scores = self.bias + self.weights @ pooled
        return dict(zip(self.slugs, softmax(scores.tolist()), strict=True))


class _Readouts(NamedTuple):
    """Of one concept."""

    late: Readout
    early: Readout | None


def _read(
    readout: Readout, features: PromptFeatures | None, tokens: range
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Probabilities by sense, and the pooled features ``[m]`` that they come from."""
    # A glossary's term may have no latents at all, when nothing told its sentences apart; its bias says "unknown".
    pooled = np.zeros(0) if features is None else features.pooled_at(tokens, readout.latents)
    return readout.senses(pooled), pooled


def _activation(labels: Mapping[int, str], index: int, value: float) -> FeatureActivation:
    return FeatureActivation(index=index, label=labels.get(index, f"latent {index}"), activation=round(value, 3))


def _last_user(messages: Sequence[ChatMessage]) -> list[int]:
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not users or not messages[users[-1]]["content"].strip():
        raise InputError("The prompt is empty.", "Write something in the last user message.")
    return users[-1:]


def _rounded(probabilities: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in probabilities.items()}
