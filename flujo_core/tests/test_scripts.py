"""Is a SQL script cut where its statements end, and nowhere else?"""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flujo_core.errors import MigrationError
from flujo_core.scripts import keywords, shape, statements

UNHURRIED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a machine with other work an example may take its time."""
# What a scanner may stumble over, within strings, names, comments and dollar quotes; none of it ends any of these.
TRAPS = st.lists(
    st.sampled_from(["a", " ", ";", "\n", "--", "/", "BEGIN", "END", "COMMIT;", "$", "\\n", "é", "\ufeff", "E"])
).map("".join)


def quoted(mark: str, more: str = "") -> st.SearchStrategy[str]:
    """Text in quotes, with doubled quotes in it, other quotes and comment marks."""
    other = {"'": '"', '"': "'"}[mark]
    inner = st.lists(TRAPS | st.sampled_from([mark * 2, other, "/*", "*/", "$$"])).map("".join)
    return inner.map(lambda text: f"{more}{mark}{text}{mark}")


def _dollar(tag: str, text: str) -> str:
    return f"${tag}${text.replace('$', '')}${tag}$"


BLOCKS = st.recursive(
    TRAPS.map(lambda text: f"/* {text.replace('/', '')} ' */"),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: f"/*{' '.join(parts)}*/"),
    max_leaves=4,
)
LINES = TRAPS.map(lambda text: f"-- it's; /* {text} ".replace("\n", " ") + "\n")
COMMENTS = st.one_of(BLOCKS, LINES)
GAPS = st.lists(st.one_of(COMMENTS, st.sampled_from([" ", "\n", "\t", "\ufeff"])), max_size=3).map(
    lambda parts: " " + "".join(parts)
)
SQLITE_TOKENS = st.one_of(
    quoted("'"),
    quoted('"'),
    st.sampled_from(["SELECT", "x1", "12", "1.5", "(", ",", "-", "/", "*", "begin", "CASE", "end", "a$b", "?1"]),
)
TOKENS = st.one_of(
    SQLITE_TOKENS,
    st.builds(_dollar, st.sampled_from(["", "x", "_1", "é"]), TRAPS.map(lambda text: text + "';/*")),
    st.builds(lambda text: f"E'{text}\\'\\\\'';'", TRAPS),
    st.sampled_from(["$1", "a$$b", "::text", "e", "E"]),
)
SIMPLE = st.lists(st.tuples(TOKENS, GAPS), min_size=1, max_size=4).map(
    # The spaces keep an E off the string behind it.
    lambda pairs: "UPDATE x" + "".join(f"{gap} {token}" for token, gap in pairs)
)
CASE = "SELECT CASE WHEN a THEN CASE b WHEN 1 THEN 2 END ELSE 3 END"
INNER = st.one_of(
    SIMPLE, st.sampled_from([CASE, "UPDATE t SET end = NEW.end WHERE begin > 1", "INSERT INTO t VALUES (';')"])
)


def with_body(head: str, inner: list[str], gap: str) -> str:
    atomic = "" if "trigger" in head.lower() else " ATOMIC"
    return f"{head}{gap}BEGIN{gap}{atomic} {'; '.join(inner)};{gap}END"


BODIES = st.builds(
    with_body,
    st.sampled_from(
        [
            "CREATE TRIGGER t AFTER UPDATE OF begin ON x WHEN NEW.end > 1",
            "create temp Trigger if not exists t INSTEAD OF DELETE ON x",
            'CREATE OR REPLACE FUNCTION "f;"(begin int) RETURNS int',
            "CREATE PROCEDURE p() LANGUAGE SQL",
        ]
    ),
    st.lists(INNER, min_size=1, max_size=3),
    GAPS,
)
PLAIN = [
    "CREATE TABLE t (trigger text, begin int, end int)",
    "CREATE TRIGGER t BEFORE UPDATE OF begin ON x EXECUTE FUNCTION f()",
    "CREATE FUNCTION f(begin int) RETURNS int AS $$BEGIN SELECT 1; END$$ LANGUAGE plpgsql",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC END",
    "SELECT a begin SELECT",
    "BEGIN",
    "END",
    CASE,
]


@UNHURRIED
@given(
    st.lists(st.tuples(GAPS, st.one_of(SIMPLE, BODIES, st.sampled_from(PLAIN)), GAPS), max_size=6), st.booleans(), GAPS
)
def test_d5_statements_are_the_pieces_a_script_is_made_of(
    pieces: list[tuple[str, str, str]], last_ends: bool, rest: str
) -> None:
    script = ";".join(before + piece + after for before, piece, after in pieces)
    script += (";" + rest + ";;" + rest) if pieces and last_ends else ""
    found = statements(script)
    assert found == [(before + piece + after).strip() for before, piece, after in pieces]


@pytest.mark.parametrize("piece", PLAIN)
def test_d5_only_a_body_goes_beyond_a_semicolon(piece: str) -> None:
    assert statements(f"{piece}; {piece};SELECT 1") == [piece, piece, "SELECT 1"]


@UNHURRIED
@given(st.lists(st.sampled_from([*"; x'\"-\n\t/*1", "''", '""', "/*;'\"*/", "--", "E ", "SELECT", "END"]), max_size=30))
@example(["'a", "''", "b"])
def test_d5_sqlite_finds_the_same_ends(soup: list[str]) -> None:
    """Beside `sqlite3.complete_statement`, for all but the bodies of triggers and comments in comments."""
    script = "".join(soup)
    pieces, begin = [], 0
    for end, character in enumerate(script, 1):
        if character == ";" and sqlite3.complete_statement(script[begin:end]):
            pieces.append(script[begin : end - 1])
            begin = end
    pieces.append(script[begin:])
    # What follows the last end is endless if not even an end of line and a semicolon complete it.
    endless = not sqlite3.complete_statement(script[begin:] + "\n;")
    try:
        found = statements(script)
    except MigrationError:
        # Comments in comments have an end of their own in PostgreSQL.
        assert endless or "/*" in script.partition("/*")[2]
    else:
        assert not endless
        if "/*" not in script.partition("/*")[2]:
            cut = [piece.strip() for piece in pieces]
            assert found == [piece for piece in cut if shape(piece)]


TRIGGER = "CREATE TRIGGER t AFTER INSERT ON x BEGIN\n {}; -- END\n {}; /* ;END; */ END"


@UNHURRIED
@given(st.lists(st.sampled_from([CASE, "SELECT 'END;'", 'UPDATE t SET "end" = 1', "DELETE FROM t"]), min_size=2))
def test_d5_sqlite_finds_the_same_end_of_a_trigger(inner: list[str]) -> None:
    script = f"{TRIGGER.format(inner[0], '; '.join(inner[1:]))};"
    ends = [place for place, character in enumerate(script, 1) if character == ";"]
    assert [end for end in ends if sqlite3.complete_statement(script[:end])] == [len(script)]
    assert statements(script) == [script[:-1]]


ENDLESS = [
    ("'", "the string"),
    ("'a''\nb'';", "the string"),
    ('"a""\n"" ', "the string"),
    ("E'it\\'s;\nSELECT ''1;", "the string"),
    ("e'\\\\\\'", "the string"),
    ("$$ $x$ ;", r"the string \$\$"),
    ("$x$ $$ $y$ ;", r"the string \$x\$"),
    ("/* /* */ ;", "the comment"),
    ("/*/", "the comment"),
]


@UNHURRIED
@given(st.lists(st.one_of(SIMPLE, BODIES), max_size=3), st.sampled_from(ENDLESS), GAPS)
def test_d5_what_has_no_end_is_refused_with_its_line(before: list[str], endless: tuple[str, str], gap: str) -> None:
    start = "".join(f"{piece};\n" for piece in before) + gap + "SELECT "
    line = start.count("\n") + 1
    with pytest.raises(MigrationError, match=rf"^line {line}: {endless[1]} that begins here has no end$"):
        statements(start + endless[0])


@pytest.mark.parametrize("rest", ["", ";", "; SELECT CASE 1 END", "; SELECT 1 end;", "; 'END'", "; -- END"])
def test_d5_a_body_without_end_is_refused_with_its_line(rest: str) -> None:
    script = f"SELECT 1;\n\nCREATE TRIGGER t AFTER INSERT ON x\nBEGIN\n\nSELECT 1{rest}"
    with pytest.raises(MigrationError, match=r"^line 6: the body that begins here has no end$"):
        statements(script)


@UNHURRIED
@given(st.lists(st.tuples(GAPS, st.sampled_from(["Insert", "or", "REPLACE", "into"])), max_size=4), GAPS, TOKENS)
def test_d5_keywords_are_the_first_words(words: list[tuple[str, str]], gap: str, token: str) -> None:
    text = "".join(gap + word for gap, word in words) + gap
    upper = [word.upper() for _, word in words]
    assert keywords(text + "('x') SELECT") == upper
    assert shape(text + "( 'x')") == " ".join([*upper, "(", "'X'", ")"])
