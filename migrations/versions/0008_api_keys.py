"""API keys: digests of their secrets, and what they are good for."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # Rows are never deleted: who had a key, and until when, is to be found out later, too. The table is small and
    # read whole, so it needs no index but that of its key.
    op.execute("""
        CREATE TABLE api_keys (
            key_id text PRIMARY KEY CHECK (key_id ~ '^[0-9a-f]{12}$'),
            name text NOT NULL CHECK (name <> ''),
            scopes text[] NOT NULL CHECK (cardinality(scopes) > 0),
            digest bytea NOT NULL CHECK (octet_length(digest) = 32),
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz,
            revoked_at timestamptz,
            previous_digest bytea CHECK (octet_length(previous_digest) = 32),
            previous_until timestamptz,
            CHECK ((previous_digest IS NULL) = (previous_until IS NULL))
        )""")


def downgrade() -> None:
    op.execute("DROP TABLE api_keys")
