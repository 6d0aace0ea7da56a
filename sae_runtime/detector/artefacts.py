"""A model's artefacts, opened together and checked to belong together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sae_runtime.catalog.file import CatalogFile
from sae_runtime.catalog.location import CatalogLocation, catalog_location
from sae_runtime.catalog.view import CatalogView
from sae_runtime.errors import FingerprintError, InputError
from sae_runtime.models import ResolvedModel, fingerprint_model, resolve_model
from sae_runtime.paths import ARTEFACTS, CATALOG_FILE, artefacts_for
from sae_runtime.sae import SAE, load_sae
from sae_runtime.sae.fingerprint import fingerprint_sae


@dataclass(frozen=True)
class Artefacts:
    """A model, its catalog, the folder that holds SAE and catalog, and the catalog's file as it was when it was opened.

    ``elsewhere``: where the catalog is when it is not in the folder; on a server there is no ``file``.
    """

    model: ResolvedModel
    view: CatalogView
    folder: Path
    file: CatalogFile | None = None
    elsewhere: CatalogLocation | None = None

    @property
    def catalog(self) -> CatalogLocation:
        """Where the catalog is."""
        return self.elsewhere or self.folder / CATALOG_FILE

    @classmethod
    def open(
        cls,
        model: str,
        *,
        folder: Path | None = None,
        catalog: CatalogLocation | str | None = None,
        fetch: bool = True,
    ) -> Artefacts:
        """Open the catalog in ``folder`` (None: the one shipped for ``model``) and check that it is of this model.

        Args:
            model: built-in name, folder or hub id.
            folder: holds the SAE, and the catalog unless ``catalog`` names another.
            catalog: a file, or a database on a server.
            fetch: download a built-in model that is not here yet.

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
        elsewhere = None if catalog is None else catalog_location(catalog)
        place = elsewhere or folder / CATALOG_FILE
        # Before it is read: what comes later is another one.
        file = CatalogFile.of(place) if isinstance(place, Path) else None
        view = replace(CatalogView.load(place), fingerprint=file.fingerprint if file else None)
        if differing := view.model.differences(fingerprint_model(resolved.path)):
            raise FingerprintError(
                f"The catalog {place} was built for another model: {', '.join(differing)} differ.",
                f"It belongs to '{view.model_name}'. Serve that model, or build a catalog for yours.",
            )
        return cls(resolved, view, folder, file, elsewhere)

    def load_sae(self, device: str = "cpu") -> SAE:
        """The SAE, checked to be the one that the catalog was built on.

        Raises:
            ArtefactError, FingerprintError: it is damaged, or another one.
        """
        sae = load_sae(self.folder, device=device, compact=True)
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
