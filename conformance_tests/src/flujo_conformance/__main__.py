"""What does ``python -m flujo_conformance`` run? The ``flujo-conformance`` command."""

from __future__ import annotations

from flujo_conformance.cli import main

if __name__ == "__main__":
    main()
