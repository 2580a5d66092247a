"""The ``flujo`` command, run in this process: what it shows, and what its options mean."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from uuid import uuid4

import pytest
from throwaway_plugins import PluginFolder

from flujo_core import open_backend
from flujo_core.cli.app import app
from flujo_core.cli.output import dollars, duration, json_text, moment, safe

MORNING = datetime(2025, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
UUID = "6bd0638b-4d10-0d8f-daf0-105ba06c05a1"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Flujo = Callable[..., Done]


@pytest.fixture
def flujo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Flujo:
    """Runs the command; its first lines are not those of a terminal, so nothing is coloured."""
    monkeypatch.chdir(tmp_path)
    for name in ("FLUJO_STATE_URI", "FLUJO_CONFIG_PATH", "FLUJO_AUTO_MIGRATE", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, columns: int | None = None) -> Done:
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(arguments), prog_name="flujo")
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, out, err)

    return run


@pytest.fixture
def uri() -> str:
    """A database of this process."""
    return f"memory://{uuid4().hex}"


def save(uri: str, *runs: dict[str, Any]) -> None:
    async def saved() -> None:
        async with open_backend(uri) as backend:
            for run in runs:
                await backend.save_run_start(run)

    asyncio.run(saved())


def save_many(uri: str, number: int, **fields: Any) -> None:
    save(uri, *({"run_id": f"run_{n}", "created_at": MORNING + timedelta(hours=n), **fields} for n in range(number)))


def strictly(text: str) -> Any:
    """What JSON text says, if a strict parser takes it."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# --- help and version ------------------------------------------------------------------------------------------------


def test_version(flujo: Flujo) -> None:
    assert flujo("--version") == (0, f"flujo {version('flujo-core')}\n", "")


def test_help_tells_the_commands_the_database_and_the_exit_codes(flujo: Flujo) -> None:
    code, out, err = flujo("--help", columns=100)
    assert (code, err) == (0, "")
    assert all(re.search(rf"^│ {command} ", out, re.MULTILINE) for command in ("migrate", "backends", "runs"))
    assert "FLUJO_STATE_URI" in out
    assert "Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted" in " ".join(out.split())


@pytest.mark.parametrize("command", ["", "migrate", "backends", "runs list", "runs show"])
def test_every_command_has_an_example(flujo: Flujo, command: str) -> None:
    code, out, _ = flujo(*command.split(), "--help", columns=100)
    assert code == 0
    assert re.search(rf"Examples?:\n +flujo {command}", re.sub(" +\n", "\n", out))
    assert max(map(len, out.splitlines())) <= 100


def test_help_shows_markup_and_backslashes_as_they_are_typed(flujo: Flujo) -> None:
    out = flujo("runs", "list", "--help", columns=100).out
    assert r"""--meta 'tags=["a", "b"]'  --meta 'files.data\.csv=true'""" in out
    assert "jq -r '.[].run_id'" in out


@pytest.mark.parametrize("command", ["", "runs"])
def test_without_a_command_there_is_help(flujo: Flujo, command: str) -> None:
    _, out, err = flujo(*command.split())
    assert "Usage: flujo" in out + err


