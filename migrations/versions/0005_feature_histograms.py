"""how strongly each feature fires on corpus tokens, as a histogram

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("features") as batch_op:
        batch_op.add_column(sa.Column("histogram", sa.JSON(), nullable=True))


def downgrade() -> None:
    # Rebuilding the table would drop rows that others refer to; SQLite 3.35 and later can drop a column in place.
    with op.batch_alter_table("features", recreate="never") as batch_op:
        batch_op.drop_column("histogram")
