"""New catalogs for tests to fill, and catalogs of earlier revisions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import command
from sqlalchemy.orm import Session

from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.store import alembic_config, changing, create_catalog
from sae_runtime.catalog.tables import ModelRow, SaeRow


@contextmanager
def filling(location: CatalogLocation, *, model: str = "tiny", d_sae: int = 99) -> Iterator[tuple[Session, SaeRow]]:
    """A new catalog of a model and an SAE, in one transaction that ends with the block; its session and the SAE's row."""
    engine = create_catalog(location)
    with Session(engine) as session, session.begin():
        owner = ModelRow(name=model, weights="w", config="c", tokenizer="t", chat_template="h")
        sae = SaeRow(model=owner, layer=3, hook_name="h", architecture="jumprelu", d_in=4, d_sae=d_sae, fingerprint="f")
        session.add(sae)
        session.flush()
        yield session, sae
    engine.dispose()


def downgrade(location: CatalogLocation, revision: str) -> None:
    """Take the catalog's schema back to ``revision``, with the data that it can hold."""
    config = alembic_config()
    with changing(location) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
