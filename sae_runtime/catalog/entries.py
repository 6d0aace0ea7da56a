"""What serving knows of a catalog's features, senses and concepts: plain objects, whose texts are cut.

Raises:
    ValueError: numbers make no sense. Whoever reads the catalog makes a :class:`~sae_runtime.errors.CatalogError` of it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from sae_runtime.catalog.excerpts import MAX_LABEL, MAX_TEXT, cut
from sae_runtime.numbers import check_finite, check_latent

_STRICT = ConfigDict(strict=True)  # SQLite keeps values of any type in any column
Site = Literal["mention", "after", "rest"]


@dataclass(frozen=True, config=_STRICT)
class Feature:
    """A labelled latent; ``index`` counts in the full dictionary."""

    index: int
    label: str
    density: float

    def __post_init__(self) -> None:
        check_latent(self.index)
        object.__setattr__(self, "label", cut(self.label, MAX_LABEL))


@dataclass(frozen=True, config=_STRICT)
class Sense:
    """A sense with its readouts: ``weights`` by feature index (signature), ``cues`` by word stem (text matcher).

    ``noted``: whether its note may be given; see :class:`~sae_runtime.catalog.tables.NoteRow`.
    """

    slug: str
    gloss: str
    note: str
    domains: frozenset[str]
    bias: float
    weights: dict[int, float]
    cues: dict[str, float]
    noted: bool = True

    def __post_init__(self) -> None:
        for latent in self.weights:
            check_latent(latent)
        check_finite(
            (self.bias, *self.weights.values(), *self.cues.values()), f"a weight of sense '{cut(self.slug, 60)}'"
        )
        object.__setattr__(self, "gloss", cut(self.gloss, MAX_LABEL))
        object.__setattr__(self, "note", cut(self.note, MAX_TEXT))


@dataclass(frozen=True, config=_STRICT)
class Early:
    """The reading at the mention alone; see :class:`~sae_runtime.catalog.tables.EarlyReadingRow`.

    ``biases`` and ``weights`` by feature index: one per sense of the concept, in their order.
    """

    read_below: float
    intended_above: float
    seconded_above: float
    biases: tuple[float, ...]
    weights: tuple[dict[int, float], ...]

    def __post_init__(self) -> None:
        for latent in {latent for own in self.weights for latent in own}:
            check_latent(latent)
        numbers = (weight for own in self.weights for weight in own.values())
        thresholds = (self.read_below, self.intended_above, self.seconded_above)
        check_finite((*thresholds, *self.biases, *numbers), "a number of an early reading")


@dataclass(frozen=True, config=_STRICT)
class Concept:
    """A concept and its calibrated thresholds; see :class:`sae_runtime.catalog.tables.ConceptRow`.

    ``declared``: the sense that the deployer's glossary says is meant; None for concepts of the catalog. ``early``: None where
    the mention alone is not read.
    """

    slug: str
    pack: str
    forms: tuple[str, ...]
    site: Site
    accuracy: float
    text_accuracy: float | None
    read_below: float
    intended_above: float
    senses: tuple[Sense, ...]
    declared: str | None = None
    early: Early | None = None

    def __post_init__(self) -> None:
        check_finite((self.read_below, self.intended_above), f"a threshold of concept '{cut(self.slug, 60)}'")
