"""Is the verdict of ``flujo-conformance run`` honest, and are its other commands as documented?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flujo_conformance import supervision
from flujo_conformance.cli.app import app
from flujo_conformance.profile import PROFILE_VARIABLE, PROFILES, SEED_VARIABLE, examples
from flujo_conformance.report import OUTCOMES, Report, TestOutcome, matrix, merged, read_report
from flujo_conformance.rules import ELSEWHERE
from flujo_conformance.supervision import Request, run_suite
from flujo_core.contract import CONTRACT_VERSION, KEPT_BY, RULES

TESTS = Path(__file__).parent
S5 = "test_s5_a_run_id_within_the_state_is_that_of_the_call"
SPARE = "test_s7_deletions_spare_runs_of_similar_ids"


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flujo_conformance", *arguments],
        cwd=TESTS,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_on(harness: str, *rules: str, jobs: int = 1) -> tuple[int, dict[str, Any]]:
    """Exit code and report of a run on a harness of this folder."""
    chosen = [word for rule in rules for word in ("--rule", rule)]
    done = command("run", "--harness", f"harnesses_under_test:{harness}", "--json", "--jobs", str(jobs), *chosen)
    assert not done.stderr, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def outcome_of(report: dict[str, Any], name: str) -> tuple[str, str]:
    return next((test["outcome"], test["why"]) for test in report["tests"] if test["name"] == name)


def test_a_broken_rule_is_a_failure_with_its_reason() -> None:
    code, report = run_on("AnyRunId", "S5")
    assert (code, report["verdict"], report["counts"]["FAIL"]) == (1, "FAIL", 1)
    outcome, why = outcome_of(report, S5)
    assert outcome == "FAIL"
    assert "run_id" in why
    assert all(test["outcome"] == "NOT RUN" for test in report["tests"] if test["rules"] not in ([], ["S5"]))


def test_what_is_left_out_lowers_the_verdict() -> None:
    code, report = run_on("Unbroken", "s5")
    assert (code, report["verdict"], report["counts"]["PASS"]) == (3, "PARTIAL", 2)
    assert outcome_of(report, SPARE) == ("NOT RUN", "left out")


def test_a_report_says_what_was_tested_and_how() -> None:
    _, report = run_on("made_by_a_function", "S5")
    assert (report["format"], report["contract"], report["profile"]) == (1, CONTRACT_VERSION, "quick")
    assert (report["seed"], report["rounds"], report["error"]) == (None, 1, "")
    assert report["kit"]
    assert report["subject"]["harness"] == "harnesses_under_test:Unbroken"
    assert (report["subject"]["durable"], report["subject"]["shared"]) == (False, False)
    assert {rule for test in report["tests"] for rule in test["rules"]} == set(RULES) - set(ELSEWHERE)


def test_declared_limits_are_seen_to_hold_and_are_named() -> None:
    done = command("run", "--uri", "memory://", "--rule", "G2", "--seed", "1")
    assert done.returncode == 3
    assert "UNSUPPORTED 1" in done.stdout
    assert "declared limit: a forked process has data of its own" in done.stdout
    assert "seed 1," in done.stdout


def test_an_exempted_test_that_fails_is_exempt_and_lowers_the_verdict() -> None:
    _, report = run_on("KnownFailure", "S7")
    outcome, why = outcome_of(report, SPARE)
    assert outcome == "EXEMPT"
    assert why == "the ids are a prefix tree (https://example.org/issues/7)"


def test_an_exempted_test_that_passes_is_a_failure() -> None:
    code, report = run_on("KnownFailureThatPasses", "S7")
    assert (code, report["verdict"], report["counts"]["FAIL"]) == (1, "FAIL", 1)
    assert outcome_of(report, SPARE)[0] == "FAIL"


def test_no_rule_that_core_keeps_can_be_exempted() -> None:
    code, report = run_on("ExemptFromCore", "S5")
    assert code == 1
    guard = "test_exemptions_name_tests_of_rules_that_core_does_not_keep"
    outcome, why = outcome_of(report, guard)
    assert (outcome, f"{S5} can't be exempted" in why) == ("FAIL", True)
    assert outcome_of(report, S5)[0] == "FAIL"


def test_what_the_harness_does_wrong_is_an_error() -> None:
    code, report = run_on("Skipping", "S5")
    assert (code, report["verdict"]) == (2, "ERROR")
    assert outcome_of(report, S5) == (
        "ERROR", "flujo_conformance.guarded_harness.HarnessError: the harness's wipe raised Skipped: not today",
    )  # fmt: skip
    for harness, says in (("NotMade", "RuntimeError: it lacks a password"), ("EndingAtOnce", "raised SystemExit: 0")):
        code, report = run_on(harness)
        assert (code, report["verdict"], report["tests"]) == (2, "ERROR", [])
        assert says in report["error"]


def test_a_backend_that_ends_the_process_is_an_error() -> None:
    code, report = run_on("Ending", "S4", "S5")
    assert (code, report["verdict"]) == (2, "ERROR")
    assert outcome_of(report, S5) == ("ERROR", "the process ended by itself, with exit code 0")
    assert {test["outcome"] for test in report["tests"] if test["rules"] == ["S4"]} == {"PASS"}


def test_of_several_processes_the_others_go_on_when_one_ends() -> None:
    code, report = run_on("Ending", "S4", "S5", "S7", jobs=2)
    assert (code, report["verdict"], report["error"]) == (2, "ERROR", "")
    expected = {test["name"]: ("PASS", "") for test in report["tests"] if test["why"] != "left out"}
    expected[S5] = ("ERROR", "the process ended by itself, with exit code 0")
    assert {name: outcome_of(report, name) for name in expected} == expected


@pytest.mark.parametrize("rules", [("S5",), ("S4", "S5", "S7", "S8", "G2")], ids=["fewer tests than processes", "more"])
def test_several_processes_find_what_one_does(rules: tuple[str, ...]) -> None:
    _, alone = run_on("Unbroken", *rules)
    _, together = run_on("Unbroken", *rules, jobs=3)
    both = [[(test["name"], test["outcome"], test["why"]) for test in one["tests"]] for one in (alone, together)]
    assert both[0] == both[1]
    assert together["verdict"] == alone["verdict"] == "PARTIAL"
    assert together["subject"] == alone["subject"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_test_is_run_by_one_process(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.chdir(TESTS)
    began: list[str] = []
    request = Request(harness="harnesses_under_test:Unbroken", rules=frozenset({"S4", "S5"}), jobs=jobs)
    report = run_suite(request, lambda done, all_, name: began.append(name))
    assert sorted(began) == sorted(test.name for test in report.tests if test.outcome != "NOT RUN")
    assert len(began) > jobs


def test_processes_that_say_nothing_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here after seconds; the processes themselves would wait for a minute before they fail the test."""
    monkeypatch.setattr(supervision, "_GRACE", 10)
    monkeypatch.setattr(supervision, "TEST_SECONDS", dict.fromkeys(PROFILES, 0))
    monkeypatch.chdir(TESTS)
    told = []
    report = run_suite(Request(harness="harnesses_under_test:Waiting", jobs=2), lambda *what: told.append(what))
    stuck = [test for test in report.tests if test.why == "no end after 10 s"]
    assert [test.outcome for test in stuck] == ["ERROR", "ERROR"]
    assert {all_ for _, all_, _ in told} == {len(report.tests)}
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert max(done for done, _, _ in told) <= len(told) == sum(test.why != "not reached" for test in report.tests)


