"""How well a glossary's terms are read from few sentences: ``python -m benchmarks.glossary --model NAME``.

The concepts of the packs stand in for a deployer's terms: one sense is the meant one, in words (its gloss), the others'
glosses are the ``otherwise``. Signatures are compiled from the glosses and 0, 2, 4 or 8 sentences per side, as
``SAEAnnotator(glossary=...)`` does it, and tried on the held-out sentences, which nothing else looks at. Every sense is
the meant one once. Accuracy is balanced (chance is 0.5). Flags: sentences in which the model is said to read the term
otherwise than meant; *false* where the sentence does mean it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.table import show
from sae_runtime.catalog.packs import ConceptPack, concepts_of, load_packs
from sae_runtime.catalog.view import Concept
from sae_runtime.detector import Inspector
from sae_runtime.detector.detector import Readout
from sae_runtime.detector.sites import site_tokens
from sae_runtime.glossary.compile import MEANT, SITE, fit_term, sentences
from sae_runtime.glossary.terms import Term
from sae_runtime.progress import progress

_SHOTS = (0, 2, 4, 8)


class Reader:
    """Pooled features of sentences, each read once."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._known: dict[tuple[str, int, int], Any] = {}

    def pooled(self, text: str, start: int, end: int) -> Any:
        """Features ``[latents]`` at the mention ``text[start:end]``."""
        if (text, start, end) not in self._known:
            detector = self._inspector.detector
            plan = detector.plan([{"role": "user", "content": text}], read=[], tokens=True)
            tokens = site_tokens(SITE, plan.chat.spans, 0, start, end)
            self._known[text, start, end] = self._inspector.features([plan])[0].pooled(tokens, detector.width)
        return self._known[text, start, end]


def compiled(reader: Reader, pack: ConceptPack, meant: str, shots: int) -> Concept:
    """The term's concept from glosses and ``shots`` sentences per side."""
    others = [name for name in pack.senses if name != meant]
    counter = [text for rank in range(shots) for name in others for text in _texts(pack, name)[rank : rank + 1]]
    term = Term(
        term=pack.forms[0],
        forms=pack.forms[1:],
        meaning=pack.senses[meant].gloss,
        otherwise=[pack.senses[name].gloss for name in others],
        examples=_texts(pack, meant)[:shots],
        counterexamples=counter[:shots],
    )
    texts = sentences(term)
    pooled = np.stack([reader.pooled(item.text, item.start, item.end) for item in texts])
    return fit_term(term, texts, pooled)


def _texts(pack: ConceptPack, sense: str) -> list[str]:
    return [context.text for context in pack.senses[sense].labelled(held_out=False)]


def judged(reader: Reader, pack: ConceptPack, meant: str, concept: Concept) -> list[tuple[bool, float]]:
    """Per held-out sentence whether it means the term as meant, and the probability of that by the reading."""
    readout = Readout.of(concept)
    found = []
    for name, sense in pack.senses.items():
        for context in sense.labelled(held_out=True):
            pooled = reader.pooled(context.text, context.start, context.end)
            found.append((name == meant, readout.senses(pooled[readout.latents])[MEANT]))
    return found


def figures(results: list[tuple[Concept, list[tuple[bool, float]]]], shots: int) -> dict[str, Any]:
    """One row: means over terms, and shares of trusted terms' sentences."""
    accuracy, meant_flags, other_flags = [], [], []
    for concept, found in results:
        right = {side: np.mean([(p > 0.5) == side for label, p in found if label == side]) for side in (True, False)}
        accuracy.append((right[True] + right[False]) / 2)
        if concept.read_below > 0:
            meant_flags += [p <= concept.read_below for label, p in found if label]
            other_flags += [p <= concept.read_below for label, p in found if not label]
    return {
        "sentences_per_side": shots,
        "terms": len(results),
        "accuracy": round(float(np.mean(accuracy)), 4),
        "trusted_%": round(100 * sum(concept.read_below > 0 for concept, _ in results) / len(results), 1),
        "false_flags_%": round(100 * float(np.mean(meant_flags)), 2) if meant_flags else None,
        "flagged_otherwise_%": round(100 * float(np.mean(other_flags)), 1) if other_flags else None,
    }


def main(
    model: Annotated[str, typer.Option(help="Built-in name or folder.")] = "smollm2-135m-instruct",
    artefacts: Annotated[Path | None, typer.Option(help="Its artefacts; by default the shipped ones.")] = None,
    limit: Annotated[int | None, typer.Option(help="Concepts to try; by default all.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Compile, read, print."""
    reader = Reader(Inspector.from_model(model, artefacts=artefacts))
    packs = concepts_of(load_packs(["homographs", "arithmetic", "figurative"]))[:limit]
    results: dict[int, list[tuple[Concept, list[tuple[bool, float]]]]] = {shots: [] for shots in _SHOTS}
    with progress("glossary", len(packs)) as advance:
        for pack in packs:
            for meant in pack.senses:
                for shots in _SHOTS:
                    concept = compiled(reader, pack, meant, shots)
                    results[shots].append((concept, judged(reader, pack, meant, concept)))
            advance(1, pack.concept)
    show([figures(found, shots) for shots, found in results.items()], as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
