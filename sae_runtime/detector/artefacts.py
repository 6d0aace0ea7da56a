"""A model's artefacts, opened together and checked to belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae_runtime.catalog.view import CatalogView
from sae_runtime.errors import FingerprintError, InputError
from sae_runtime.models import ResolvedModel, fingerprint_model, resolve_model
from sae_runtime.paths import ARTEFACTS, CATALOG_FILE, artefacts_for
from sae_runtime.sae import SAE, load_sae
from sae_runtime.sae.fingerprint import fingerprint_sae


@dataclass(frozen=True)
class Artefacts:
    """A model, its catalog, and the folder that holds catalog and SAE."""

    model: ResolvedModel
    view: CatalogView
    folder: Path

    @classmethod
    def open(cls, model: str, *, folder: Path | None = None, fetch: bool = True) -> Artefacts:
        """Open the catalog in ``folder`` (None: the one shipped for ``model``) and check that it is of this model.

        Raises:
            InputError: there are no artefacts.
            ModelError, ArtefactError, FingerprintError: something is absent, damaged, or belongs to something else.
        """
        resolved = resolve_model(model, fetch=fetch)
        folder = folder or artefacts_for(resolved.name)
        if not folder.is_dir():
            shipped = ", ".join(sorted(path.name for path in ARTEFACTS.iterdir() if path.is_dir()))
            raise InputError(
                f"There are no artefacts for model '{resolved.name}' ({folder}).",
                f"Shipped ones exist for {shipped}. Make your own with `sensecheck build`, then pass --artefacts.",
            )
        view = CatalogView.load(folder / CATALOG_FILE)
        if differing := view.model.differences(fingerprint_model(resolved.path)):
            raise FingerprintError(
                f"The catalog {folder / CATALOG_FILE} was built for another model: {', '.join(differing)} differ.",
                f"It belongs to '{view.model_name}'. Serve that model, or build a catalog for yours.",
            )
        return cls(resolved, view, folder)

    def load_sae(self, device: str = "cpu") -> SAE:
        """The SAE, checked to be the one that the catalog was built on.

        Raises:
            ArtefactError, FingerprintError: it is damaged, or another one.
        """
        sae = load_sae(self.folder, device=device)
        self.check_sae()
        return sae

    def check_sae(self) -> None:
        """Check that the SAE beside the catalog is the one that it was built on, without loading it.

        Raises:
            ArtefactError, FingerprintError: it is damaged, or another one.
        """
        if fingerprint_sae(self.folder) != self.view.sae_fingerprint:
            raise FingerprintError(
                f"The SAE in {self.folder} is not the one that its catalog was built on.",
                "Restore both files together.",
            )
