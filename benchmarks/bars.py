"""Which ratios are to hold?"""

from __future__ import annotations


def verdicts(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    lines = []
    for ours, raw in (("Flujo on SQLite", "aiosqlite"), ("Flujo on PostgreSQL", "asyncpg")):
        for task, found in results.items():
            if ours in found and raw in found:
                ratio = found[raw][""] / found[ours][""]
                lines.append(f"{task:30} {ours:22} {ratio:.2f} × {raw}")
    return lines