def test_without_typer_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules[sys.argv[1]] = None; from flujo_core.cli import main; main()"
    for missing in ("typer", "rich"):
        done = subprocess.run([sys.executable, "-c", code, missing], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: the flujo command needs {missing}; run: pip install 'flujo-core[cli]'\n"


# --- runs list -------------------------------------------------------------------------------------------------------


def test_a_list_is_newest_first_and_says_how_many_more_there_are(flujo: Flujo, uri: str) -> None:
    save_many(uri, 23)
    code, out, err = flujo("runs", "list", "--uri", uri)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["RUN", "PIPELINE", "STATUS", "STEP", "CREATED", "UPDATED"]
    assert [line.split()[0] for line in lines[1:]] == [f"run_{n}" for n in range(22, 2, -1)]
    assert lines[1].split()[:5] == ["run_22", "unknown", "running", "0", "2025-03-05T03:06:07Z"]
    assert err == "20 of 23 runs; --limit and --offset show others\n"


@pytest.mark.parametrize(
    ("options", "shown", "note"),
    [
        ([], 3, ""),
        (["--limit", "3"], 3, ""),
        (["--limit", "2"], 2, "2 of 3 runs; --limit and --offset show others\n"),
        (["--offset", "2"], 1, "1 of 3 runs; --limit and --offset show others\n"),
        (["--offset", "3"], 0, "0 of 3 runs; --limit and --offset show others\n"),
        (["--limit", "0"], 0, "0 of 3 runs; --limit and --offset show others\n"),
    ],
)
def test_pages(flujo: Flujo, uri: str, options: list[str], shown: int, note: str) -> None:
    save_many(uri, 3)
    code, out, err = flujo("runs", "list", "--uri", uri, *options)
    assert (code, max(0, len(out.splitlines()) - 1), err) == (0, shown, note)
    code, out, err = flujo("runs", "list", "--uri", uri, "--json", *options)
    assert (code, len(strictly(out)), err) == (0, shown, note)


def test_filters_hold_together(flujo: Flujo, uri: str) -> None:
    save(
        uri,
        {"run_id": "a", "pipeline_name": "nightly", "status": "failed", "metadata": {"user": {"id": 1}}},
        {"run_id": "b", "pipeline_name": "nightly", "status": "failed", "metadata": {"user": {"id": 2}}},
        {"run_id": "c", "pipeline_name": "nightly", "status": "running", "metadata": {"user": {"id": 1}}},
        {"run_id": "d", "pipeline_name": "hourly", "status": "failed", "metadata": {"user": {"id": 1}}},
    )
    filters = ["--status", "failed", "--pipeline", "nightly", "--meta", "user.id=1"]
    found = strictly(flujo("runs", "list", "--uri", uri, "--json", *filters).out)
    assert [run["run_id"] for run in found] == ["a"]


def test_no_runs(flujo: Flujo, uri: str) -> None:
    note = f"in {uri}, which holds only what this process saved\n"
    assert flujo("runs", "list", "--uri", uri) == (0, "", f"no runs {note}")
    assert flujo("runs", "list", "--uri", uri, "--status", "failed") == (0, "", f"no runs that match {note}")
    assert flujo("runs", "list", "--uri", uri, "--json") == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--limit", "many"], "--limit"),
        (["--meta", "novalue"], "'novalue' is not KEY=VALUE"),
        (["--meta", "=1"], "has an empty name in its key"),
        (["--meta", "a=1", "--meta", "a=2"], "'a' can't be both 1 and 2"),
        (["--nonsense"], "--nonsense"),
        (["surplus"], "surplus"),
    ],
)
def test_wrong_usage_is_exit_code_2(flujo: Flujo, uri: str, options: list[str], complaint: str) -> None:
    code, out, err = flujo("runs", "list", "--uri", uri, *options, columns=120)
    assert (code, out) == (2, "")
    assert complaint in " ".join(re.sub("[│╭╮╰╯─]", "", err).split())


def test_an_error_of_the_contract_is_one_line_and_exit_code_1(flujo: Flujo, uri: str) -> None:
    code, out, err = flujo("runs", "list", "--uri", uri, "--pipeline", "")
    assert (code, out) == (1, "")
    assert err == "error: pipeline_name is '', not a non-empty str\n"


def test_a_bug_is_not_hidden(flujo: Flujo, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr("flujo_core.opening.open_backend", broken)
    with pytest.raises(ZeroDivisionError):
        flujo("runs", "list", "--uri", uri)


# --- tables in terminals ---------------------------------------------------------------------------------------------


@pytest.fixture
def full_uri(uri: str) -> str:
    """Two runs, one with every column of the list."""
    full = {"total_steps": 12, "current_step_index": 3, "execution_time_ms": 83_000.0, "total_cost": 0.5}
    save(
        uri,
        {"run_id": UUID, "pipeline_name": "Data Processing Pipeline", "status": "completed", **full},
        {"run_id": "短い", "pipeline_name": "顧客データ処理パイプライン", "status": "failed"},
    )
    return uri


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 160])
def test_a_table_fits_the_terminal(flujo: Flujo, full_uri: str, columns: int) -> None:
    from rich.cells import cell_len

    code, out, _ = flujo("runs", "list", "--uri", full_uri, columns=columns)
    assert code == 0
    assert max(map(cell_len, out.splitlines())) <= columns
    for title in ("RUN", "PIPELINE", "STATUS", "CREATED"):
        assert title in out


def test_a_run_id_stays_whole_at_80_columns(flujo: Flujo, full_uri: str) -> None:
    assert UUID in flujo("runs", "list", "--uri", full_uri, columns=80).out
    assert UUID not in flujo("runs", "list", "--uri", full_uri, columns=60).out


@pytest.mark.parametrize("columns", [10, 30, 45, 80, None])
def test_a_table_never_cuts_anything_off(flujo: Flujo, full_uri: str, columns: int | None) -> None:
    lines = flujo("runs", "list", "--uri", full_uri, columns=columns).out.splitlines()
    place = lines[0].index("PIPELINE")
    # Where the wide characters are, cells are not where characters are.
    cells = [line for line in lines[1:] if line.isascii()]
    assert "".join(line[:place].strip() for line in cells) == UUID
    assert (
        "".join(re.sub("completed.*", "", line[place:]).replace(" ", "") for line in cells) == "DataProcessingPipeline"
    )


