"""Alembic environment of the feature catalog, shipped in the wheel."""
