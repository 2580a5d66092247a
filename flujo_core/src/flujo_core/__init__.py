"""Flujo's state layer: one contract for the state of workflow runs, many databases behind it."""

from __future__ import annotations

from . import errors as errors
from .backend import StateBackend as StateBackend
from .opening import open_backend as open_backend