def test_columns_come_with_the_room_for_them(flujo: Flujo, full_uri: str) -> None:
    titles = {
        columns: flujo("runs", "list", "--uri", full_uri, columns=columns).out.splitlines()[0].split()
        for columns in (80, 100, 120, 160)
    }
    assert titles[80] == ["RUN", "PIPELINE", "STATUS", "CREATED"]
    assert set(titles[80]) < set(titles[120]) < set(titles[160])
    assert titles[160] == ["RUN", "PIPELINE", "STATUS", "STEP", "CREATED", "UPDATED", "DURATION", "COST"]


def test_nothing_is_folded_where_there_is_no_terminal(flujo: Flujo, uri: str) -> None:
    save(uri, {"run_id": "r" * 255, "pipeline_name": "n" * 255})
    _, line = flujo("runs", "list", "--uri", uri).out.splitlines()
    assert line.split()[:2] == ["r" * 255, "n" * 255]


EVIL = "\x1b]0;owned\x07 \x9b31m \u202egnp \r\n[bold]x[/bold] :boom: [/] \u2028"


def test_texts_can_neither_steer_the_terminal_nor_the_layout(flujo: Flujo, uri: str) -> None:
    save(uri, {"run_id": EVIL, "pipeline_name": EVIL, "error_message": EVIL, EVIL: EVIL, "metadata": {EVIL: EVIL}})

    async def more() -> None:
        async with open_backend(uri) as backend:
            await backend.save_step_result(
                {"run_id": EVIL, "step_name": EVIL, "step_index": 1, "status": EVIL, "error": EVIL}
            )
            await backend.save_spans(EVIL, [{"span_id": EVIL, "status": EVIL}])

    asyncio.run(more())
    listed, shown = flujo("runs", "list", "--uri", uri), flujo("runs", "show", EVIL, "--uri", uri)
    missing = flujo("runs", "show", f"{EVIL}{EVIL}", "--uri", uri)
    for code, out, err in (listed, shown, missing):
        assert all(line.isprintable() for line in (out + err).split("\n"))
        assert r"\x1b]0;owned\x07 \x9b31m \u202egnp \r\n[bold]x[/bold] :boom: [/] \u2028" in out + err
        assert code == (1 if err else 0)
    assert len(listed.out.splitlines()) == 2
    assert len(missing.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("naïve 顧客 👩\u200d🚀", "naïve 顧客 👩\u200d🚀"),
        ("tab\tline\n", r"tab\tline\n"),
        ("\x00\x1b\x7f\x85", r"\x00\x1b\x7f\x85"),
        ("\ud800\u200e\u2066", r"\ud800\u200e\u2066"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_safe_texts(text: str, shown: str) -> None:
    assert safe(text) == shown


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (None, ""),
        (0, "0 ms"),
        (0.00125, "0.00125 ms"),
        (999.4, "999 ms"),
        (999.5, "1.0 s"),
        (59_949, "59.9 s"),
        (59_950, "1 min 00 s"),
        (3_599_400, "59 min 59 s"),
        (3_599_500, "1 h 00 min"),
        (86_400_000, "24 h 00 min"),
        (-90_000, "-1 min 30 s"),
        (1e300, "1e+297 s"),
    ],
)
def test_durations(milliseconds: float | None, shown: str) -> None:
    assert duration(milliseconds) == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(None, ""), (0, "$0.0000"), (0.0123, "$0.0123"), (0.00001, "$1e-05"), (1234.5, "$1,234.5000"), (1e300, "$1e+300")],
)
def test_costs(amount: float | None, shown: str) -> None:
    assert dollars(amount) == shown


def test_moments_are_utc_to_the_second() -> None:
    assert moment(MORNING.astimezone()) == "2025-03-04T05:06:07Z"
    assert moment(None) == ""


# --- runs show -------------------------------------------------------------------------------------------------------


