"""Which databases can this installation use, and if one can't be used, why?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .execution import JsonOption, told_errors
from .output import Column, safe, write, write_json, write_table

if TYPE_CHECKING:
    from rich.text import Text

_COLUMNS = (
    Column("SCHEME"),
    Column("BACKEND"),
    Column("DISTRIBUTION", folds_at=24),
    Column("DURABLE"),
    Column("SHARED"),
    Column("STATUS"),
)
_KEYS = ("scheme", "backend", "distribution", "version", "durable", "shared", "status", "reason")


def backends(as_json: JsonOption = False) -> None:
    """List the installed backends, one line for each URI scheme.

    Durable: state outlives the process.
    Shared: several processes may use one database at the same time.
    A backend that can't be used is a line that says why; no driver is imported.

    Example:
      flujo backends
    """
    with told_errors():
        records = _records()
    if as_json:
        write_json(records)
        return
    write_table(_COLUMNS, [_row(record) for record in records])
    for record in records:
        if record["reason"]:
            write(f"\n{safe(str(record['scheme']))}: {safe(str(record['reason']))}\n")


def _records() -> list[dict[str, object]]:
    from flujo_core.registry import WELL_KNOWN, find_plugin, installed_backends

    records: list[dict[str, object]] = []
    for found in installed_backends():
        record = dict.fromkeys(_KEYS) | {name: getattr(found, name) for name in found.__slots__}
        if found.status == "ok":
            spec = find_plugin(found.scheme)
            record |= {"backend": spec.name, "durable": spec.durable, "shared": spec.shared}
        records.append(record)
    for scheme, command in WELL_KNOWN.items():
        if all(record["scheme"] != scheme for record in records):
            missing = {"scheme": scheme, "status": "not installed", "reason": f"not installed; run: {command}"}
            records.append(dict.fromkeys(_KEYS) | missing)
    return sorted(records, key=lambda record: str(record["scheme"]))


def _row(record: dict[str, object]) -> list[str | Text]:
    from rich.text import Text

    status = str(record["status"])
    style = {"ok": "green", "not installed": "bright_black"}.get(status, "red")
    distribution = f"{record['distribution']} {record['version']}" if record["distribution"] else "–"
    words = {True: "yes", False: "no", None: "–"}
    return [
        str(record["scheme"]),
        str(record["backend"] or "–"),
        distribution,
        *(words[record[name]] for name in ("durable", "shared")),  # type: ignore[index]
        Text(safe(status), style=style),
    ]
