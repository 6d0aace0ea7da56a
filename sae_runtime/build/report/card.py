"""The card: what the artefacts are and what was measured of them; and the report's content."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sae_runtime.build.concepts import concept_counts
from sae_runtime.build.features.describe import Description
from sae_runtime.build.features.gates import Validation, gates, load_validations
from sae_runtime.build.features.scores import Scores
from sae_runtime.build.stages import model_folder

if TYPE_CHECKING:
    from sae_runtime.build.publish import Built

_SHOWN = 6  # features per group in the report
_SCORES = ("precision", "recall", "balanced_accuracy")


def card_figures(built: Built) -> dict[str, Any]:
    """What was measured of the dictionary and of its features."""
    steps = built.plan.steps
    checked = dict(steps["validate"].summary())
    control = checked.pop("control")
    return {
        **_rounded(steps["measure"].summary()),
        "validation": _rounded(checked),
        "control": _rounded(control),
    }


def make_card(built: Built, figures: dict[str, Any], chosen: list[int], fingerprint: str) -> dict[str, Any]:
    """The card of artefacts that hold the latents ``chosen``."""
    plan = built.plan
    described = [built.validations[index] for index in chosen if built.validations[index].passed]
    corpus = plan.steps["corpus"].summary()
    return {
        "model": plan.model.name,
        "d_in": built.sae.d_in,
        "d_sae": built.sae.d_sae,
        **figures,
        "features_described": len(described),
        "features_read_only": len(chosen) - len(described),
        "features_validated_fraction": round(len(described) / max(1, len(chosen)), 4),
        "features_keeping_precision": round(sum(v.keeps for v in described) / max(1, len(described)), 4),
        **concept_counts(plan.packs),
        "latents_shipped": len(chosen) if built.sae.independent else built.sae.d_sae,
        "shipped": "catalogued latents alone (exact for readings)" if built.sae.independent else "full dictionary",
        "fingerprint": fingerprint,
        "licence": "Apache-2.0",
        "data": {"corpus_tokens": corpus["tokens"], "sources": corpus["sources"]},
        "command": f"sensecheck build {plan.config.source} --corpus PATH",
    }


def report_of(built: Built, card: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    """What :func:`~sae_runtime.build.report.page.write_report` shows."""
    steps, plan = built.plan.steps, built.plan
    twins = load_validations(steps["validate"], control=True)
    control = card["control"]
    live = [v for v in built.validations if v.scores.samples]
    twins_live = [v for v in twins if v.scores.samples]
    return {
        "model": card["model"],
        "title": f"Dictionary and catalog of {card['model']}, layer {card['layer']}",
        "created": datetime.now(UTC).date().isoformat(),
        "command": card["command"],
        "figures": {name: value for name, value in card.items() if isinstance(value, int | float)},
        "control_figures": {name: control[name] for name in ("fvu", "fvu_per_dimension", "l0_mean", "l0_fraction")},
        "loss": steps["train"].summary()["loss"],
        "control_loss": steps["control-train"].summary()["loss"],
        "frontier": frontier(built),
        "density": [item.density for item in built.descriptions],
        "validation": {
            "gates": [
                {
                    "name": name,
                    "rule": rule,
                    "share": card["validation"]["gates"][name],
                    **({"control_share": control["gates"][name]} if name in control["gates"] else {}),
                }
                for name, rule, _ in gates(plan.config.validation)
            ],
            "scores": _score_lists(live),
            "control_scores": _score_lists(twins_live),
            "catalogued_share": card["features_validated_fraction"],
            "live_share": card["validation"]["passed_share"],
            "kept_precision_share": card["features_keeping_precision"],
        },
        "readings": {name: card[name] for name in ("reading_accuracy", "reading_accuracy_dense_probe")},
        "calibration": card["calibration"],
        "examples": _examples(built, chosen),
        "data": [
            {"name": source["name"], "licence": source["licence"], "tokens": sum(source["tokens"].values())}
            for source in card["data"]["sources"]
        ],
    }


def frontier(built: Built) -> list[dict[str, Any]]:
    """All dictionaries of the model that this machine has measured, the published one marked."""
    points = []
    for path in sorted(model_folder(built.plan.config.model).glob("measure-*/done.json")):
        figures = json.loads(path.read_text("utf-8"))
        points.append({
            "label": f"layer {figures['layer']}, width {figures['d_sae']}, k {figures['k']}",
            "site": "residual stream",
            "width": figures["d_sae"],
            "l0_fraction": figures["l0_fraction"],
            "fvu": figures["fvu"],
            "tokens": figures["tokens_trained"],
            "chosen": path.parent == built.plan.steps["measure"].folder,
        })  # fmt: skip
    return points


def _score_lists(results: list[Validation]) -> dict[str, list[float]]:
    return {name: [round(getattr(v.scores, name), 4) for v in results] for name in _SCORES}


def _examples(built: Built, chosen: list[int]) -> dict[str, Any]:
    """Described features from the top, middle and bottom of the ranking by balanced accuracy."""
    described = [index for index in chosen if built.validations[index].passed]
    ranked = sorted(described, key=lambda index: -built.validations[index].scores.balanced_accuracy)
    middle = max(0, len(ranked) // 2 - _SHOWN // 2)
    groups = {"best": ranked[:_SHOWN], "median": ranked[middle : middle + _SHOWN], "worst": ranked[-_SHOWN:]}
    return {
        name: [_example(built.descriptions[i], built.validations[i].scores) for i in group]
        for name, group in groups.items()
    }


def _example(item: Description, scores: Scores) -> dict[str, Any]:
    return {
        "index": item.index,
        "description": item.label,
        "sentence": item.sentence,
        "density": item.density,
        "precision": scores.precision,
        "precision_low": scores.precision_low,
        "precision_high": scores.precision_high,
        "recall": scores.recall,
        "balanced_accuracy": scores.balanced_accuracy,
        "promoted": item.promoted,
        "contexts": item.contexts,
    }


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    rounded: dict[str, Any] = {}
    for name, value in figures.items():
        rounded[name] = _rounded(value) if isinstance(value, dict) else value
        if isinstance(value, float):
            rounded[name] = round(value, 5)
    return rounded
