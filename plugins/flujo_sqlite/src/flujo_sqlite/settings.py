"""Which settings has the SQLite backend?"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flujo_core.settings import BackendSettings


class SQLiteSettings(BackendSettings):
    synchronous: Literal["full", "normal"] = Field(
        default="full",
        description="full: what returned survives a power cut; normal: it survives a crash of the process only",
    )
    readers: int = Field(default=4, ge=1, le=64, description="most connections that read at the same time")