def test_without_a_raw_reader_some_tests_are_not_run() -> None:
    _, report = run_on("WithoutRawReader", "S8")
    found = outcome_of(report, "test_s8_of_a_long_history_only_what_changed_is_written")
    assert found == ("NOT RUN", "the harness has no raw reader: override Harness.raw")


def test_an_unreachable_database_is_an_error_and_no_test_is_skipped() -> None:
    for jobs in (1, 2):
        code, report = run_on("Unreachable", jobs=jobs)
        assert (code, report["verdict"], report["tests"]) == (2, "ERROR", [])
        assert report["error"] == "StorageUnavailableError: nobody listens on port 1; start the server"
    code, report = run_on("Dying", "S5", "S7")
    assert (code, report["verdict"]) == (2, "ERROR")
    assert report["counts"]["FAIL"] == report["counts"]["UNSUPPORTED"] == 0
    assert report["counts"]["ERROR"] > 5


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_a_report_that_says_what_was_not_run(tmp_path: Path, jobs: int) -> None:
    report = tmp_path / "report.json"
    line = [sys.executable, "-m", "flujo_conformance", "run", "--harness", "harnesses_under_test:Waiting"]
    line += ["--jobs", str(jobs), "--report", str(report)]
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    environment = {**os.environ, "WAITING": str(waiting)}
    with subprocess.Popen(line, cwd=TESTS, env=environment, stdout=subprocess.PIPE, text=True) as running:
        give_up = time.monotonic() + 60
        while len(list(waiting.iterdir())) < jobs and time.monotonic() < give_up:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=20)
    assert running.returncode == 130, said
    found = read_report(report.read_text(encoding="utf-8"))
    assert found.verdict == "PARTIAL"
    assert found.interrupted
    assert {test.why for test in found.tests if test.outcome == "NOT RUN"} == {"interrupted"}


