import pytest

from app.domain.errors import ConfigurationError
from app.settings import load_settings
from app.settings.loading import describe_settings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "REDIS_URL", "DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_all_bad_values_are_reported_at_once_with_name_value_and_help(monkeypatch):
    monkeypatch.setenv("PORT", "high")
    monkeypatch.setenv("HALF_LIVES_S", "10,5")
    monkeypatch.setenv("TIMEZONE", "Mars/Olympus")
    monkeypatch.setenv("DATABASE_URL", "mysql://me:secret@host/db")

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    message = str(caught.value)
    assert all(name in message for name in ("PORT='high'", "HALF_LIVES_S=", "TIMEZONE=", "DATABASE_URL"))
    assert "ascending order" in message and "Port that the service listens on" in message
    assert "secret" not in message


def test_a_broken_json_setting_is_reported_by_name(monkeypatch):
    monkeypatch.setenv("DEFAULT_SLATE", "[oops")

    with pytest.raises(ConfigurationError, match="default_slate"):
        load_settings()


def test_inside_the_feature_repo_the_env_file_above_holds(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("PORT=4711\n")
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "feature_repo" / "feature_store.yaml").touch()
    monkeypatch.chdir(tmp_path / "feature_repo")

    assert load_settings().port == 4711


def test_passwords_are_masked(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@host/db")

    shown = {name: value for name, value, _ in describe_settings(load_settings())}

    assert shown["DATABASE_URL"] == "**********"
    assert "secret" not in str(shown) + repr(load_settings())


def test_lists_are_written_with_commas(monkeypatch):
    monkeypatch.setenv("HALF_LIVES_S", "60, 3600")
    monkeypatch.setenv("CONTEXT_FIELDS", "page,weekday")

    settings = load_settings()

    assert settings.half_lives_s == (60.0, 3600.0)
    assert settings.context_fields == ("page", "weekday")


def test_a_shown_value_can_be_given_back(monkeypatch):
    before = load_settings()
    for name, value, _ in describe_settings(before):
        if value:
            monkeypatch.setenv(name, value)

    assert load_settings() == before


def test_a_missing_address_says_what_to_do():
    with pytest.raises(ConfigurationError, match="propositions up"):
        _ = load_settings().postgres_url


def test_unset_addresses_come_from_the_embedded_servers(tmp_path, monkeypatch):
    folder = tmp_path / ".propositions" / "embedded"
    folder.mkdir(parents=True)
    (folder / "addresses.json").write_text(
        '{"database_url": "postgresql://embedded/db", "redis_url": "redis://embedded"}'
    )
    monkeypatch.setenv("REDIS_URL", "redis://given")

    settings = load_settings()

    assert settings.postgres_url == "postgresql://embedded/db"
    assert settings.redis_address == "redis://given"


def test_tools_that_run_one_folder_down_find_the_same_data(tmp_path, monkeypatch):
    (tmp_path / ".propositions").mkdir()
    (tmp_path / "feature_repo").mkdir()
    monkeypatch.chdir(tmp_path / "feature_repo")

    assert load_settings().data_dir == tmp_path / ".propositions"
