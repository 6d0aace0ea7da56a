"""The misread rule: when what the model read and what is meant disagree enough to say so.

A mention has up to two readings. The *late* one, at the site that reads the concept best, is what the model made of it in the
end; the *early* one, at the mention alone, is what it took it for before it saw what follows. What is meant comes from a source that never
looks inside the model: what the deployer declares, or else the words behind the mention.

- The source stands against both readings, the late one first.
- Where nothing is declared, the product of what the words say with the late reading stands against the early one, too: in a garden path the
  model itself corrects its first impression, which makes it a second witness.

A misread needs a cause. Where the words before the mention already say the sense that is meant, the model has been told, and a reading that
disagrees is taken for an error of the readout: nothing is flagged. (They were half of the small model's false flags on plain prompts, a third of the default model's.)

All thresholds are calibrated, together; between them nothing is said. A concept without an early reading has the late one alone.
"""

from __future__ import annotations

from typing import NamedTuple

from sae_runtime.catalog.entries import Concept

TOLD_ABOVE = 0.7
"""From this probability on, the words before the mention have said the sense; from 0.55 to 0.75 the calibration prompts tell little difference."""
Senses = dict[str, float]
"""Probabilities by sense."""


class Verdict(NamedTuple):
    """A misread: the sense that was read and the one that is meant, with their probabilities.

    ``early``: the early reading was judged. ``seconded``: what is meant rests on the late reading, too.
    """

    read_as: str
    intended: str
    p_read_as: float
    p_intended: float
    early: bool = False
    seconded: bool = False


def judge(
    concept: Concept,
    reading: Senses,
    intended: Senses,
    early: Senses | None = None,
    *,
    told: Senses | None = None,
    declared: bool = False,
) -> Verdict | None:
    """The rule with the concept's thresholds; None to abstain.

    Args:
        concept: what is mentioned.
        reading: the late reading.
        intended: what the source says.
        early: the early reading, if the concept has one.
        told: what the words before the mention say; None if nobody asked.
        declared: whether the deployer declared the sense, by domain or glossary.
    """
    late = disagreement(reading, intended, concept.read_below, concept.intended_above, told)
    if late or concept.early is None or early is None:
        return late
    bounds = concept.early
    first = disagreement(early, intended, bounds.read_below, bounds.intended_above, told)
    if first or declared:
        return first and first._replace(early=True)
    both = disagreement(early, agreed(intended, reading), bounds.read_below, bounds.seconded_above, told)
    return both and both._replace(early=True, seconded=True)


def disagreement(
    reading: Senses, intended: Senses, read_below: float, intended_above: float, told: Senses | None = None
) -> Verdict | None:
    """One reading against one source.

    Flags when the source is sure of a sense (at least ``intended_above``), the reading gives that very sense little (at most
    ``read_below``), and the words before have not told it (less than :data:`TOLD_ABOVE`).
    """
    meant, read_as = likeliest(intended), likeliest(reading)
    if told and told[meant] >= TOLD_ABOVE:
        return None
    sure = intended[meant] >= intended_above and reading[meant] <= read_below
    return Verdict(read_as, meant, reading[read_as], intended[meant]) if sure and read_as != meant else None


def likeliest(senses: Senses) -> str:
    """The sense with the largest probability, the first of equals."""
    return max(senses, key=senses.__getitem__)


def agreed(one: Senses, other: Senses) -> Senses:
    """What two independent witnesses say together: the product of their probabilities, normalised."""
    product = {sense: one[sense] * other.get(sense, 0.0) + 1e-12 for sense in one}
    total = sum(product.values())
    return {sense: value / total for sense, value in product.items()}
