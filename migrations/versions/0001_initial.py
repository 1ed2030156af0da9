"""The first schema: catalog, event log, decisions, feature tables, models."""

from alembic import op

revision = "0001"
down_revision = None

# Feature view tables that hold decayed counters, and their key columns.
COUNTER_TABLES = {
    "user_activity": "user_id",
    "proposition_performance": "proposition_id",
    "context_activity": "context_key",
    "user_category_affinity": "user_category_key",
    "context_proposition_performance": "context_proposition_key",
}


def upgrade() -> None:
    # Feast keeps its registry and its temporary tables apart from ours.
    op.execute("CREATE SCHEMA IF NOT EXISTS feast")

    # Writers of a log update its head first and hold the row until they commit. So the times that it
    # hands out are strictly increasing in the order of commits, and a reader that has seen one time has
    # seen everything before it.
    op.execute("""
        CREATE TABLE log_heads (
            name text PRIMARY KEY,
            last_at timestamptz NOT NULL
        )""")
    op.execute("INSERT INTO log_heads VALUES ('events', '-infinity'), ('catalog', '-infinity')")

    op.execute("""
        CREATE TABLE users (
            user_id text PRIMARY KEY,
            age_years double precision,
            gender text,
            segment text,
            attributes jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz,
            updated_at timestamptz NOT NULL
        )""")
    op.execute("""
        CREATE TABLE propositions (
            proposition_id text PRIMARY KEY,
            title text NOT NULL,
            category text,
            tags text[] NOT NULL DEFAULT '{}',
            value double precision,
            is_active boolean NOT NULL DEFAULT true,
            starts_at timestamptz,
            ends_at timestamptz,
            attributes jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz,
            updated_at timestamptz NOT NULL
        )""")
    op.execute("CREATE INDEX propositions_updated_at ON propositions (updated_at)")

    # A partitioned table cannot enforce a unique event_id without its partition key: this one does.
    op.execute("""
        CREATE TABLE event_keys (
            event_id text PRIMARY KEY,
            received_at timestamptz NOT NULL
        )""")
    op.execute("CREATE SEQUENCE event_seq")
    op.execute("""
        CREATE TABLE events (
            seq bigint NOT NULL DEFAULT nextval('event_seq'),
            event_id text NOT NULL,
            event_type text NOT NULL,
            user_id text,
            proposition_id text NOT NULL,
            category text,
            context jsonb NOT NULL,
            context_key text NOT NULL,
            request_id text,
            position integer,
            value double precision,
            occurred_at timestamptz NOT NULL,
            received_at timestamptz NOT NULL,
            PRIMARY KEY (received_at, seq)
        ) PARTITION BY RANGE (received_at)""")
    op.execute("CREATE INDEX events_user ON events (user_id, received_at)")
    op.execute("CREATE INDEX events_request ON events (request_id, proposition_id)")

    op.execute("""
        CREATE TABLE decisions (
            request_id text NOT NULL,
            decided_at timestamptz NOT NULL,
            user_id text,
            context jsonb NOT NULL,
            context_key text NOT NULL,
            strategy text NOT NULL,
            model_version text,
            degradation_level smallint NOT NULL,
            feature_states jsonb NOT NULL,
            candidate_count integer NOT NULL,
            slate jsonb NOT NULL,
            PRIMARY KEY (decided_at, request_id)
        ) PARTITION BY RANGE (decided_at)""")
    op.execute("CREATE INDEX decisions_user ON decisions (user_id, decided_at)")

    for table in ("events", "decisions"):
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    op.execute("""
        CREATE FUNCTION ensure_month_partition(parent text, time_column text, moment timestamptz)
        RETURNS void LANGUAGE plpgsql AS $$
        DECLARE
            month timestamp := date_trunc('month', moment AT TIME ZONE 'UTC');
            first timestamptz := month AT TIME ZONE 'UTC';
            next timestamptz := (month + interval '1 month') AT TIME ZONE 'UTC';
            part text := parent || to_char(month, '_YYYY_MM');
        BEGIN
            IF to_regclass(part) IS NULL THEN
                -- Rows of that month may lie in the default partition already: they move along.
                EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part, parent);
                EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *)'
                    ' INSERT INTO %I SELECT * FROM moved',
                    parent || '_default', time_column, first, time_column, next, part);
                EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                    parent, part, first, next);
            END IF;
        END $$""")
    op.execute("""
        CREATE FUNCTION ensure_partitions_ahead() RETURNS void LANGUAGE sql AS $$
            SELECT ensure_month_partition('events', 'received_at', now() + n * interval '1 month'),
                   ensure_month_partition('decisions', 'decided_at', now() + n * interval '1 month')
            FROM generate_series(0, 3) AS n
        $$""")
    op.execute("SELECT ensure_partitions_ahead()")

    # One row per entity and change: what was known of it from event_timestamp on.
    op.execute("""
        CREATE TABLE user_profile (
            user_id text NOT NULL,
            age_years double precision,
            gender text,
            segment text,
            event_timestamp timestamptz NOT NULL,
            created_timestamp timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, event_timestamp)
        )""")
    op.execute("""
        CREATE TABLE proposition_catalog (
            proposition_id text NOT NULL,
            category text,
            value double precision,
            created_at_s double precision,
            event_timestamp timestamptz NOT NULL,
            created_timestamp timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (proposition_id, event_timestamp)
        )""")
    for table, key in COUNTER_TABLES.items():
        op.execute(f"""
            CREATE TABLE {table} (
                {key} text NOT NULL,
                impressions double precision[] NOT NULL,
                clicks double precision[] NOT NULL,
                conversions double precision[] NOT NULL,
                dismissals double precision[] NOT NULL,
                as_of_s double precision NOT NULL,
                event_timestamp timestamptz NOT NULL,
                created_timestamp timestamptz NOT NULL DEFAULT now(),
                PRIMARY KEY ({key}, event_timestamp)
            )""")
    for table in ("user_profile", "proposition_catalog", *COUNTER_TABLES):
        op.execute(f"CREATE INDEX {table}_time ON {table} USING brin (event_timestamp)")

    # How far the projector has folded the event log. `generation` changes with every rebuild, and differs
    # between databases: what was derived from another one is recognized by it.
    op.execute("""
        CREATE TABLE projection (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            folded_until timestamptz NOT NULL DEFAULT '-infinity',
            generation uuid NOT NULL DEFAULT gen_random_uuid(),
            needs_rebuild boolean NOT NULL DEFAULT false
        )""")
    op.execute("INSERT INTO projection DEFAULT VALUES")

    op.execute("""
        CREATE TABLE models (
            version text PRIMARY KEY,
            manifest jsonb NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            promoted_at timestamptz
        )""")


def downgrade() -> None:
    for table in (
        "models",
        "projection",
        *COUNTER_TABLES,
        "proposition_catalog",
        "user_profile",
        "decisions",
        "events",
        "event_keys",
        "propositions",
        "users",
        "log_heads",
    ):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION ensure_partitions_ahead")
    op.execute("DROP FUNCTION ensure_month_partition")
    op.execute("DROP SEQUENCE event_seq")
    op.execute("DROP SCHEMA feast CASCADE")
