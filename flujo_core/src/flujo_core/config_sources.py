"""What do the environment and ``flujo.toml`` say, before anybody decides what counts?

Imported only when no URI is given as an argument: pydantic-settings takes longer to import than everything else here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource

from flujo_core.errors import ConfigurationError
from flujo_core.uri import mask_text


class EnvironmentVariables(BaseSettings):
    """The variables that say where the state is. An empty one is kept: to fall through would open another database."""

    model_config = SettingsConfigDict(case_sensitive=True, extra="ignore", hide_input_in_errors=True)

    state_uri: str | None = Field(default=None, validation_alias="FLUJO_STATE_URI")
    config_path: str | None = Field(default=None, validation_alias="FLUJO_CONFIG_PATH")


def read_toml(path: Path) -> dict[str, Any]:
    """The whole file. Raises `ConfigurationError` that names it."""
    try:
        return TomlConfigSettingsSource(BaseSettings, toml_file=path)()
    except (OSError, ValueError) as error:
        # Not chained: a decoding error carries the file's text, and with it the password.
        reason = error.strerror if isinstance(error, OSError) else _without_text(error)
    raise ConfigurationError(f"{path} can't be read: {reason}; correct it, or name another file in FLUJO_CONFIG_PATH")


def _without_text(error: ValueError) -> str:
    return (
        "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"it is not valid TOML: {mask_text(str(error))}"
    )
