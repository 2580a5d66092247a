"""Does the first thing that a newcomer runs do what it says, on each database and however it is stopped?"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flujo_conformance.postgres_server import Server, provided_server
from flujo_core import open_backend

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = EXAMPLES / "quickstart.py"
DEFAULT_URI = "sqlite:///{}/quickstart_output/state.db"
STEPS = ["read", "clean", "validate", "aggregate", "detect", "report"]


def imported() -> Any:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quickstart = imported()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with provided_server() as server:
        yield server


@pytest.fixture
def postgres_uri(server: Server) -> str:
    return server.create_database()


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    return str(request.getfixturevalue("postgres_uri"))


def command(*arguments: str, **environment: str) -> dict[str, Any]:
    """The arguments of a subprocess; a warning, such as that something was not closed, would be on its stderr."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLUJO_")}
    variables = inherited | {"PYTHONWARNINGS": "error", "PYTHONUTF8": "1"} | environment
    return {"args": [sys.executable, str(SCRIPT), *arguments], "env": variables, "encoding": "utf-8"}


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        **command(*arguments, **environment), cwd=folder, capture_output=True, check=False, timeout=60
    )


def statuses(uri: str) -> list[str]:
    async def load() -> list[str]:
        async with open_backend(uri) as backend:
            return sorted(run["status"] for run in await backend.list_runs())

    return asyncio.run(load())


