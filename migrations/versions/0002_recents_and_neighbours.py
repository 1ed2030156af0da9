"""What users last interacted with, and which propositions they interact with together."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # As the other feature tables: one row per user and change. The times order what comes late.
    op.execute("""
        CREATE TABLE user_recent (
            user_id text NOT NULL,
            propositions text[] NOT NULL,
            counted_at_s double precision[] NOT NULL,
            event_timestamp timestamptz NOT NULL,
            created_timestamp timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, event_timestamp)
        )""")
    op.execute("CREATE INDEX user_recent_time ON user_recent USING brin (event_timestamp)")

    # The current state only. `updated_at` is the receipt of the event that changed it last.
    op.execute("""
        CREATE TABLE proposition_neighbours (
            proposition_id text PRIMARY KEY,
            neighbour_ids text[] NOT NULL,
            weights double precision[] NOT NULL,
            as_of_s double precision NOT NULL,
            updated_at timestamptz NOT NULL
        )""")
    op.execute("CREATE INDEX proposition_neighbours_updated_at ON proposition_neighbours (updated_at)")

    # What was folded so far is not in these tables: the projector replays it. A projector of the release
    # before may still run, fold into the other tables and think that it has replayed everything; the
    # second mark, which it does not know, tells.
    op.execute("ALTER TABLE projection ADD COLUMN positives_until timestamptz NOT NULL DEFAULT '-infinity'")
    op.execute("UPDATE projection SET needs_rebuild = true WHERE EXISTS (SELECT FROM events)")


def downgrade() -> None:
    op.execute("ALTER TABLE projection DROP COLUMN positives_until")
    op.execute("DROP TABLE proposition_neighbours")
    op.execute("DROP TABLE user_recent")
