"""Flujo state in a PostgreSQL database."""

from __future__ import annotations

from .backend import PostgresBackend as PostgresBackend
from .settings import PostgresSettings as PostgresSettings
