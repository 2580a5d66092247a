"""What is measured: an adapter for each, one file. An adapter leaves out the methods for what its system can't do."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final


@dataclass(frozen=True)
class System:
    adapter: str
    """``module:Class`` in this package."""
    database: str
    """``sqlite`` or ``postgres``."""
    environment: str = ""
    """Which of `benchmarks.environments` it runs in; empty: the one that this program runs in."""

    def load(self) -> Any:
        module, _, kind = self.adapter.partition(":")
        return getattr(import_module(f"{__name__}.{module}"), kind)


SYSTEMS: Final = {
    "Flujo on SQLite": System("flujo_backend:Flujo", "sqlite"),
    "aiosqlite": System("raw_sqlite:RawSQLite", "sqlite"),
    "Flujo on PostgreSQL": System("flujo_backend:Flujo", "postgres"),
    "asyncpg": System("raw_postgres:RawPostgres", "postgres"),
    "LangGraph on SQLite": System("langgraph_savers:OnSQLite", "sqlite", "langgraph"),
    "LangGraph on PostgreSQL": System("langgraph_savers:OnPostgres", "postgres", "langgraph"),
    "DBOS on SQLite": System("dbos_workflows:OnSQLite", "sqlite", "dbos"),
    "DBOS on PostgreSQL": System("dbos_workflows:OnPostgres", "postgres", "dbos"),
    "original Flujo on SQLite": System("original_flujo:OnSQLite", "sqlite", "original"),
    "original Flujo on PostgreSQL": System("original_flujo:OnPostgres", "postgres", "original"),
}
