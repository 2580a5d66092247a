"""What does ``python -m flujo_core`` run? The ``flujo`` command."""

from __future__ import annotations

from flujo_core.cli import main

if __name__ == "__main__":
    main()
