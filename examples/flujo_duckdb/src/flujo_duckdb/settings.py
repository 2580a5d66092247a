"""Which settings has the DuckDB backend?"""

from __future__ import annotations

from pydantic import Field

from flujo_core.settings import BackendSettings


class DuckDBSettings(BackendSettings):
    threads: int = Field(
        default=4, ge=1, le=64, description="most calls of one event loop that DuckDB works on at once"
    )
