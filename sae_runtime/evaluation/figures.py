"""From saved results to the figures of the report: every number in docs/evidence.md comes from here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.evaluation.readouts import KINDS
from sae_runtime.evaluation.scoring import auc, border, expected_calibration_error, gap_interval, interval

NOTING = ("flagged", "careful", "always")  # the arms that the product could run in: notes by its own reading


def readings(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Per kind of readout, on the test part: accuracy and calibration error.

    ``reads``: ``label``, the mean over readers; where items have parts, also ``details`` (the parts), and ``all`` (of the items whose
    label and parts are all read right).
    """
    label, group = np.array(results["items"]["label"]), np.array(results["items"]["group"])
    reader = np.array(results["items"].get("reader") or [""] * len(label))
    test, part = np.array(results["items"]["split"]) == "test", _parts(results)
    rows = []
    for kind in KINDS:
        right = np.array(results["readings"][kind]["label"]) == label
        sure = np.array(results["readings"][kind]["probability"])
        own = {"task": results["task"], "model": results["model"], "readout": kind}
        for reads, some in (("label", test & ~part), ("details", test & part)):
            if some.any():
                readers = [
                    float(right[some & (reader == name)].mean()) for name in dict.fromkeys(reader[some].tolist())
                ]
                rows.append(
                    {
                        **own,
                        "reads": reads,
                        "items": int(some.sum()),
                        "accuracy": round(float(np.mean(readers)), 4),
                        "interval": interval(right[some].astype(float), group[some]),
                        "calibration_error": round(expected_calibration_error(sure[some], right[some]), 4),
                    }
                )
        if part.any():
            names = np.array(list(dict.fromkeys(group[test].tolist())))
            whole = np.array([float(right[test & (group == name)].all()) for name in names])
            rows.append(
                {
                    **own,
                    "reads": "all",
                    "items": len(names),
                    "accuracy": round(float(whole.mean()), 4),
                    "interval": interval(whole, names),
                    "calibration_error": None,
                }
            )
    return rows


