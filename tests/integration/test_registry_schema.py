"""What Feast's registry says, remembered on disk."""

from dataclasses import replace

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from app.adapters.database import service_database
from app.adapters.schema_file import RegistrySchema, SchemaFile
from app.domain.errors import StoreUnavailable


@pytest.fixture
def schema_file(settings) -> SchemaFile:
    return SchemaFile(settings.snapshot_dir)


@pytest.fixture
def touch_registry(settings):
    """A function that makes the registry look changed, as `feast apply` does."""

    def touch() -> None:
        with service_database(settings).transaction() as connection:
            connection.execute(
                text("""
                    UPDATE feast.feast_metadata SET metadata_value = (metadata_value::bigint + 1)::text
                    WHERE metadata_key = 'last_updated_timestamp'""")
            )

    return touch


def test_the_schema_on_disk_answers_while_the_registry_stays_as_it_is(settings, schema_file):
    schema = RegistrySchema(settings).read()
    renamed = replace(schema, service="as_on_disk")
    schema_file.write(renamed, schema_file.saved().mark)

    assert RegistrySchema(settings).read() == renamed


def test_a_changed_registry_is_read_again(settings, schema_file, touch_registry):
    schema = RegistrySchema(settings).read()
    schema_file.write(replace(schema, service="as_on_disk"), schema_file.saved().mark)

    touch_registry()

    assert RegistrySchema(settings).read() == schema
    assert schema_file.read() == schema


def test_a_file_that_cannot_be_read_is_written_anew(settings, schema_file):
    schema = RegistrySchema(settings).read()
    (settings.snapshot_dir / "schema.json").write_text('{"views": []}')

    assert RegistrySchema(settings).read() == schema


def test_the_schema_on_disk_answers_while_the_registry_does_not(settings, schema_file):
    schema = RegistrySchema(settings).read()
    elsewhere = settings.model_copy(update={"database_url": unreachable()})

    assert RegistrySchema(elsewhere).read() == schema


def test_without_registry_and_file_there_is_no_schema(settings, tmp_path):
    nowhere = settings.model_copy(update={"database_url": unreachable(), "data_dir": tmp_path})

    with pytest.raises(StoreUnavailable):
        RegistrySchema(nowhere).read()


def unreachable() -> SecretStr:
    return SecretStr("postgresql://nobody:x@127.0.0.1:1/nothing")
