"""What the page shows of the catalog beside a reading: meanings of senses, details of features."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.lookup import concept_lookup
from sae_runtime.catalog.view import CatalogView, FeatureDetail, feature_detail
from sae_runtime.errors import SensecheckError
from sae_runtime.glossary import Glossary
from sae_runtime.glossary.compile import MEANT, OTHER


class Lookup:
    """Meanings and features of one catalog, and of the terms that people added.

    Args:
        view: the catalog.
        catalog: where it is.
    """

    def __init__(self, view: CatalogView, catalog: CatalogLocation) -> None:
        self.catalog = catalog
        self._concepts = concept_lookup(view.concepts)
        self._detail = lru_cache(maxsize=512)(
            lambda index: feature_detail(self.catalog, index, sae=view.sae_fingerprint)
        )

    def glosses(self, concept: str, glossary: Glossary | None = None) -> Mapping[str, str]:
        """Meaning by sense of ``concept``; the terms of ``glossary`` come first, as they do in a reading."""
        for term in glossary.terms if glossary else ():
            if term.slug == concept:
                return {MEANT: term.meaning, OTHER: "; ".join(term.otherwise) or "anything else"}
        known = self._concepts.named(concept)
        return {sense.slug: sense.gloss for sense in known.senses} if known else {}

    def feature(self, index: int) -> FeatureDetail | None:
        """The catalogued feature ``index``; None when there is none, or the catalog cannot be read any more."""
        try:
            return self._detail(index)
        except SensecheckError:
            return None
