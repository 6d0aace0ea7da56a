"""what was measured of each note: its effect with an interval, its margin over other wordings, whether it is given

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MEASURED = ("lift_low", "lift_high", "accuracy_lift", "harm", "margin")


def upgrade() -> None:
    with op.batch_alter_table("notes") as batch_op:
        for name in _MEASURED:
            batch_op.add_column(sa.Column(name, sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("wording", sa.String(), nullable=False, server_default="pack"))
        batch_op.add_column(sa.Column("trials", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("enabled", sa.Boolean(), nullable=False, server_default="1"))


def downgrade() -> None:
    with op.batch_alter_table("notes") as batch_op:
        for name in ("enabled", "trials", "wording", *reversed(_MEASURED)):
            batch_op.drop_column(name)
