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
    """A key of `SIDES`."""
    environment: str = ""
    """Which of `benchmarks.environments` it runs in; empty: the one that this program runs in."""

    def load(self) -> Any:
        module, _, kind = self.adapter.partition(":")
        return getattr(import_module(f"{__name__}.{module}"), kind)


SYSTEMS: Final = {
    "Flujo on SQLite": System("flujo_backend:OnSQLite", "SQLite"),
    "aiosqlite": System("raw_sqlite:RawSQLite", "SQLite"),
    "Flujo on PostgreSQL": System("flujo_backend:OnPostgres", "PostgreSQL"),
    "asyncpg": System("raw_postgres:RawPostgres", "PostgreSQL"),
    "LangGraph on SQLite": System("langgraph_savers:OnSQLite", "SQLite", "langgraph"),
    "LangGraph on PostgreSQL": System("langgraph_savers:OnPostgres", "PostgreSQL", "langgraph"),
    "DBOS on SQLite": System("dbos_workflows:OnSQLite", "SQLite", "dbos"),
    "DBOS on PostgreSQL": System("dbos_workflows:OnPostgres", "PostgreSQL", "dbos"),
    "original Flujo on SQLite": System("original_flujo:OnSQLite", "SQLite", "original"),
    "original Flujo on PostgreSQL": System("original_flujo:OnPostgres", "PostgreSQL", "original"),
}


@dataclass(frozen=True)
class Side:
    """Who is held against whom on a database."""

    ours: str
    raw: str
    original: str


SIDES: Final = {
    "SQLite": Side("Flujo on SQLite", "aiosqlite", "original Flujo on SQLite"),
    "PostgreSQL": Side("Flujo on PostgreSQL", "asyncpg", "original Flujo on PostgreSQL"),
}
