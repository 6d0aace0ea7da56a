"""The feature catalog: what an SAE's features mean and which senses a concept can have."""

from sae_runtime.catalog.packs import ConceptPack, SensePack, load_packs
from sae_runtime.catalog.store import open_catalog
from sae_runtime.catalog.view import CatalogView, Concept, Feature, Sense

__all__ = ["CatalogView", "Concept", "ConceptPack", "Feature", "Sense", "SensePack", "load_packs", "open_catalog"]
