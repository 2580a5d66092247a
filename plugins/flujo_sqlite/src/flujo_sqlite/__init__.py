"""Flujo state in an SQLite file."""

from __future__ import annotations

from .backend import SQLiteBackend as SQLiteBackend
from .settings import SQLiteSettings as SQLiteSettings
