"""Decisions tell whether their slate was ranked for them or for an earlier request."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Nullable: code that does not know the column yet writes nulls into it.
    op.execute("ALTER TABLE decisions ADD COLUMN is_cached boolean")


def downgrade() -> None:
    op.execute("ALTER TABLE decisions DROP COLUMN is_cached")
