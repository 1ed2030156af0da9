"""Why models were promoted or refused, and the features that some decisions were made with."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # Rows are only added: verdicts, and promotions with the verdict that they rested on (null: there was none).
    # `compared_with` is the version that served when the verdict was reached.
    op.execute("""
        CREATE TABLE gate_decisions (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            version text NOT NULL,
            decided_at timestamptz NOT NULL DEFAULT now(),
            is_passed boolean,
            checks jsonb NOT NULL,
            compared_with text,
            promoted boolean NOT NULL DEFAULT false,
            actor text,
            reason text
        )""")
    op.execute("CREATE INDEX gate_decisions_version ON gate_decisions (version, id)")

    # Nullable: only a small share of the decisions have them, and code that does not know the column writes nulls.
    op.execute("ALTER TABLE decisions ADD COLUMN features jsonb")


def downgrade() -> None:
    op.execute("ALTER TABLE decisions DROP COLUMN features")
    op.execute("DROP TABLE gate_decisions")
