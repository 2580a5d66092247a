"""Which files are migrations, what do they ask for, and which come next?"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flujo_core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    FlujoStateError,
    MigrationError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
)
from flujo_core.migrations import (
    AppliedMigration,
    Migration,
    SchemaStatus,
    Series,
    parse_migration,
    plan,
    preview,
    read_folder,
    record_statement,
)

UNHURRIED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a machine with other work an example may take its time."""
ADD = "ALTER TABLE t ADD COLUMN c TEXT"
RECORD = "INSERT INTO flujo_schema_versions (version, applied_at) \nVALUES (3, NOW())\nON CONFLICT (version) DO NOTHING"


def parsed(sql: str, name: str = "003_x.sql") -> tuple[str, ...]:
    return parse_migration(name, sql).statements


def refused(sql: str, why: str, name: str = "003_x.sql") -> None:
    with pytest.raises(MigrationError, match=why) as caught:
        parse_migration(name, sql)
    assert str(caught.value).startswith(name)


# --- files ------------------------------------------------------------------------------------------------------------


@UNHURRIED
@given(st.integers(0, 10**9 - 1), st.from_regex(r"[a-z0-9_]{1,30}", fullmatch=True))
def test_d5_a_file_name_is_a_number_and_words(version: int, slug: str) -> None:
    migration = parse_migration(f"{version:03d}_{slug}.sql", ADD)
    assert (migration.version, migration.name, str(migration)) == (version, slug, f"{version:03d}_{slug}")


@pytest.mark.parametrize(
    "name",
    ["1_x.sql", "01_x.sql", "001-x.sql", "001_X.sql", "001_x.SQL", "001_.sql", "x.sql", "001_x.sql\n", "٠٠١_x.sql",
     "0000000001_x.sql", "._001_x.sql", "001_é.sql"],
)  # fmt: skip
def test_d5_other_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match=r"is not named like 001_init\.sql"):
        parse_migration(name, ADD)
    (tmp_path / name).write_text(ADD)
    if name.strip().lower().endswith(".sql") and "\n" not in name:
        with pytest.raises(MigrationError, match="is not named like"):
            read_folder(tmp_path)


@UNHURRIED
@given(st.lists(st.integers(0, 8), max_size=6))
def test_d5_a_deployments_numbers_begin_anywhere_and_have_no_gap(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("migrations")
    for place, number in enumerate(numbers):
        (folder / f"{number:03d}_step{place}.sql").write_text(ADD)
    (folder / "README.md").write_text("not SQL")
    ordered = sorted(numbers)
    if ordered == list(range(ordered[0], ordered[0] + len(ordered)) if ordered else []):
        found = read_folder(folder)
        assert [(one.version, one.series) for one in found] == [(number, "deployment") for number in ordered]
    else:
        with pytest.raises(MigrationError, match="no gap and none is there twice"):
            read_folder(folder)


def test_d5_a_folder_that_cannot_be_read_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="migrations_dir"):
        read_folder(tmp_path / "missing")
    (tmp_path / "001_x.sql").write_bytes(b"SELECT '\xff'")
    with pytest.raises(ConfigurationError, match="migrations_dir"):
        read_folder(tmp_path)