def answers(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Per arm, on the test part: what it flags, what is right with it, and the paired difference to ``plain``.

    ``accuracy``: contextually calibrated for choices. ``tuned``: two options, border chosen on the dev part for each
    arm. ``harm``: share of items that are right without notes and wrong with them; ``lift`` and its interval belong to
    ``tuned`` where there is one, else to ``accuracy``; where there is one, ``calibrated_lift`` is that of ``accuracy``.
    """
    if "arms" not in results:
        return []
    asked = _Asked(results)
    plain, plain_calibrated = asked.right("plain"), asked.right("plain", tuned=False)
    rows = []
    for name, arm in results["arms"]["test"].items():
        right = asked.right(name)
        calibrated = asked.right(name, tuned=False) - plain_calibrated if asked.tuned else None
        area = auc(np.array(arm["margin"]), asked.first["test"]) if asked.tuned else None
        rows.append(
            {
                "task": results["task"],
                "model": results["model"],
                "arm": name,
                "items": len(right),
                "noted": round(float(np.mean(np.array(arm["note"]) != -1)), 4),
                "accuracy": round(float(np.mean(arm["right"])), 4),
                "tuned": round(float(right.mean()), 4) if asked.tuned else None,
                "auc": None if area is None else round(area, 4),
                "loglik": None if None in arm["loglik"] else round(float(np.mean(arm["loglik"])), 4),
                "lift": round(float((right - plain).mean()), 4),
                "interval": interval(right - plain, asked.groups),
                "harm": round(float((plain > right).mean()), 4),
                "calibrated_lift": None if calibrated is None else round(float(calibrated.mean()), 4),
                "calibrated_interval": None if calibrated is None else interval(calibrated, asked.groups),
            }
        )
    return rows


def comparisons(results: dict[str, Any]) -> list[dict[str, Any]]:
    """``flagged`` against every other arm with notes, item by item."""
    arms = results.get("arms", {}).get("test", {})
    if "flagged" not in arms:
        return []
    asked = _Asked(results)
    flagged = asked.right("flagged")
    rows = []
    for name in arms:
        if name not in ("flagged", "oracle"):
            gap = flagged - asked.right(name)
            rows.append(
                {
                    "task": results["task"],
                    "model": results["model"],
                    "flagged_against": name,
                    "difference": round(float(gap.mean()), 4),
                    "interval": interval(gap, asked.groups),
                }
            )
    return rows


def across_models(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One model with notes against another without, on the items that were asked of both; empty for a single model.

    Items are the same when their ids and labels are; planted prompts, when their ids are. ``tuned`` answers where both have
    them, as in :func:`answers`.
    """
    rows = []
    asked = [view for result in results for view in (_Planted.views(result) if "set" in result else [_Asked(result)])]
    for with_notes, without in permutations(asked, 2):
        if with_notes.task != without.task or with_notes.model == without.model:
            continue
        places = {key: place for place, key in enumerate(without.keys)}
        both = [(place, places[key]) for place, key in enumerate(with_notes.keys) if key in places]
        if not both:
            continue
        mine, theirs = (list(side) for side in zip(*both, strict=True))
        tuned = with_notes.tuned and without.tuned
        base = without.right("plain", tuned=tuned)[theirs]
        for arm in [name for name in with_notes.arms if name in ("plain", *NOTING)]:
            right = with_notes.right(arm, tuned=tuned)[mine]
            rows.append(
                {
                    "task": with_notes.task,
                    "model": with_notes.model,
                    "arm": arm,
                    "accuracy": round(float(right.mean()), 4),
                    "against_plain": without.model,
                    "its_accuracy": round(float(base.mean()), 4),
                    "items": len(both),
                    "difference": round(float((right - base).mean()), 4),
                    "interval": interval(right - base, with_notes.groups[mine]),
                }
            )
    return rows


def _parts(results: dict[str, Any]) -> NDArray[np.bool_]:
    """Which items only read details of others."""
    return np.array(results["items"].get("part") or [False] * len(results["items"]["label"]))


class _Asked:
    """The answers of one result: ``groups`` of its test items and their ``keys`` (id and label), whether the ``first`` option
    is right by part, and whether answers are ``tuned``: two options, whose border is chosen on the dev part."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.task, self.model = results["task"], results["model"]
        self._arms = results["arms"]
        self.arms = list(self._arms["test"])
        whole = ~_parts(results)
        split, label = np.array(results["items"]["split"])[whole], np.array(results["items"]["label"])[whole]
        test = np.flatnonzero(whole)[split == "test"]
        self.groups = np.array(results["items"]["group"])[test]
        self.keys = [(results["items"]["id"][i], results["items"]["label"][i]) for i in test]
        self.first = {part: label[split == part] == 0 for part in ("dev", "test")}
        margins = [self._arms[part]["plain"]["margin"] for part in ("dev", "test")]
        self.tuned = bool(margins[0]) and None not in margins[0] + margins[1]

    def right(self, arm: str, *, tuned: bool = True) -> NDArray[np.float64]:
        """1.0 where the arm's answer to a test item is right; not by the tuned border where ``tuned`` is False."""
        dev, test = self._arms["dev"][arm], self._arms["test"][arm]
        if not (self.tuned and tuned):
            return np.array(test["right"], dtype=float)
        cut = border(np.array(dev["margin"]), self.first["dev"])
        return ((np.array(test["margin"]) > cut) == self.first["test"]).astype(float)


class _Planted:
    """The same view of the answers about planted prompts of one ``kind``, "" for all; their groups are the concepts."""

    tuned = False

    def __init__(self, results: dict[str, Any], kind: str) -> None:
        self.task, self.model = f"planted {results['set']} {kind}".rstrip(), results["model"]
        self._arms = results["arms"]
        self.arms = list(self._arms)
        self._own = np.array([kind in ("", own) for own in results["kind"]])
        self.groups = np.array(results["concept"])[self._own]
        self.keys = [name for name, own in zip(results["id"], self._own, strict=True) if own]

    @classmethod
    def views(cls, results: dict[str, Any]) -> list[_Planted]:
        """All prompts, and each kind by itself: a declared domain tells the product what the model is not told."""
        return [cls(results, kind) for kind in ("", *dict.fromkeys(results["kind"]))]

    def right(self, arm: str, *, tuned: bool = False) -> NDArray[np.float64]:
        """1.0 where the arm's answer is right; nothing can be ``tuned``."""
        return np.array(self._arms[arm]["right"], dtype=float)[self._own]


def flags(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Per kind of prompt, and for all planted ones: how flags do.

    ``source_right``: the intended source's likeliest sense is the planted one. ``misread``: share where the reading's likeliest sense
    is another one; ``misread_at_first``: the early reading's. ``precision``: share of flags that name the planted sense, all kinds together also counting flags on
    plain prompts. ``recall``: of all planted prompts; ``recall_of_misreads``: of those that are misread, at first or later.
    """
    kinds = np.array(results["kind"])
    intended = np.array(results["intended"])
    flag = np.array([-1 if value is None else value for value in results["flag"]])
    read, source = _likeliest(results["reading"]), _likeliest(results["source"])
    first = _likeliest(results.get("early") or [None] * len(read))  # results of earlier versions have none
    first = np.where(first < 0, read, first)  # concepts without an early reading
    rows = []
    for name in (*dict.fromkeys(results["kind"]), "planted"):
        own = kinds != "plain" if name == "planted" else kinds == name
        right, raised, misread = (flag == intended) & own, (flag >= 0) & own, (read != intended) & own
        at_first = (first != intended) & own
        either = misread | at_first
        counted = raised | ((flag >= 0) & (kinds == "plain")) if name == "planted" else raised
        rows.append(
            {
                "set": results["set"],
                "model": results["model"],
                "kind": name,
                "prompts": int(own.sum()),
                "source_right": round(float((source == intended)[own].mean()), 4),
                "misread_at_first": round(float(at_first.sum() / own.sum()), 4),
                "misread": round(float(misread.sum() / own.sum()), 4),
                "flagged": round(float(raised.sum() / own.sum()), 4),
                "precision": round(float(right.sum() / counted.sum()), 4) if counted.any() else None,
                "recall": round(float(right.sum() / own.sum()), 4) if name != "plain" else None,
                "recall_of_misreads": (
                    round(float((right & either).sum() / either.sum()), 4) if name != "plain" and either.any() else None
                ),
            }
        )
    return rows


def _likeliest(tables: Sequence[list[float] | None]) -> NDArray[np.int64]:
    """Numbers of the likeliest senses; -1 where nothing was read."""
    return np.array([-1 if row is None else int(np.argmax(row)) for row in tables])


def sources(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Per pair of reading and source, and per kind of prompt: how often the source is right, and what flags come of it.

    ``source_right_where_sure``: among prompts where it is above the threshold; the other columns as in :func:`flags`.
    """
    kinds = np.array(results["kind"])
    rows = []
    for pair in results["pairs"]:
        right, sure, misread = (np.array(pair[name], dtype=bool) for name in ("right", "sure", "misread"))
        raised = np.array([value is not None for value in pair["flag"]])
        hit = np.array([value == 1 for value in pair["flag"]])
        for kind in dict.fromkeys(results["kind"]):
            own = kinds == kind
            rows.append(
                {
                    "set": results["set"],
                    "model": results["model"],
                    "reading": pair["reading"],
                    "source": pair["source"],
                    "kind": kind,
                    "prompts": int(own.sum()),
                    "source_right": round(float(right[own].mean()), 4),
                    "sure": round(float(sure[own].mean()), 4),
                    "source_right_where_sure": round(float(right[own & sure].mean()), 4)
                    if (own & sure).any()
                    else None,
                    "misread": round(float(misread[own].mean()), 4),
                    "flagged": round(float(raised[own].mean()), 4),
                    "precision": round(float(hit[own & raised].mean()), 4) if (own & raised).any() else None,
                }
            )
    return rows


def failures(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Does a flag predict failure? Answers to "what does it mean here?" on flagged and on other prompts, by arm.

    Once among all prompts, and once among those with a planted misreading alone, where not flagging is harder to explain by
    a prompt that anyone would get right. ``gap_interval``: accuracy on flagged prompts minus accuracy on the others
    (unpaired bootstrap over concepts). ``right``, ``lift`` and ``harm``: of all those prompts, flagged or not.
    """
    if "arms" not in results:
        return []
    kinds = np.array(results["kind"])
    return [
        row
        for among, own in (("all", kinds != ""), ("planted", kinds != "plain"))
        for row in _failures(results, among, own)
    ]


def mistakes(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Per kind of mistake with enough cases: features found on one half, and those that hold on the other."""
    return [
        {
            "task": results["task"],
            "model": results["model"],
            "problems": results["problems"],
            "wrong": results["wrong"],
            "kind": concept["kind"],
            "cases": concept["cases"],
            "features_found": concept["found"],
            "features_confirmed": concept["confirmed"],
            "strongest": ", ".join(str(feature["index"]) for feature in concept["features"][:3]) or None,
        }
        for concept in results["concepts"]
    ]


def foreseen(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Per readout: how well it tells, of problems that it has not seen, that the plain answer is wrong."""
    own = {"task": results["task"], "model": results["model"]}
    return [{**own, "readout": kind, **row} for kind, row in results["foreseen"].items()]


def trials(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the notes of failure-derived concepts do to answers of problems that fitted nothing."""
    return [{"task": results["task"], "model": results["model"], **row} for row in results.get("trials", [])]


def _failures(results: dict[str, Any], among: str, own: NDArray[np.bool_]) -> list[dict[str, Any]]:
    flagged = np.array([value is not None for value in results["flag"]])[own]
    concepts = np.array(results["concept"])[own]
    plain = np.array(results["arms"]["plain"]["right"], dtype=float)[own]
    rows = []
    for arm, answer in results["arms"].items():
        right = np.array(answer["right"], dtype=float)[own]
        some = bool(flagged.any())
        rows.append(
            {
                "set": results["set"],
                "model": results["model"],
                "among": among,
                "arm": arm,
                "flagged_prompts": int(flagged.sum()),
                "right_where_flagged": round(float(right[flagged].mean()), 4) if some else None,
                "right_elsewhere": round(float(right[~flagged].mean()), 4),
                "gap_interval": gap_interval(right, flagged, concepts) if some else None,
                "lift_where_flagged": round(float((right - plain)[flagged].mean()), 4) if some else None,
                "lift_interval": interval((right - plain)[flagged], concepts[flagged]) if some else None,
                "harm_where_flagged": round(float((plain > right)[flagged].mean()), 4) if some else None,
                "right": round(float(right.mean()), 4),
                "lift": round(float((right - plain).mean()), 4),
                "interval": interval(right - plain, concepts),
                "harm": round(float((plain > right).mean()), 4),
            }
        )
    return rows
