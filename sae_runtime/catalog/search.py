"""Finding features: by index or words in the catalog, and by direction in the dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import BaseModel
from sqlalchemy import ColumnElement, and_, or_, select, union
from torch import Tensor
from torch.nn.functional import normalize

from sae_runtime.catalog.excerpts import MAX_LABEL, cut
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.store import open_catalog, storable
from sae_runtime.catalog.tables import (
    ConceptRow,
    EarlyWeightRow,
    FeatureExampleRow,
    FeatureRow,
    SaeRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.errors import InputError
from sae_runtime.sae import SAE

Where = Literal["index", "label", "concept", "context"]
_LONGEST_QUERY = 200  # characters; SQLite refuses very long patterns
_BLOCK = 8_192  # directions that are compared at once; so many fit a cache
_LONGEST_INDEX = 9  # digits; more do not fit every database's integers


class FeatureHit(BaseModel):
    """A feature that a search found; ``index`` counts in the full dictionary.

    ``where``: what matched first: its index, its label or description, the slug of a concept that uses it, or a text on
    which it fires. ``density``: share of tokens on which it fires.
    """

    index: int
    label: str
    where: Where
    validated: bool
    density: float


def search_features(location: CatalogLocation | str, query: str, limit: int = 30) -> list[FeatureHit]:
    """Features that match ``query``, those found by index first, then by label, concept and context.

    Among features found in the same place the validated ones come first, then lower indices. Letters match in either
    case (in SQLite those of ASCII, in PostgreSQL as its locale has them); ``%`` and ``_`` stand for themselves.

    Args:
        location: the catalog.
        query: an index, or a part of a label, description, concept slug or example text. A blank one finds nothing,
            nor does one with characters that no catalog can hold (NUL, half a surrogate pair).
        limit: most hits.

    Raises:
        CatalogError: the catalog is missing, damaged or of another revision.
    """
    words = query.strip()[:_LONGEST_QUERY]
    hits: dict[int, FeatureHit] = {}
    if not words or not storable(words):
        return []
    order = (FeatureRow.validated.desc(), FeatureRow.index)
    fields = (FeatureRow.index, FeatureRow.label, FeatureRow.validated, FeatureRow.density)
    with open_catalog(location) as session:
        for where, condition in _conditions(words):
            if len(hits) >= limit:
                break
            for row in session.execute(select(*fields).where(condition).order_by(*order).limit(limit)).mappings():
                shown = {**row, "label": cut(row["label"], MAX_LABEL)}
                hits.setdefault(row["index"], FeatureHit(where=where, **shown))
    return list(hits.values())[:limit]


def nearest_features(sae: SAE, index: int, limit: int = 8) -> list[tuple[int, float]]:
    """The latents whose decoder directions are closest to that of ``index``, with their cosines, closest first.

    Args:
        sae: the dictionary, or the part of it that an artefacts folder holds; ``W_dec`` ``[d_sae, d_in]``.
        index: a latent in the full dictionary.
        limit: most neighbours.

    Returns:
        At most ``limit`` pairs of index in the full dictionary and cosine from -1 to 1; ``index`` itself is left out.

    Raises:
        InputError: ``sae`` does not hold the latent.
    """
    places = (sae.held == index).nonzero().flatten().tolist() if 0 <= index < 2**31 else []
    if not places:
        raise InputError(f"The dictionary at hand does not hold feature {index}.", "Name a catalogued feature.")
    directions = sae.weights["W_dec"]
    own = normalize(directions[places[0]].float(), dim=0)
    # In blocks, since a large dictionary does not fit into memory a second time.
    cosines = torch.cat([_cosines(block.float(), own) for block in directions.split(_BLOCK)])
    cosines[places[0]] = -2.0  # below every cosine
    best = cosines.topk(min(limit, len(cosines) - 1))
    return list(zip(sae.held[best.indices.cpu()].tolist(), best.values.tolist(), strict=True))


def _cosines(directions: Tensor, unit: Tensor) -> Tensor:
    """Cosines of ``directions`` ``[n, d_in]`` with a vector of norm one; zero for a direction of zeros."""
    return directions @ unit / directions.norm(dim=1).clamp(min=1e-8)


def _conditions(words: str) -> Iterator[tuple[Where, ColumnElement[bool]]]:
    """What a feature must satisfy to be found, best kind first."""
    if words.isdecimal() and len(words) <= _LONGEST_INDEX:
        # The SAE's number makes the pair that is indexed.
        sae_id = select(SaeRow.id).order_by(SaeRow.id).limit(1).scalar_subquery()
        yield "index", and_(FeatureRow.sae_id == sae_id, FeatureRow.index == int(words))
    texts = (FeatureRow.label, FeatureRow.description)
    yield "label", or_(*(text.icontains(words, autoescape=True) for text in texts))
    senses = (
        select(SenseRow.id)
        .join(ConceptRow, ConceptRow.id == SenseRow.concept_id)
        .where(ConceptRow.slug.icontains(words.replace(" ", "_"), autoescape=True))  # slugs are written so
    )
    late = select(SignatureWeightRow.feature_id).join(SignatureRow).where(SignatureRow.sense_id.in_(senses))
    early = select(EarlyWeightRow.feature_id).where(EarlyWeightRow.sense_id.in_(senses))
    yield "concept", FeatureRow.id.in_(union(late, early))
    contexts = select(FeatureExampleRow.feature_id).where(FeatureExampleRow.text.icontains(words, autoescape=True))
    yield "context", FeatureRow.id.in_(contexts)