@UNHURRIED
@given(
    st.sampled_from([ADD, f"BEGIN;\n\n{ADD};\n{RECORD};\nCOMMIT;\n", f"-- min_code=2\n{ADD}; -- 'é\n\nSELECT '\n'"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_d5_a_checkout_on_windows_is_the_same_file(sql: str, mark: str) -> None:
    here, there = parse_migration("003_x.sql", sql), parse_migration("003_x.sql", mark + sql.replace("\n", "\r\n"))
    assert here == there
    assert here.checksum == there.checksum == sha256(sql.encode()).hexdigest()


# --- directives -------------------------------------------------------------------------------------------------------


@UNHURRIED
@given(st.sampled_from([None, "true", "false"]), st.sampled_from([None, "0", "2", "003"]), st.booleans())
def test_d5_directives_say_what_a_file_asks_for(transaction: str | None, min_code: str | None, one_line: bool) -> None:
    given_ones = [("transaction", transaction), ("min_code", min_code)]
    shown = [f"{name}={value}" for name, value in given_ones if value is not None]
    lines = [" ".join(shown)] if one_line and shown else shown
    head = "".join(f"\n  --  {line}  \n-- and why\n" for line in lines)
    migration = parse_migration("003_x.sql", f"{head}{ADD};")
    assert migration.transaction is (transaction != "false")
    assert migration.min_code == int(min_code or 0)
    assert type(migration.min_code) is int


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("-- transactions=false", "no directive transactions"),
        ("-- Transaction=false", "no directive Transaction"),
        ("-- transaction=False", "no value"),
        ("-- transaction=false;", "no value"),
        ("-- min_code=-1", "no value"),
        ("-- min_code=1.0", "no value"),
        ("-- min_code=٣", "no value"),
        ("-- min_code=1000000000", "no value"),
        ("-- min_code=4", "excludes the code that it comes with"),
        ("-- min_code=1\n-- min_code=2", "twice"),
        ("-- transaction = false", "alone in its line"),
        ("-- MIN_CODE = 1", "alone in its line"),
        ("-- it needs transaction=false", "alone in its line"),
        ("-- transaction=false as it is large", "alone in its line"),
        ("/* licence */\n-- min_code=1", "at the head"),
        ("SELECT 1;\n-- transaction=false", "at the head"),
    ],
)
def test_d5_a_directive_is_obeyed_or_refused(head: str, why: str) -> None:
    refused(f"{head}\n{ADD};", why)


def test_d5_a_deployment_may_ask_for_any_version_of_flujo() -> None:
    assert parse_migration("003_x.sql", f"-- min_code=4\n{ADD}", "deployment").min_code == 4


@pytest.mark.parametrize("count", [0, 1, 2])
def test_d5_outside_of_a_transaction_there_is_one_statement(count: int) -> None:
    sql = f"-- transaction=false\n{RECORD};\n" + f"{ADD};\n" * count
    if count == 1:
        assert parsed(sql) == (ADD,)
    else:
        refused(sql, "has no statement" if count == 0 else "exactly one statement, not 2")


# --- the format of the guide ------------------------------------------------------------------------------------------


@UNHURRIED
@given(
    st.sampled_from(["BEGIN", "begin transaction", "BEGIN /* ; */ WORK", "-- why;\nStart Transaction"]),
    st.sampled_from(["COMMIT", "commit work", "END", "-- done\nEND TRANSACTION"]),
    st.sampled_from(
        [
            RECORD,
            RECORD.lower(),
            "-- Always update schema version\n" + RECORD,
            "INSERT OR IGNORE INTO flujo_schema_versions VALUES (003, datetime('now'))",
            'INSERT INTO public."flujo_schema_versions" ("version") VALUES (3)',
            "INSERT /* ours */ INTO flujo_schema_versions(version,applied_at)VALUES(3,'it''s now')",
        ]
    ),
    st.lists(st.sampled_from([ADD, f"-- c\n{ADD}", "INSERT INTO t VALUES (3)"]), min_size=1, max_size=3),
)
def test_d5_the_transaction_and_the_record_of_the_guide_are_the_runners(
    begin: str, end: str, record: str, kept: list[str]
) -> None:
    for place in range(len(kept) + 1):
        inner = [*kept[:place], record, *kept[place:]]
        assert parsed(";\n".join(inner)) == tuple(kept)
        assert parsed(";\n".join([begin, *inner, end]) + ";\n-- the end\n") == tuple(kept)


@pytest.mark.parametrize(
    "record",
    [
        RECORD.replace("(3,", "(2,"),
        "INSERT INTO flujo_schema_versions SELECT 3, NOW()",
        "INSERT INTO flujo_schema_versions (version) SELECT version FROM t WHERE x IN (VALUES (3))",
        "INSERT INTO flujo_schema_versions (applied_at, version) VALUES (3, 4)",
        "INSERT INTO flujo_schema_versions (version) VALUES (3), (4)",
        "INSERT INTO flujo_schema_versions (version, name) VALUES (3, 'x'), (4, 'y')",
        "INSERT INTO flujo_schema_versions VALUES (-3)",
        "INSERT INTO flujo_schema_versions VALUES (2 + 1)",
        "INSERT INTO flujo_schema_versions DEFAULT VALUES",
        "INSERT INTO main.flujo_schema_versions VALUES (4 /* VALUES (3) */)",
    ],
)
def test_d5_another_record_is_refused(record: str) -> None:
    refused(f"BEGIN;\n{ADD};\n{record};\nCOMMIT;", "records something else in flujo_schema_versions")


@pytest.mark.parametrize(
    "statement",
    [
        "-- INSERT INTO flujo_schema_versions VALUES (3)\nINSERT INTO t VALUES (3)",
        "INSERT INTO t VALUES ('INSERT INTO flujo_schema_versions VALUES (3)')",
        "INSERT INTO flujo_schema_versions_old VALUES (3)",
        "INSERT INTO t SELECT version FROM flujo_schema_versions",
    ],
)
def test_d5_what_only_mentions_the_record_is_run(statement: str) -> None:
    assert parsed(f"{statement};") == (statement,)


CONTROL = st.sampled_from(
    ["BEGIN", "BEGIN IMMEDIATE", "START TRANSACTION", "COMMIT", "COMMIT AND CHAIN", "COMMIT PREPARED 'x'", "END",
     "END WORK", "ROLLBACK", "ROLLBACK TO x", "ABORT", "SAVEPOINT x", "RELEASE SAVEPOINT x",
     "PREPARE TRANSACTION 'x'"]
).flatmap(lambda control: st.sampled_from([control, control.lower(), control.title()]))  # fmt: skip


@UNHURRIED
@given(
    st.lists(st.sampled_from([ADD, RECORD, "SELECT 'BEGIN'"]), max_size=3),
    CONTROL,
    st.sampled_from(["", "-- c;\n", "/* a /* ; */ */ ", "\ufeff", "\n\t", ";"]),
    st.lists(st.sampled_from([ADD, RECORD]), max_size=3),
    st.booleans(),
)
def test_d5_any_other_transaction_control_is_refused(
    before: list[str], control: str, gap: str, after: list[str], framed: bool
) -> None:
    inner = [*before, gap + control, *after, ADD]
    refused(";\n".join(["BEGIN", *inner, "COMMIT"] if framed else inner), "is not allowed")


@pytest.mark.parametrize(
    "sql", ["BEGIN; {}; COMMIT PREPARED 'x'", "BEGIN; {}; COMMIT AND CHAIN", "BEGIN; {}; ROLLBACK", "BEGIN; {}",
            "{}; COMMIT", "BEGIN IMMEDIATE; {}; COMMIT", "BEGIN 1; {}; COMMIT", "BEGIN; {}; COMMIT; BEGIN; {}; COMMIT"],
)  # fmt: skip
def test_d5_only_the_pair_of_the_guide_is_accepted(sql: str) -> None:
    refused(sql.replace("{}", ADD), "is not allowed")


@pytest.mark.parametrize("sql", ["", "-- nothing\n", ";;", "BEGIN; COMMIT;", f"BEGIN; {RECORD}; END"])
def test_d5_a_file_without_a_statement_is_refused(sql: str) -> None:
    refused(sql, "it has no statement")


# --- status and plan --------------------------------------------------------------------------------------------------


def step(version: int, series: Series = "flujo", sql: str = ADD) -> Migration:
    return Migration(version, f"step{version}", sql, (sql,), series)


def row(migration: Migration, **other: Any) -> AppliedMigration:
    applied = AppliedMigration(migration.version, migration.name, migration.checksum, series=migration.series)
    return replace(applied, **other)


def status(migrations: list[Migration], applied: list[AppliedMigration]) -> SchemaStatus:
    return SchemaStatus("memory://", tuple(migrations), tuple(applied))


OURS = [step(1), step(2), step(3)]
THEIRS = [step(3, "deployment"), step(4, "deployment")]
BOTH = OURS + THEIRS


@UNHURRIED
@given(st.sets(st.sampled_from(range(5))), st.sets(st.sampled_from(range(5))), st.integers(0, 3))
def test_d5_the_state_follows_from_the_records(recorded: set[int], changed: set[int], by_hand: int) -> None:
    applied = [
        row(one, checksum="other" if place in changed else one.checksum)
        for place, one in enumerate(BOTH) if place in recorded
    ]  # fmt: skip
    # Records without a checksum are no versions, whatever they say.
    hand = [AppliedMigration(number, None, None, min_code=9) for number in range(by_hand)]
    now = status(BOTH, hand + applied)
    assert now.current_version == max((place + 1 for place in recorded if place < 3), default=0)
    assert now.latest_version == 3
    assert now.pending == tuple(one for place, one in enumerate(BOTH) if place not in recorded)
    assert now.changed == tuple(one for place, one in enumerate(BOTH) if place in recorded & changed)
    expected: type[FlujoStateError] | None = None
    if now.current_version == 0:
        expected = SchemaMissingError
    elif now.changed:
        expected = ChecksumMismatchError
    elif now.pending:
        expected = SchemaOutdatedError
    state = "missing" if now.current_version == 0 else "outdated" if now.pending else "current"
    assert now.state == state
    if expected is None:
        now.require_current()
    else:
        with pytest.raises(expected) as caught:
            now.require_current()
        assert type(caught.value) is expected
    gap = any(place not in recorded and later in recorded for series in ((0, 1, 2), (3, 4))
              for place in series for later in series if place < later)  # fmt: skip
    if now.changed:
        with pytest.raises(ChecksumMismatchError, match="--repair-checksums"):
            plan(now, None)
    elif gap:
        with pytest.raises(MigrationError, match="applied in order"):
            plan(now, None)
    else:
        assert plan(now, None) == now.pending


@pytest.mark.parametrize(("recorded", "text"), [((0, 1, 2, 3), "004_step4"), ((0, 2, 3, 4), "002_step2")])
def test_d5_an_outdated_schema_says_what_it_lacks(recorded: tuple[int, ...], text: str) -> None:
    with pytest.raises(SchemaOutdatedError, match=f"lacks {text}; run `flujo migrate`"):
        status(BOTH, [row(BOTH[place]) for place in recorded]).require_current()


@UNHURRIED
@given(st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_d5_newer_code_says_whether_this_code_may_go_on(min_code: int, version: int, by_deployment: bool) -> None:
    applied = [row(one) for one in BOTH] + [row(step(4))] * (version > 3)
    place = len(OURS) if by_deployment else 1
    applied[place] = replace(applied[place], min_code=min_code)
    now = status(BOTH, applied)
    if version <= 3:
        assert now.state == "current"
    elif min_code > 3:
        assert now.state == "too new"
        for use in (now.require_current, now.refuse_unusable, lambda: plan(now, None)):
            with pytest.raises(SchemaTooNewError, match="version 4, this code knows 3"):
                use()
    else:
        assert now.state == "newer"
        now.require_current()
        assert plan(now, None) == ()


def test_d5_beside_a_newer_schema_the_deployments_own_may_still_be_pending() -> None:
    now = status(BOTH, [row(one) for one in [*OURS, step(4)]])
    assert now.state == "newer"
    assert plan(now, None) == tuple(THEIRS)
    with pytest.raises(SchemaOutdatedError, match="lacks 003_step3, 004_step4"):
        now.require_current()


@UNHURRIED
@given(st.integers(0, 3), st.integers(-1, 5))
def test_d5_a_target_is_a_known_version_of_flujo_not_below_the_current(current: int, target: int) -> None:
    now = status(BOTH, [row(one) for one in OURS[:current]])
    if not 1 <= target <= 3:
        with pytest.raises(MigrationError, match=f"version {target} is unknown; the known ones are 1 to 3"):
            plan(now, target)
    elif target < current:
        with pytest.raises(MigrationError, match=f"{target} is below the current version {current}"):
            plan(now, target)
    else:
        assert plan(now, target) == tuple(OURS[current:target])
        report = preview(now, target)
        assert (report.from_version, report.to_version, report.dry_run) == (current, target, True)
    everything = preview(now, None)
    assert (everything.to_version, everything.steps) == (3, tuple(BOTH[current:]))


@pytest.mark.parametrize("target", [True, False, 1.0, "1", b"1"])
def test_d5_a_target_is_a_whole_number(target: Any) -> None:
    with pytest.raises(MigrationError, match="is not a whole number"):
        plan(status(BOTH, []), target)


def test_d5_without_a_series_no_target_is_known() -> None:
    assert plan(status([], []), None) == ()
    with pytest.raises(MigrationError, match="there are none"):
        plan(status([], []), 1)


NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("stored", "moment"),
    [
        (NOON, NOON),
        ("2024-05-01T12:00:00.000000+00:00", NOON),
        ("2024-05-01 14:00:00+02", NOON.astimezone(timezone(timedelta(hours=2)))),
        ("2024-05-01 12:00", NOON),
        ("2024-05-01", None),
        ("yesterday", None),
        ("", None),
        ("9999-12-31T23:59:59-23:59", None),
        (1714564800, None),
        (b"2024", None),
        (None, None),
    ],
)
def test_d5_a_record_has_a_time_or_none(stored: Any, moment: datetime | None) -> None:
    found = AppliedMigration.of_row((1, "x", "c", stored, 1.5, "0.1", 0), "deployment")
    assert found == AppliedMigration(1, "x", "c", moment, 1.5, "0.1", 0, "deployment")
    assert type(found.applied_at) is (datetime if moment else type(None))


def test_d5_a_record_for_people_leaves_the_rest_to_defaults() -> None:
    migration = step(3)
    assert record_statement(migration, "s.t") == (
        "INSERT INTO s.t (version, name, checksum, code_version, min_code) "
        f"VALUES (3, 'step3', '{migration.checksum}', NULL, 0)"
    )
