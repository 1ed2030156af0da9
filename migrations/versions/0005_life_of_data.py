"""Deleted propositions, how long data are kept, and people who asked to be forgotten."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # A deleted proposition keeps its row, so that whoever reads what changed since a moment sees it go.
    op.execute("ALTER TABLE propositions ADD COLUMN deleted_at timestamptz")

    # Rows of the log from before `kept_since` are gone or going, and are not taken in any more. Whoever
    # locks the row of a head also learns, without another query, whether there is anyone to leave out.
    op.execute("""
        ALTER TABLE log_heads
        ADD COLUMN kept_since timestamptz NOT NULL DEFAULT '-infinity',
        ADD COLUMN has_forgotten boolean NOT NULL DEFAULT false""")
    op.execute("""
        INSERT INTO log_heads (name, last_at)
        VALUES ('users', '-infinity'), ('decisions', '-infinity'), ('features', '-infinity')""")
    op.execute("CREATE INDEX event_keys_time ON event_keys USING brin (received_at)")

    # Finds the keys that begin with a user's id by their bytes, whatever the collation of the database.
    op.execute("""
        CREATE INDEX user_category_affinity_bytes
        ON user_category_affinity (user_category_key text_pattern_ops)""")

    # Who was forgotten when, as a digest that says nothing without the secret of this database.
    op.execute("CREATE TABLE forgotten_users (digest bytea PRIMARY KEY, forgotten_at timestamptz NOT NULL)")
    op.execute("""
        CREATE TABLE erasure_secret (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            secret bytea NOT NULL DEFAULT sha256(convert_to(gen_random_uuid()::text || gen_random_uuid(), 'UTF8'))
        )""")
    op.execute("INSERT INTO erasure_secret DEFAULT VALUES")
    # The audit: that somebody was forgotten, and how much that was.
    op.execute("""
        CREATE TABLE erasures (
            number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            erased_at timestamptz NOT NULL,
            counts jsonb NOT NULL
        )""")
    # Keys to remove from the online store once more, when whoever may be writing them just now is done.
    op.execute("""
        CREATE TABLE unfinished_erasures (
            user_id text PRIMARY KEY,
            user_category_keys text[] NOT NULL,
            erased_at timestamptz NOT NULL
        )""")


def downgrade() -> None:
    for table in ("unfinished_erasures", "erasures", "erasure_secret", "forgotten_users"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP INDEX IF EXISTS user_category_affinity_bytes")
    op.execute("DROP INDEX event_keys_time")
    op.execute("DELETE FROM log_heads WHERE name IN ('users', 'decisions', 'features')")
    op.execute("ALTER TABLE log_heads DROP COLUMN has_forgotten, DROP COLUMN kept_since")
    # Without its mark a deleted proposition would be back.
    op.execute("UPDATE propositions SET is_active = false WHERE deleted_at IS NOT NULL")
    op.execute("ALTER TABLE propositions DROP COLUMN deleted_at")
