"""Every setting, once: name, type, unit, default and help. Read from the environment and `.env`."""

from app.settings.loading import Settings, load_settings

__all__ = ["Settings", "load_settings"]
