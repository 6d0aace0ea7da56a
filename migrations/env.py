"""Alembic environment. Connections come from :mod:`sae_runtime.catalog.store`, which owns URLs and transactions."""

from alembic import context

from sae_runtime.catalog.tables import Base

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations with `sensecheck db upgrade PATH`.")
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters tables by copying them
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
