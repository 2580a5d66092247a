"""How does the author of a state backend test it? `StateBackendSuite` holds it against every rule of the contract.

    class TestMine(StateBackendSuite):
        harness = UriHarness("mine://{namespace}")

Where a harness needs fixtures, override the fixture ``state_harness`` instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .harness import Exempt as Exempt
    from .harness import Harness as Harness
    from .harness import Tables as Tables
    from .harness import UriHarness as UriHarness
    from .suite import StateBackendSuite as StateBackendSuite

__all__ = ["Exempt", "Harness", "StateBackendSuite", "Tables", "UriHarness"]


def __getattr__(name: str) -> Any:
    """The exports on first use: a temporary server or the oracle needs no pytest."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "StateBackendSuite":
        _explain_assertions()
        return import_module(".suite", __name__).StateBackendSuite
    return getattr(import_module(".harness", __name__), name)


def _explain_assertions() -> None:
    """Those that fail in the suite read as in a test file, if none of its modules is imported yet."""
    import pytest

    pytest.register_assert_rewrite(f"{__name__}.suite", *(f"{__name__}.{part}" for part in _PARTS))


_PARTS = (
    "suite_support",
    "suite_life",
    "suite_values",
    "suite_arguments",
    "suite_outcomes",
    "suite_concurrency",
    "suite_interruption",
    "interrupted_calls",
    "suite_snapshots",
    "suite_runs",
    "suite_lists",
    "suite_metadata",
    "suite_traces",
    "suite_administration",
    "suite_storage",
    "suite_extremes",
)
