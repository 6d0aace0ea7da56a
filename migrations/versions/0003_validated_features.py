"""which features' descriptions passed validation, and how activations correlate with those of a second training run

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("features") as batch_op:
        batch_op.add_column(sa.Column("validated", sa.Boolean(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("seed_correlation", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("features") as batch_op:
        batch_op.drop_column("seed_correlation")
        batch_op.drop_column("validated")
