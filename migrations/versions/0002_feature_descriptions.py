"""feature descriptions and their validation

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_FEATURE = ("seed_cosine", "sensitivity", "context_free", "sense_purity")
_VALIDATION = ("precision_low", "precision_high")


def upgrade() -> None:
    with op.batch_alter_table("features") as batch_op:
        batch_op.add_column(sa.Column("description", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("predicate", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("promoted", sa.JSON(), nullable=False, server_default="[]"))
        for name in _FEATURE:
            batch_op.add_column(sa.Column(name, sa.Double(), nullable=True))
    with op.batch_alter_table("feature_validations") as batch_op:
        batch_op.add_column(sa.Column("predicted", sa.Integer(), nullable=True))
        for name in _VALIDATION:
            batch_op.add_column(sa.Column(name, sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("feature_validations") as batch_op:
        for name in ("predicted", *_VALIDATION):
            batch_op.drop_column(name)
    with op.batch_alter_table("features") as batch_op:
        for name in ("description", "predicate", "promoted", *_FEATURE):
            batch_op.drop_column(name)