def test_soak_takes_the_next_seed_in_each_round() -> None:
    done = command("run", "--uri", "memory://", "--rule", "S5", "--profile", "soak", "--minutes", "0.002", "--json")
    report = json.loads(done.stdout)
    assert (report["profile"], report["rounds"] >= 1) == ("soak", True)
    assert isinstance(report["seed"], int)


def test_a_report_is_written_whole_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = command("run", "--uri", "memory://", "--rule", "S5", "--report", str(path))
    assert done.returncode == 3
    assert "PARTIAL: 2 PASS" in done.stdout
    found = read_report(path.read_text(encoding="utf-8"))
    assert (found.subject.name, found.subject.database) == ("memory", "memory")
    assert found.subject.distribution.startswith("flujo-core ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]
    printed = command("matrix", str(path), str(path)).stdout
    assert "| S5 | " + RULES["S5"] + " | PASS 1 | PASS 1 |" in printed
    assert "| **Verdict** | **PARTIAL** | **PARTIAL** |" in printed


def test_sqlite_files_of_a_run_are_removed(tmp_path: Path) -> None:
    done = command("run", "--uri", f"sqlite:///{tmp_path}/{{namespace}}.db", "--rule", "S5")
    assert done.returncode == 3
    assert "on SQLite 3." in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give --uri, --harness or both"),
        (("--uri", "sqlite:///x.db"), "has no {namespace}"),
        (("--uri", "nonsense"), "nonsense"),
        (("--uri", "redis://x/{namespace}"), "no backend answers redis://"),
        (("--harness", "nowhere:Class"), "can't be imported"),
        (("--harness", "nowhere:Class", "--jobs", "3"), "can't be imported"),
        (("--harness", "harnesses_under_test:Missing"), "has no Missing"),
        (("--harness", "harnesses_under_test"), "write module:Class"),
        (("--harness", "harnesses_under_test:NO_HARNESS"), "is no harness"),
        (("--uri", "memory://", "--profile", "fast"), "it is one of quick, ci, soak"),
        (("--uri", "memory://", "--rule", "Z9"), "there is no rule Z9"),
        (("--uri", "memory://", "--report", "/no/such/folder/x.json"), "can't be written"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (PROFILE_VARIABLE, SEED_VARIABLE):  # the command sets them; they are to be as before
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(TESTS)
    done = CliRunner().invoke(app, ["run", *arguments])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_no_fewer_than_one_process(jobs: str) -> None:
    done = CliRunner().invoke(app, ["run", "--uri", "memory://", "--jobs", jobs])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--jobs" in done.stderr


def test_the_rules_are_listed_with_who_keeps_them_and_their_tests() -> None:
    listed = json.loads(command("rules", "--json").stdout)
    assert [(one["rule"], one["kept_by"], one["sentence"]) for one in listed] == [
        (rule, KEPT_BY[rule], sentence) for rule, sentence in RULES.items()
    ]
    assert all(bool(one["tests"]) != bool(one["elsewhere"]) for one in listed)
    printed = command("rules").stdout
    assert all(f"\n{rule} " in printed for rule in RULES)


def test_the_kill_matrix_is_printed_as_json() -> None:
    done = command("selftest", "--only", "any-run-id", "--json")
    printed = json.loads(done.stdout)
    assert (done.returncode, printed["problems"]) == (0, [])
    assert [(one["name"], one["proved"]) for one in printed["mutants"]] == [("any-run-id", ["S5"])]
    unknown = command("selftest", "--only", "no-such-mutant")
    assert (unknown.returncode, "prefix-delete" in unknown.stderr) == (2, True)


def test_a_difference_is_a_trace_of_a_few_calls_that_can_be_replayed(tmp_path: Path) -> None:
    trace, database = tmp_path / "trace.json", f"sqlite:///{tmp_path}/{{namespace}}.db"
    broken = ("--harness", "harnesses_under_test:PrefixDelete")
    done = command("diff", "--uri", database, *broken, "--trace", str(trace))
    assert done.returncode == 1
    assert "THE FIRST DIFFERENCE is that of harnesses_under_test:PrefixDelete" in done.stdout
    assert f"flujo-conformance replay {trace}" in done.stderr
    assert len(json.loads(trace.read_text())["calls"]) <= 5
    again = command("replay", str(trace), "--uri", database, *broken)
    assert (again.returncode, again.stdout, again.stderr) == (1, done.stdout, "")
    fine = command("replay", str(trace), "--uri", database, "--uri", "memory://")
    assert fine.returncode == 0
    assert "oracle" not in fine.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("diff", "--uri", "memory://"), "it takes two backends to differ"),
        (("diff", "--uri", "memory://", "--uri", "memory://", "--profile", "soak"), "it is one of quick, ci"),
        (("replay", "nowhere.json", "--uri", "memory://"), "can't be read"),
        (("replay", "test_command.py", "--uri", "memory://"), "is no trace"),
        (("matrix", "nowhere.json"), "can't be read"),
    ],
)
def test_wrong_files_are_one_line(arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TESTS)
    done = CliRunner().invoke(app, list(arguments))
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr


