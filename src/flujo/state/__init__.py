"""How does a program get a state backend from a URI?"""

from __future__ import annotations

from flujo_core import open_backend

__all__ = ["open_backend"]
