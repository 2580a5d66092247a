"""Is a database of each of our older schemas upgraded, with all that is in it?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from schema_dumps import (
    CALLS,
    NOW,
    SCHEMAS,
    dump_of_file,
    dump_of_server,
    fill,
    restore_file,
    restore_on_server,
)

from flujo.state import StateBackend, open_backend
from flujo_conformance.answers import Call, disagreement
from flujo_conformance.interrupted_calls import reads_of
from flujo_conformance.model import ModelBackend
from flujo_conformance.postgres_server import PostgresServer, Server
from flujo_core.migrations import read_migrations

pytest_plugins = ["command_support"]

DUMPS = sorted(SCHEMAS.glob("*.sql"))
VIEW: list[Call] = [
    *(read for run_id in ("full", "saved", "recorded", "placeholder") for read in reads_of(run_id)),
    ("list_runs", (), {}),
    ("list_runs", (), {"metadata_filter": {"tags": [{"b": 1}]}}),
    ("get_workflow_stats", (), {}),
    ("get_span_statistics", (), {}),
    ("list_background_tasks", (), {}),
    ("get_system_state", ("key",), {}),
]


def model() -> ModelBackend:
    expected = ModelBackend(lambda: NOW)
    for method, args, kwargs in CALLS:
        getattr(expected, method)(*args, **kwargs)
    return expected


async def disagreements(backend: StateBackend) -> list[str]:
    backend.clock = lambda: NOW
    expected, found = model(), []
    for one in VIEW:
        method, args, kwargs = one
        answer: Any = await getattr(backend, method)(*args, **kwargs)
        why = disagreement(one, getattr(expected, method)(*args, **kwargs), answer)
        found += [f"{method}: {why}"] if why else []
    return found


async def upgraded(uri: str) -> list[str]:
    async with open_backend(uri) as backend:
        wrong = await disagreements(backend)
        await fill(backend)  # it can be written to as well
        assert (await backend.schema_status()).state == "current"
    return wrong


@pytest.mark.parametrize("dump", DUMPS, ids=lambda path: path.stem)
def test_a_database_of_each_schema_is_upgraded_with_all_that_is_in_it(
    dump: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text = dump.read_text(encoding="utf-8")
    if dump.name.startswith("sqlite"):
        restore_file(text, tmp_path / "old.db")
        assert asyncio.run(upgraded(f"sqlite:///{tmp_path}/old.db")) == []
    else:
        server: Server = request.getfixturevalue("server")
        uri = server.create_database()
        restore_on_server(text, uri)
        assert asyncio.run(upgraded(uri)) == []


@pytest.fixture
def dumpable() -> Iterator[Server]:
    """Of the version of pg_dump, which can't read a newer one."""
    with PostgresServer(16) as server:
        yield server


def test_the_schemas_of_today_have_a_dump(tmp_path: Path, dumpable: Server) -> None:
    """``python tests/schema_dumps.py`` makes it."""
    latest = {name: len(read_migrations(f"flujo_{name}.migrations")) for name in ("sqlite", "postgres")}
    assert {f"{name}-{version:03d}.sql" for name, version in latest.items()} <= {path.name for path in DUMPS}
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    restore_file((SCHEMAS / f"sqlite-{latest['sqlite']:03d}.sql").read_text(encoding="utf-8"), old)
    asyncio.run(upgraded(f"sqlite:///{new}"))
    assert _without_rows(dump_of_file(old)) == _without_rows(dump_of_file(new))
    old_uri, new_uri = dumpable.create_database(), dumpable.create_database()
    restore_on_server((SCHEMAS / f"postgres-{latest['postgres']:03d}.sql").read_text(encoding="utf-8"), old_uri)
    asyncio.run(open_and_close(new_uri))
    assert dump_of_server(old_uri, "--schema-only") == dump_of_server(new_uri, "--schema-only")


async def open_and_close(uri: str) -> None:
    async with open_backend(uri):
        pass


def _without_rows(dump: str) -> list[str]:
    return sorted(line for line in dump.splitlines() if not line.startswith("INSERT"))