@pytest.fixture
def story(uri: str) -> str:
    """A database with one run that has everything."""

    async def happened() -> None:
        async with open_backend(uri) as backend:
            start = {"run_id": "r", "pipeline_id": "p-1", "pipeline_name": "nightly", "pipeline_version": "1.2"}
            await backend.save_run_start({**start, "created_at": MORNING, "initial_input": {"rows": float("nan")}})
            step = {"run_id": "r", "step_index": 0, "step_name": "extract", "cost": 0.25, "tokens": 1200}
            await backend.save_step_result({**step, "duration_ms": 40, "output": [float("inf"), "\ud800\x00"]})
            await backend.save_step_result({**step, "step_index": 1, "step_name": "load", "error": {"kind": "Timeout"}})
            state = {**start, "current_step_index": 1, "total_steps": 3, "pipeline_context": {"query": 1, "rows": 2}}
            await backend.save_state("r", {**state, "step_history": [{}], "status": "paused"})
            await backend.save_spans("r", [{"span_id": "s", "status": "completed"}, {"span_id": "t"}])
            await backend.persist_evaluation("r", 0.5, "good")
            await backend.persist_evaluation("r", 0.75)
            await backend.save_run_end("r", {"final_context": {"text": "y" * 1000}, "end_time": MORNING})

    asyncio.run(happened())
    return uri


def test_a_run_is_shown_with_all_that_it_has(flujo: Flujo, story: str) -> None:
    code, out, err = flujo("runs", "show", "r", "--uri", story)
    assert (code, err) == (0, "")
    head, table = out.split("\n\n")
    fields = dict(re.split(" {2,}", line, maxsplit=1) for line in head.splitlines())
    assert fields["run"] == "r"
    assert (fields["pipeline"], fields["pipeline id"], fields["version"]) == ("nightly", "p-1", "1.2")
    assert (fields["status"], fields["step"], fields["cost"]) == ("paused", "1/3", "$0.5000")
    assert fields["created"] == fields["ended"] == "2025-03-04T05:06:07Z"
    assert fields["initial_input"] == '{"rows": "NaN"}'
    assert fields["final_context"].endswith("yyy… (1,012 characters; --json shows all)")
    assert re.fullmatch(r"revision 1, paused at step 1/3, saved \S+Z, 1 entry of history", fields["snapshot"])
    assert fields["context keys"] == "query, rows"
    assert fields["trace"] == "2 spans: 1 completed, 1 running"
    assert fields["evaluations"] == "2, the latest with score 0.75"
    assert fields["steps"] == "2 recorded"
    assert not {"error", "memory", "background", "parent run", "metadata"} & fields.keys()
    titles, extract, load = table.splitlines()
    assert titles.split() == ["#", "STEP", "STATUS", "DURATION", "COST", "TOKENS", "CREATED", "ERROR"]
    assert extract.split()[:7] == ["0", "extract", "completed", "40", "ms", "$0.2500", "1,200"]
    assert load.endswith('{"kind": "Timeout"}')


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_shown_run_fits_the_terminal(flujo: Flujo, story: str, columns: int) -> None:
    out = flujo("runs", "show", "r", "--uri", story, columns=columns).out
    assert max(map(len, out.splitlines())) <= columns


def test_json_of_a_run_is_all_of_it(flujo: Flujo, story: str) -> None:
    code, out, err = flujo("runs", "show", "r", "--uri", story, "--json")
    assert (code, err) == (0, "")
    assert out.isascii()
    shown = strictly(out)
    assert list(shown) == ["run", "steps", "state", "trace", "spans", "evaluations"]
    assert shown["run"]["created_at"] == "2025-03-04T05:06:07.890123+00:00"
    assert shown["run"]["final_context"] == {"text": "y" * 1000}
    assert shown["run"]["initial_input"] == {"rows": "NaN"}
    assert [step["output"] for step in shown["steps"]] == [["Infinity", "\ud800\x00"], None]
    assert (shown["state"]["revision"], shown["state"]["pipeline_context"]) == (1, {"query": 1, "rows": 2})
    assert [child["span_id"] for child in shown["trace"]["children"]] == ["s", "t"]
    assert [span["span_id"] for span in shown["spans"]] == ["s", "t"]
    assert [evaluation["score"] for evaluation in shown["evaluations"]] == [0.75, 0.5]


def test_a_run_with_nothing_but_a_row(flujo: Flujo, uri: str) -> None:
    save(uri, {"run_id": "r"})
    out = flujo("runs", "show", "r", "--uri", uri).out
    assert re.search(r"snapshot +none\ntrace +none\nevaluations +none\nsteps +none recorded\n$", out)
    shown = strictly(flujo("runs", "show", "r", "--uri", uri, "--json").out)
    assert (shown["steps"], shown["state"], shown["trace"], shown["spans"], shown["evaluations"]) == (
        [],
        None,
        None,
        [],
        [],
    )


