"""Every slot of the entity space has its own progress, so that many projectors share the work."""

from alembic import op

revision = "0004"
down_revision = "0003"

SLOTS = 9


def upgrade() -> None:
    # Waits for a batch that a projector of the release before is in. Without its columns the next one fails,
    # and cannot fold what others have folded since.
    op.execute("LOCK TABLE projection IN ACCESS EXCLUSIVE MODE")
    op.execute("""
        CREATE TABLE projection_slots (
            slot smallint PRIMARY KEY,
            folded_until timestamptz NOT NULL
        )""")
    op.execute(f"""
        INSERT INTO projection_slots
        SELECT slot, folded_until FROM projection, generate_series(0, {SLOTS - 1}) AS slot""")
    op.execute("UPDATE projection SET needs_rebuild = true WHERE positives_until <> folded_until")
    op.execute("ALTER TABLE projection DROP COLUMN folded_until, DROP COLUMN positives_until")

    # Who changes states behind the projectors' backs raises it, and they forget what they remember.
    op.execute("ALTER TABLE projection ADD COLUMN states_version bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("LOCK TABLE projection IN ACCESS EXCLUSIVE MODE")
    op.execute("""
        ALTER TABLE projection
            ADD COLUMN folded_until timestamptz NOT NULL DEFAULT '-infinity',
            ADD COLUMN positives_until timestamptz NOT NULL DEFAULT '-infinity'""")
    # One mark cannot tell what of slots that are differently far is folded: all of it is replayed.
    op.execute("""
        UPDATE projection
        SET folded_until = latest, positives_until = latest, needs_rebuild = needs_rebuild OR earliest <> latest
        FROM (SELECT min(folded_until) AS earliest, max(folded_until) AS latest FROM projection_slots) AS slots""")
    op.execute("ALTER TABLE projection DROP COLUMN states_version")
    op.execute("DROP TABLE projection_slots")
