"""how a concept is read at the mention, before the model has seen what follows

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "early_readings",
        sa.Column("concept_id", sa.Integer(), nullable=False),
        sa.Column("read_below", sa.Double(), nullable=False),
        sa.Column("intended_above", sa.Double(), nullable=False),
        sa.Column("seconded_above", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["concept_id"], ["concepts.id"], name=op.f("fk_early_readings_concept_id_concepts")),
        sa.PrimaryKeyConstraint("concept_id", name=op.f("pk_early_readings")),
    )
    op.create_table(
        "early_signatures",
        sa.Column("sense_id", sa.Integer(), nullable=False),
        sa.Column("bias", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["sense_id"], ["senses.id"], name=op.f("fk_early_signatures_sense_id_senses")),
        sa.PrimaryKeyConstraint("sense_id", name=op.f("pk_early_signatures")),
    )
    op.create_table(
        "early_weights",
        sa.Column("sense_id", sa.Integer(), nullable=False),
        sa.Column("feature_id", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["feature_id"], ["features.id"], name=op.f("fk_early_weights_feature_id_features")),
        sa.ForeignKeyConstraint(
            ["sense_id"], ["early_signatures.sense_id"], name=op.f("fk_early_weights_sense_id_early_signatures")
        ),
        sa.PrimaryKeyConstraint("sense_id", "feature_id", name=op.f("pk_early_weights")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("early_weights")
    op.drop_table("early_signatures")
    op.drop_table("early_readings")