def test_spans_that_make_no_tree_are_no_reason_to_show_nothing(flujo: Flujo, uri: str) -> None:
    async def cycle() -> None:
        async with open_backend(uri) as backend:
            await backend.save_spans("r", [{"span_id": a, "parent_span_id": b} for a, b in ("xy", "yx")])

    asyncio.run(cycle())
    code, out, err = flujo("runs", "show", "r", "--uri", uri)
    assert (code, err) == (0, "note: the run has no trace: the spans' parents form a cycle, so they make no tree\n")
    assert "2 spans: 2 running" in out


def test_an_unknown_run_is_an_error(flujo: Flujo, uri: str) -> None:
    for options in ([], ["--json"]):
        code, out, err = flujo("runs", "show", "it's", "--uri", uri, *options)
        assert (code, out) == (1, "")
        assert err.startswith(f'error: run "it\'s" is not recorded in {uri}')


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (MORNING, '"2025-03-04T05:06:07.890123+00:00"'),
        ([float("nan"), float("inf"), float("-inf")], '["NaN", "Infinity", "-Infinity"]'),
        ([-0.0, 1.0, 1, True, None, 1e300], "[-0.0, 1.0, 1, true, null, 1e+300]"),
        ({"ü\x00": "\ud800\x1b\x9b"}, r'{"\u00fc\u0000": "\ud800\u001b\u009b"}'),
        ((1, [2]), "[1, [2]]"),
    ],
)
def test_json_is_strict_and_ascii(value: Any, text: str) -> None:
    assert json_text(value) == text
    strictly(text)


# --- --meta ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ['["a"]', '["b"]', '[["a"]]', "[]"])
@pytest.mark.parametrize("second", ['["a"]', '[{"k": 1}]', '["b", "a"]'])
def test_merged_filters_find_what_both_find(flujo: Flujo, uri: str, first: str, second: str) -> None:
    values: list[Any] = [["a"], ["b"], ["a", "b"], [["a"]], ["a", ["a"]], [{"k": 1}, "b"], [{"k": 1}, ["a"]], "a", []]
    save(uri, *({"run_id": f"{n}", "metadata": {"x": value}} for n, value in enumerate(values)))

    def found(*filters: str) -> set[str]:
        options = [part for text in filters for part in ("--meta", f"x={text}")]
        return {run["run_id"] for run in strictly(flujo("runs", "list", "--uri", uri, "--json", *options).out)}

    assert found(first, second) == found(first) & found(second)


# --- migrate and backends --------------------------------------------------------------------------------------------


def test_memory_has_nothing_to_migrate(flujo: Flujo, uri: str) -> None:
    assert flujo("migrate", "--uri", uri) == (0, "memory:// is up to date (schema version 0)\n", "")


def test_backends_are_listed(flujo: Flujo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = PluginFolder(tmp_path, monkeypatch)
    plugins.plugin("flujo-redis", "redis", version="2.1", durable=False)
    plugins.plugin("flujo-mongo", "mongo", drivers=("no_such_driver",), install="pip install flujo-mongo")
    plugins.plugin("flujo-old", "old", api_version=0)
    plugins.distribution("flujo-bad", {"bad": plugins.module("raise RuntimeError('[red]b\\x1bad')")})
    code, out, err = flujo("backends")
    assert (code, err) == (0, "")
    table, *reasons = out.split("\n\n")
    rows = {row[0]: row[1:] for row in (re.split(" {2,}", line) for line in table.splitlines())}
    assert rows == {
        "SCHEME": ["BACKEND", "DISTRIBUTION", "DURABLE", "SHARED", "STATUS"],
        "bad": ["–", "flujo-bad 1.0", "–", "–", "broken"],
        "memory": ["–", "–", "–", "–", "not installed"],
        "mongo": ["–", "flujo-mongo 1.0", "–", "–", "driver missing"],
        "old": ["–", "flujo-old 1.0", "–", "–", "incompatible"],
        "postgres": ["–", "–", "–", "–", "not installed"],
        "postgresql": ["–", "–", "–", "–", "not installed"],
        "redis": ["redis", "flujo-redis 2.1", "no", "yes", "ok"],
        "sqlite": ["–", "–", "–", "–", "not installed"],
    }
    assert "postgres: not installed; run: pip install 'flujo[postgres]'" in reasons
    [bad] = [reason for reason in reasons if reason.startswith("bad: ")]
    assert r"RuntimeError: [red]b\x1bad" in bad
    records = strictly(flujo("backends", "--json").out)
    assert [record["scheme"] for record in records] == sorted(rows.keys() - {"SCHEME"})
    assert next(record for record in records if record["scheme"] == "redis") == {
        "scheme": "redis",
        "backend": "redis",
        "distribution": "flujo-redis",
        "version": "2.1",
        "durable": False,
        "shared": True,
        "status": "ok",
        "reason": "",
    }
