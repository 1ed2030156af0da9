"""Decisions can be found by the id of their request, for what came of them."""

from alembic import op
from sqlalchemy import text

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # Partition by partition beside the running service: an index on the whole table at once would hold up all who log
    # decisions. A hash of the ids is half as large as a sorted list of them, and nobody asks for a range.
    partitions = op.get_bind().execute(
        text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'decisions'::regclass")
    )
    for partition in partitions.scalars().all():
        index = f"{partition}_request"
        with op.get_context().autocommit_block():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")  # an interrupted one is good for nothing
            op.execute(f"CREATE INDEX CONCURRENTLY {index} ON {partition} USING hash (request_id)")
    # Takes over those of the partitions.
    op.execute("CREATE INDEX decisions_request ON decisions USING hash (request_id)")


def downgrade() -> None:
    op.execute("DROP INDEX decisions_request")