def load_state(uri: str, run_id: str) -> dict[str, Any]:
    async def load() -> dict[str, Any] | None:
        async with open_backend(uri) as backend:
            return await backend.load_state(run_id)

    state = asyncio.run(load())
    assert state is not None
    return state


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the steps give when nothing is between them."""
    context = {"input": str(EXAMPLES / "data/bike_counts.csv")}
    for step in quickstart.STEPS:
        context |= step(context)[0]
    return context


def check_output(result: subprocess.CompletedProcess[str], folder: Path, expected: dict[str, Any]) -> str:
    """Checks all that a run prints and writes; returns the id of its killed run."""
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) < 60
    assert max(len(line) for line in lines if "://" not in line) <= 80
    killed = re.search(r"A worker takes up run (q\w+-killed)", result.stdout)
    first = re.search(r"Worker (\d+) is dead, by signal 9. In the database: running, 3 of 6 steps.", result.stdout)
    second = re.search(r"Worker (\d+) is done. In the database: completed, 6 of 6 steps.", result.stdout)
    assert killed is not None
    assert first is not None
    assert second is not None
    assert first[1] != second[1]
    done = re.findall(r"^   \d (\w+) +worker (\d+)  ", result.stdout, re.MULTILINE)
    assert done == [(name, first[1]) for name in STEPS[:3]] + [(name, second[1]) for name in STEPS[3:]]
    assert "bytes of context and report, identical" in result.stdout
    assert "failed, 2 of 6 steps" in result.stdout
    assert "validate: 40 of 48 rows are bad" in result.stdout
    assert (folder / "quickstart_output/report.md").read_text(encoding="utf-8") == expected["report"]
    return killed[1]


def test_it_runs_twice_in_one_folder(tmp_path: Path, expected: dict[str, Any]) -> None:
    first, second = (run(tmp_path) for _ in range(2))
    assert check_output(first, tmp_path, expected) != check_output(second, tmp_path, expected)
    for output, times in ((first.stdout, 1), (second.stdout, 2)):
        assert f"status='completed': {2 * times}\n" in output
        assert f"status='failed': {times}\n" in output
        assert f"metadata_filter={{'source': {{'kind': 'upload'}}}}: {times}\n" in output
        assert f"metadata_filter={{'tags': ['crash-test']}}: {times}\n" in output
    assert statuses(DEFAULT_URI.format(tmp_path)) == ["completed"] * 4 + ["failed"] * 2
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "quickstart_output",
        "quickstart_output/report.md",
        "quickstart_output/state.db",
    ]


def test_it_runs_on_postgresql(postgres_uri: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    result = run(tmp_path, "--uri", postgres_uri)
    check_output(result, tmp_path, expected)
    assert str(urlsplit(postgres_uri).password) not in result.stdout
    assert statuses(postgres_uri) == ["completed", "completed", "failed"]
    assert [path.name for path in (tmp_path / "quickstart_output").iterdir()] == ["report.md"]


def test_killed_after_any_step_a_run_ends_with_the_same_result(
    uri: str, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """One run for each step, killed after it; then one worker resumes them all."""

    async def submit() -> None:
        async with open_backend(uri) as backend:
            for step in STEPS:
                await quickstart.submit(backend, step, "run", {"file": "bike_counts.csv"}, [])

    async def look() -> dict[str, tuple[list[Any], Any]]:
        async with open_backend(uri) as backend:
            runs = {step: f"{step}-run" for step in STEPS}
            return {s: (await backend.list_run_steps(r), await backend.load_state(r)) for s, r in runs.items()}

    asyncio.run(submit())
    workers = [
        subprocess.Popen(**command("--worker", "--batch", step, "--crash-after", step, FLUJO_STATE_URI=uri))
        for step in STEPS
    ]
    assert [worker.wait(60) for worker in workers] == [-signal.SIGKILL] * 6
    before = asyncio.run(look())
    resumed = run(tmp_path, "--worker", "--uri", uri)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert set(resumed.stdout.splitlines()) == {f"resumed {step}-run" for step in STEPS}
    after = asyncio.run(look())

    for done, (step, killed) in enumerate(zip(STEPS, workers, strict=True), start=1):
        (old_records, old), (records, state) = before[step], after[step]
        assert (old["status"], old["current_step_index"], old["revision"]) == ("running", done, 1 + done), step
        assert [(r["step_name"], r["worker"]) for r in old_records] == [(name, killed.pid) for name in STEPS[:done]]
        assert records[:done] == old_records, step
        assert [(r["step_index"], r["step_name"]) for r in records] == list(enumerate(STEPS)), step
        assert killed.pid not in {r["worker"] for r in records[done:]}, step
        assert [entry["step"] for entry in state["step_history"]] == STEPS
        assert (state["status"], state["revision"]) == ("completed", 8), step
        assert state["pipeline_context"] == expected, step


def test_two_workers_on_one_run_do_not_mix_their_work(uri: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    async def both() -> Any:
        async with open_backend(uri) as backend:
            run_id = await quickstart.submit(backend, "b", "shared", {"file": "bike_counts.csv"}, [])
            await asyncio.gather(*(quickstart.work(uri, "b", None) for _ in range(2)))
            return await backend.load_state(run_id), await backend.list_run_steps(run_id)

    state, steps = asyncio.run(both())
    assert (state["status"], state["revision"], state["pipeline_context"]) == ("completed", 8, expected)
    assert [step["step_name"] for step in steps] == STEPS


def test_the_report_has_the_events_that_are_in_the_data(expected: dict[str, Any]) -> None:
    assert [(*event["kind"], event["hours"]) for event in expected["events"]] == [
        ("River Path", "more", "2025-05-18", 7),
        ("Harbour Bridge", "more", "2025-05-22", 14),
        ("Station Square", "less", "2025-05-24", 12),
        ("Station Square", "less", "2025-05-25", 12),
        ("Harbour Bridge", "less", "2025-05-13", 6),
        ("Station Square", "less", "2025-05-13", 6),
        ("River Path", "less", "2025-05-13", 6),
    ]
    assert len(expected["rejected"]) == 7
    assert max(map(len, expected["report"].splitlines())) <= 80


def test_the_data_is_what_its_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLES / "data/make_bike_counts.py", tmp_path], check=True)
    for name in ("bike_counts.csv", "upload.csv"):
        assert (tmp_path / name).read_bytes() == (EXAMPLES / "data" / name).read_bytes()


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("sqlit:///state.db", "did you mean sqlite://"),
        ("state.db", "has no scheme"),
        ("postgres://me:hush@127.0.0.1:1/flujo", "can't be reached"),
        ("memory://", "several"),
    ],
)
def test_a_wrong_uri_is_one_line(uri: str, hint: str, tmp_path: Path) -> None:
    result = run(tmp_path, "--uri", uri)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"quickstart: .+\n", result.stderr)
    assert hint in result.stderr
    assert "hush" not in result.stderr


def test_ctrl_c_leaves_a_run_that_a_worker_finishes(tmp_path: Path, expected: dict[str, Any]) -> None:
    process = subprocess.Popen(**command(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("1. "))
    run_id = line.split()[6]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.fullmatch(r"\nInterrupted.+--worker.+\n", errors)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [c for c in commands if run_id.partition("-")[0].encode() in c]

    uri = DEFAULT_URI.format(tmp_path)
    assert load_state(uri, run_id)["status"] == "running"
    finished = run(tmp_path, "--worker")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, f"resumed {run_id}\n", "")
    state = load_state(uri, run_id)
    assert (state["status"], state["pipeline_context"]) == ("completed", expected)


def test_help_has_an_example(tmp_path: Path) -> None:
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    assert "quickstart.py --uri postgres://" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
