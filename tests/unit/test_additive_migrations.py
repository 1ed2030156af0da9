"""While a release is rolled out, the one before runs on the new tables: a migration takes nothing away from it.

What a release no longer needs is dropped in the one after. Where that cannot be, the migration says what an operator has
to do in `stops_previous_release`.
"""

import inspect
import pkgutil
import re
from importlib import import_module
from types import ModuleType

import pytest

import migrations.versions

# Everything up to here is in the first release: there is none before it to run beside.
FIRST_RELEASE = "0008"

_TAKES_AWAY = re.compile(
    r"\bDROP\s+(?:TABLE|COLUMN|VIEW|FUNCTION|SCHEMA|TYPE)\b|\bRENAME\b|\bTRUNCATE\b|\bALTER\s+COLUMN\b|\bSET\s+NOT\s+NULL\b"
    r"|\bop\.(?:drop_\w+|alter_column|rename_table)\b"
    # A writer that does not know the column leaves it out.
    r"|\bADD\s+COLUMN\b(?:(?!DEFAULT|\bADD\b)[^;\"])*\bNOT\s+NULL\b(?!\s*DEFAULT)(?:(?!DEFAULT|\bADD\b)[^;\",])*(?=[,;\"])",
    re.IGNORECASE,
)


def migration_modules() -> dict[str, ModuleType]:
    names = [module.name for module in pkgutil.iter_modules(migrations.versions.__path__)]
    modules = [import_module(f"migrations.versions.{name}") for name in names]
    return {module.revision: module for module in modules}


def taken_away(source: str) -> list[str]:
    return [match.group() for match in _TAKES_AWAY.finditer(source)]


def upgrade_source(module: ModuleType) -> str:
    return inspect.getsource(module).replace(inspect.getsource(module.downgrade), "")


@pytest.mark.parametrize(
    "revision", sorted(r for r in migration_modules() if r > FIRST_RELEASE) or ["none yet"]
)
def test_a_migration_takes_nothing_away_from_the_release_before(revision):
    module = migration_modules().get(revision)

    if module is not None and not getattr(module, "stops_previous_release", ""):
        assert taken_away(upgrade_source(module)) == []


@pytest.mark.parametrize(
    ("statement", "is_additive"),
    [
        ("CREATE TABLE trials (name text NOT NULL)", True),
        ('op.execute("ALTER TABLE events ADD COLUMN place text")', True),
        ("op.execute(\"ALTER TABLE events ADD COLUMN place text NOT NULL DEFAULT ''\")", True),
        ('op.execute("ALTER TABLE events ADD COLUMN place text NOT NULL")', False),
        ('op.execute("ALTER TABLE events DROP COLUMN place")', False),
        ('op.execute("ALTER TABLE events RENAME COLUMN place TO spot")', False),
        ('op.drop_table("events")', False),
        ('op.execute("ALTER TABLE events ALTER COLUMN place SET NOT NULL")', False),
    ],
)
def test_what_takes_something_away_is_told_from_what_adds(statement, is_additive):
    assert (taken_away(statement) == []) == is_additive


def test_the_migrations_that_took_something_away_before_the_first_release_are_found():
    assert {r for r, module in migration_modules().items() if taken_away(upgrade_source(module))} >= {
        "0004",
        "0006",
    }
