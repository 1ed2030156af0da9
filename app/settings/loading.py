"""All settings of a process, from its environment and `.env`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from app.domain.errors import ConfigurationError
from app.settings.events import EventSettings
from app.settings.features import FeatureSettings
from app.settings.kafka import KafkaSettings
from app.settings.observability import ObservabilitySettings
from app.settings.ranking import RankingSettings
from app.settings.stores import StoreSettings
from app.settings.web import WebSettings


class Settings(
    EventSettings,
    RankingSettings,
    ObservabilitySettings,
    WebSettings,
    FeatureSettings,
    KafkaSettings,
    StoreSettings,
    BaseSettings,
):
    """All of them, shown in the order from stores to events: pydantic collects fields from the last base to the first."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)


def load_settings() -> Settings:
    """The settings of this process; addresses that are not set come from the embedded servers.

    Raises:
        ConfigurationError: lists every bad value at once.
    """
    try:
        settings = Settings(_env_file=_env_file())
        # Absolute, because tools such as `feast` run in folders of their own.
        settings = settings.model_copy(update={"data_dir": _find_data_dir(settings)})
        return settings.model_copy(update=_embedded_addresses(settings))
    except ValidationError as error:
        raise ConfigurationError(_describe(error)) from error
    except SettingsError as error:
        raise ConfigurationError(f"a setting is wrong: {error}") from error


def _env_file() -> Path:
    """`.env` of this folder; inside the feature repo, where `feast` runs, that of the folder above."""
    is_feature_repo = Path("feature_store.yaml").exists() and not Path(".env").exists()
    return Path("../.env" if is_feature_repo else ".env")


def _find_data_dir(settings: Settings) -> Path:
    """`DATA_DIR` as given, looked for in this folder, else in the parent: `feast` runs one level down."""
    here = settings.data_dir.resolve()
    above = (Path("..") / settings.data_dir).resolve()
    return above if not here.exists() and above.exists() and not settings.data_dir.is_absolute() else here


def _embedded_addresses(settings: Settings) -> dict[str, SecretStr]:
    addresses_file = settings.embedded_dir / "addresses.json"
    if not addresses_file.exists():
        return {}
    addresses = json.loads(addresses_file.read_text())
    return {
        name: SecretStr(addresses[name])
        for name in ("database_url", "redis_url")
        if getattr(settings, name) is None and name in addresses
    }


def _describe(error: ValidationError) -> str:
    lines = ["these settings are wrong:"]
    for problem in error.errors():
        if not problem["loc"]:  # about several settings, which it names
            lines.append(f"  {problem['msg']}.")
            continue
        name = str(problem["loc"][0])
        help_text = Settings.model_fields[name].description
        shown = (
            "" if SecretStr in get_args(Settings.model_fields[name].annotation) else f"={problem['input']!r}"
        )
        lines.append(f"  {name.upper()}{shown}: {problem['msg']}. {help_text}")
    return "\n".join(lines)


def describe_settings(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """(NAME, value, help) of every setting, with passwords masked."""
    for name, field in Settings.model_fields.items():
        yield name.upper(), show_value(getattr(settings, name)), field.description or ""


def show_value(value: Any) -> str:
    """A value as it would stand in the environment; secrets as stars, nothing as an empty text."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return str(value)
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return json.dumps([entry.model_dump(exclude_none=True) for entry in value])
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" if isinstance(part, float) else part for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