def test_what_is_no_report_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    done = command("matrix", str(tmp_path / "x.json"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is no report of flujo-conformance" in done.stderr


def report_of(*outcomes: str) -> Report:
    document = {
        "kit": "1", "contract": 1, "python": "3", "platform": "x", "profile": "quick", "seed": 1, "seconds": 1,
        "started": "2024-01-01T00:00:00Z",
        "subject": {"name": "n", "harness": "m:C", "durable": True, "shared": True},
        "tests": [
            {"name": f"test_s1_{number}", "rules": ["S1"], "outcome": outcome, "seconds": 1}
            for number, outcome in enumerate(outcomes)
        ],
    }  # fmt: skip
    return Report.model_validate(document)


def test_the_verdict_is_the_worst_that_happened() -> None:
    verdicts = {
        ("PASS",): "PASS",
        ("PASS", "UNSUPPORTED"): "PASS",
        ("PASS", "EXEMPT"): "PARTIAL",
        ("PASS", "NOT RUN"): "PARTIAL",
        ("EXEMPT", "FAIL", "NOT RUN"): "FAIL",
        ("FAIL", "ERROR"): "ERROR",
        (): "ERROR",
    }
    for outcomes, verdict in verdicts.items():
        found = report_of(*outcomes)
        assert found.verdict == verdict, outcomes
        assert list(found.counts) == list(OUTCOMES)
        assert read_report(found.model_dump_json()) == found
    assert found.model_copy(update={"error": "x"}).verdict == "ERROR"


def test_of_several_rounds_the_worst_outcome_of_each_test_counts() -> None:
    both = merged([report_of("PASS", "PASS", "NOT RUN"), report_of("PASS", "FAIL", "PASS")])
    assert [test.outcome for test in both.tests] == ["PASS", "FAIL", "PASS"]
    assert (both.rounds, both.seconds, both.verdict) == (2, 2, "FAIL")


def test_the_matrix_shows_how_many_tests_came_to_what() -> None:
    found = matrix([report_of("PASS", "PASS"), report_of("PASS", "EXEMPT")])
    assert "| S1 | " + RULES["S1"] + " | PASS 2 | PASS 1, EXEMPT 1 |" in found
    assert TestOutcome.model_fields


def test_calls_are_the_same_with_one_seed_and_others_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> list[int]:
        found: list[int] = []

        @examples(5)
        @given(st.integers())
        def draw(number: int) -> None:
            found.append(number)

        draw()
        return found

    pairs = []
    for seed in (None, "1", "2"):
        monkeypatch.delenv(SEED_VARIABLE, raising=False)
        if seed is not None:
            monkeypatch.setenv(SEED_VARIABLE, seed)
        pairs.append((drawn(), drawn()))
    assert all(one == other for one, other in pairs)
    assert len({tuple(one) for one, _ in pairs}) == 3
