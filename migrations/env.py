"""Alembic's entry: runs migrations one transaction each, under lock and statement timeouts."""

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from app.settings import load_settings

settings = load_settings()
engine = create_engine(
    make_url(settings.postgres_url.replace("postgres://", "postgresql://", 1)).set(
        drivername="postgresql+psycopg2"
    ),
    connect_args={
        "connect_timeout": settings.database_connect_timeout_s,
        "options": f"-c lock_timeout={settings.migration_lock_timeout_ms} "
        f"-c statement_timeout={settings.migration_timeout_ms}",
    },
)

with engine.connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
