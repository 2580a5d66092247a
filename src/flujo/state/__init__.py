"""How does a program get a state backend from a URI, and what does it raise?"""

from __future__ import annotations

from flujo_core import StateBackend, errors, open_backend

__all__ = ["StateBackend", "errors", "open_backend"]
