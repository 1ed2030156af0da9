"""What users were shown lately, and what propositions have in common."""

from alembic import op
from sqlalchemy import text

revision = "0006"
down_revision = "0005"

_ROWS_AT_A_TIME = 20_000

# Earlier versions are filled, too: what propositions were like then is not known better than by what they are like now.
_FILL = text("""
    WITH few AS (
        SELECT proposition_id, tags, attributes FROM propositions
        WHERE proposition_id > :after ORDER BY proposition_id LIMIT :rows
    ), described AS (
        SELECT proposition_id, proposition_traits(tags, attributes) AS traits,
               proposition_number_names(attributes) AS number_names,
               proposition_number_values(attributes) AS number_values
        FROM few WHERE tags <> '{}' OR attributes <> '{}'
    ), filled AS (
        UPDATE proposition_catalog AS version
        SET traits = d.traits, number_names = d.number_names, number_values = d.number_values
        FROM described d WHERE version.proposition_id = d.proposition_id
    )
    SELECT max(proposition_id) FROM few""")


def upgrade() -> None:
    # As the other feature tables: one row per user and change.
    op.execute("""
        CREATE TABLE user_history (
            user_id text NOT NULL,
            propositions text[] NOT NULL,
            impressions double precision[] NOT NULL,
            clicks double precision[] NOT NULL,
            event_timestamp timestamptz NOT NULL,
            created_timestamp timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, event_timestamp)
        )""")
    op.execute("CREATE INDEX user_history_time ON user_history USING brin (event_timestamp)")

    # Tags, and texts of attributes as name=text. Long ones describe, and hardly two propositions share them.
    # COLLATE: the same choice and the same order in every database.
    op.execute("""
        CREATE FUNCTION proposition_traits(tags text[], attributes jsonb) RETURNS text[]
        LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
            SELECT coalesce(array_agg(trait ORDER BY trait COLLATE "C"), '{}') FROM (
                SELECT trait FROM (
                    SELECT 1 AS place, tag AS trait FROM unnest(tags) AS tag WHERE tag IS NOT NULL
                    UNION ALL
                    SELECT 2, name || '=' || (item #>> '{}')
                    FROM jsonb_each(attributes) AS attribute (name, value)
                    CROSS JOIN LATERAL jsonb_array_elements(
                        CASE jsonb_typeof(value) WHEN 'array' THEN value ELSE jsonb_build_array(value) END) AS item
                    WHERE jsonb_typeof(item) = 'string' AND length(item #>> '{}') <= 64
                ) AS found
                GROUP BY trait ORDER BY min(place), trait COLLATE "C" LIMIT 64
            ) AS chosen
        $$""")
    # A JSON number may be larger, or closer to zero, than any of double precision.
    op.execute("""
        CREATE FUNCTION proposition_numbers(attributes jsonb) RETURNS TABLE (name text, number double precision)
        LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
            SELECT key, CASE
                WHEN value IN ('0', 'false') THEN 0
                WHEN value = 'true' THEN 1
                ELSE value::numeric::double precision
            END
            FROM jsonb_each(attributes)
            WHERE CASE jsonb_typeof(value)
                WHEN 'boolean' THEN true
                WHEN 'number' THEN value = '0' OR abs(value::numeric) BETWEEN 1e-300 AND 1e300
                ELSE false
            END
            ORDER BY key COLLATE "C" LIMIT 32
        $$""")
    for function, column, kind in (
        ("proposition_number_names", "name", "text"),
        ("proposition_number_values", "number", "double precision"),
    ):
        op.execute(f"""
            CREATE FUNCTION {function}(attributes jsonb) RETURNS {kind}[]
            LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
                SELECT coalesce(array_agg({column} ORDER BY name COLLATE "C"), '{{}}')
                FROM proposition_numbers(attributes)
            $$""")

    # With defaults: code that does not know the columns yet leaves them out.
    op.execute("""
        ALTER TABLE proposition_catalog
            ADD COLUMN traits text[] NOT NULL DEFAULT '{}',
            ADD COLUMN number_names text[] NOT NULL DEFAULT '{}',
            ADD COLUMN number_values double precision[] NOT NULL DEFAULT '{}'""")
    after: str | None = ""
    while after is not None:
        filled = op.get_bind().execute(_FILL, {"after": after, "rows": _ROWS_AT_A_TIME})
        after = filled.scalar_one()

    # Waits for a batch that a projector of the release before is in. Without its column the next one fails, and
    # cannot fold, or replay, what histories miss then. What was folded so far is replayed, and the online store
    # gets the catalog anew.
    op.execute("LOCK TABLE projection IN ACCESS EXCLUSIVE MODE")
    op.execute("ALTER TABLE projection RENAME COLUMN states_version TO state_changes")
    op.execute("""
        UPDATE projection SET needs_rebuild = true
        WHERE EXISTS (SELECT FROM events) OR EXISTS (SELECT FROM proposition_catalog)""")


def downgrade() -> None:
    op.execute("LOCK TABLE projection IN ACCESS EXCLUSIVE MODE")
    op.execute("ALTER TABLE projection RENAME COLUMN state_changes TO states_version")
    op.execute("""
        ALTER TABLE proposition_catalog DROP COLUMN traits, DROP COLUMN number_names, DROP COLUMN number_values""")
    for function in (
        "proposition_number_values",
        "proposition_number_names",
        "proposition_numbers",
        "proposition_traits",
    ):
        op.execute(f"DROP FUNCTION {function}")
    op.execute("DROP TABLE user_history")
