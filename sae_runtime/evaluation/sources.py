"""Which source of the intended sense is right how often, and what does that do to flags?

A reading is judged against a *source* that says what is meant. The product's source are the words behind the mention and the declared
domain. Here a reading of the whole prompt, where the model has seen everything, stands against an early one at the mention, where it has
seen the words before it: on a garden path the two should differ. Both are fitted on the packs' sentences alone; thresholds are chosen on
``calibration`` and ``dev`` prompts by the build's own rule, anew for each pair of reading and source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_runtime.build.calibrate import MIN_READ_ACCURACY, Judged, choose_thresholds
from sae_runtime.build.signatures import OWN_SENSE_SHARE
from sae_runtime.catalog.packs import ConceptPack
from sae_runtime.catalog.view import Concept
from sae_runtime.detector.context import intended_senses, stem_places
from sae_runtime.detector.rule import Senses, agreed, likeliest
from sae_runtime.evaluation.capture import LAST, Captured
from sae_runtime.evaluation.items import Item, Split
from sae_runtime.evaluation.prompts import PlantedPrompt
from sae_runtime.evaluation.readouts import Labelled, read_labels
from sae_runtime.progress import progress

SOURCES = "sources.json"
MENTION, REST = "mention", "rest"


@dataclass(frozen=True)
class Pair:
    """A reading and the source that it is judged against, by name."""

    reading: str
    source: str


PAIRS = (
    Pair("mention", "words"),
    Pair("rest", "words"),
    Pair("mention", "rest"),
    Pair("mention", "last, dense"),
    Pair("mention", "words and rest"),
)
_READOUTS = {
    "mention": ("sae", MENTION),
    "rest": ("sae", REST),
    "last, dense": ("dense", LAST),
}


def source_items(packs: Sequence[ConceptPack], prompts: Sequence[tuple[Split, PlantedPrompt]]) -> list[Item]:
    """What is read: the packs' sentences for the fit, then ``prompts``, each at its mention and from there on."""
    known = {pack.concept: tuple(pack.senses) for pack in packs}
    sentences = [
        _item(f"{pack.concept}-{sense}-{number}", "fit", context.text, context.start, context.end, pack.concept, sense)
        for pack in packs
        for sense, own in pack.senses.items()
        for number, context in enumerate([*own.labelled(held_out=False), *own.labelled(held_out=True)])
    ]
    planted = [
        _item(p.id, split, p.prompt, p.start, p.start + len(p.mention), p.concept, p.intended)
        for split, p in prompts
        if p.concept in known
    ]
    return [Item(**{**own, "labels": known[own["reader"]]}) for own in [*sentences, *planted]]


def source_results(
    items: Sequence[Item],
    prompts: Sequence[tuple[Split, PlantedPrompt]],
    concepts: Mapping[str, Concept],
    read: Captured,
) -> dict[str, Any]:
    """What ``sources.json`` holds: per pair of reading and source its thresholds, and per test prompt what was flagged.

    Args:
        items: from :func:`source_items`.
        prompts: those the items were made of; ``dev`` ones choose thresholds.
        concepts: of the catalog, whose cues are the source ``words``.
        read: activations of ``items``.
    """
    tables, lows, trusted = _readings(items, read)
    planted = {prompt.id: (split, prompt) for split, prompt in prompts}
    for item in items:
        if item.split != "fit":
            prompt = planted[item.id][1]
            words = _words(concepts[prompt.concept], prompt)
            tables["words"][item.id] = words
            tables["words and rest"][item.id] = agreed(words, tables["rest"][item.id])
    own = [item for item in items if item.split != "fit"]
    out: dict[str, Any] = {
        "id": [item.id for item in own if item.split == "test"],
        "kind": [planted[item.id][1].kind for item in own if item.split == "test"],
        "concept": [item.reader for item in own if item.split == "test"],
        "pairs": [],
    }
    for pair in PAIRS:
        judged = {
            split: [
                Judged(
                    planted[item.id][1],
                    tables[pair.reading][item.id],
                    tables[pair.source][item.id],
                    trusted[pair.reading][item.reader],
                    lows[pair.reading][item.reader],
                )
                for item in own
                if item.split == split
            ]
            for split in ("dev", "test")
        }
        below, above, _ = choose_thresholds(judged["dev"])
        out["pairs"].append(
            {
                "reading": pair.reading,
                "source": pair.source,
                "read_below": below,
                "intended_above": above,
                "right": [int(likeliest(row.intended) == row.prompt.intended) for row in judged["test"]],
                "sure": [int(max(row.intended.values()) >= above) for row in judged["test"]],
                "misread": [int(likeliest(row.reading) != row.prompt.intended) for row in judged["test"]],
                "flag": [_flag(row, below, above) for row in judged["test"]],
            }
        )
    return out


def _readings(
    items: Sequence[Item], read: Captured
) -> tuple[dict[str, dict[str, Senses]], dict[str, dict[str, float]], dict[str, dict[str, bool]]]:
    """By readout: probabilities by item; by concept the build's own bound on them, and whether it reads well enough to flag."""
    tables: dict[str, dict[str, Senses]] = {name: {} for name in (*_READOUTS, "words", "words and rest")}
    lows: dict[str, dict[str, float]] = {name: {} for name in _READOUTS}
    trusted: dict[str, dict[str, bool]] = {name: {} for name in _READOUTS}
    readers = list(dict.fromkeys(item.reader for item in items))
    with progress("fitting readouts", len(readers) * len(_READOUTS)) as advance:
        for reader in readers:
            rows = [i for i, item in enumerate(items) if item.reader == reader]
            part, own = read.part(rows), [items[i] for i in rows]
            for name, (kind, spot) in _READOUTS.items():
                found = read_labels(kind, Captured({spot: part.features[spot]}, {spot: part.dense[spot]}), _data(own))
                fit = np.array([item.split == "fit" for item in own])
                at = np.array([item.labels.index(item.label) for item in own])
                chance = found.probabilities[np.arange(len(own)), at]
                lows[name][reader] = float(np.quantile(chance[fit], OWN_SENSE_SHARE))
                trusted[name][reader] = found.fit_accuracy >= MIN_READ_ACCURACY
                for item, row in zip(own, found.probabilities, strict=True):
                    tables[name][item.id] = dict(zip(item.labels, row.tolist(), strict=True))
                advance(1)
    return tables, lows, trusted


def _data(items: Sequence[Item]) -> Labelled:
    return Labelled(
        labels=np.array([item.labels.index(item.label) for item in items]),
        fit=np.array([item.split == "fit" for item in items]),
        dev=np.zeros(len(items), dtype=bool),
        groups=np.array([item.group for item in items]),
        weights=np.ones(len(items)),
        count=len(items[0].labels),
    )


def _item(name: str, split: Split, text: str, start: int, end: int, concept: str, sense: str) -> dict[str, Any]:
    spots = {MENTION: (start, end), REST: (start, len(text))}
    own = {"id": name, "split": split, "group": name, "prompt": text, "spots": spots, "label": sense}
    return {**own, "labels": (), "gold": "", "reader": concept, "asked": False}


def _words(concept: Concept, prompt: PlantedPrompt) -> Senses:
    end = prompt.start + len(prompt.mention)
    return intended_senses(concept, stem_places(prompt.prompt), end, prompt.domain)[0]


def _flag(row: Judged, below: float, above: float) -> int | None:
    """1: flagged with the planted sense, 0: with another; None: not flagged."""
    meant = row.flagged(below, above)
    return None if meant is None else int(meant == row.prompt.intended)
