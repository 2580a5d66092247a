"""Which statements does a SQL script have?

The scanner knows what SQLite and PostgreSQL agree on, and both kinds of what they don't: comments (nested too), strings
and quoted names, ``E'…'``, dollar quotes, and the bodies of triggers and SQL functions (``BEGIN … END`` within a
CREATE). It needn't be perfect: a backend sends one statement at a time, so a wrong cut is an error of syntax, which
undoes the step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .errors import MigrationError

_TOKEN: Final = re.compile(
    r"""
      (?P<comment> --[^\n]* )
    | (?P<block> /\* )
    # A quote with another behind it ends nothing, also in a string that has no end at all.
    | (?P<text> [eE]'(?:[^'\\]|\\.|'')*'(?!') | '(?:[^']|'')*'(?!') | "(?:[^"]|"")*"(?!") )
    | (?P<dollar> (?<![\w$])\$(?:[^\W\d]\w*)?\$ )
    | (?P<open> [eE]?' | " )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<end> ; )
    # A byte order mark too, as in SQLite: there it may hide a COMMIT.
    | (?P<space> [\s\ufeff]+ )
    | (?P<other> \d\w* | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK: Final = re.compile(r"/\*|\*/")
_NOTHING: Final = ("comment", "space")
_HAS_BODY: Final = re.compile(
    "CREATE (OR REPLACE )?(TEMP |TEMPORARY )?TRIGGER |CREATE (OR REPLACE )?(FUNCTION|PROCEDURE) "
)
_FIRST_IN_BODY: Final = frozenset(("ATOMIC", "SELECT", "VALUES", "WITH", "INSERT", "REPLACE", "UPDATE", "DELETE"))


def statements(script: str) -> list[str]:
    """The statements in order, without the semicolon, each with the comments in and before it.

    Raises `MigrationError` for a string, a comment or a body that doesn't end.
    """
    found: list[str] = []
    current = _Statement(0)
    for kind, begin, end in _tokens(script):
        if kind == "end" and current.body is None:
            if not current.is_empty:
                found.append(script[current.begin : begin].strip())
            current = _Statement(end)
        elif kind not in _NOTHING:
            current.take(script[begin:end].upper() if kind == "word" else kind, begin)
    if current.body is not None:
        raise _endless("the body", script, current.body)
    return found if current.is_empty else [*found, script[current.begin :].strip()]


class _Statement:
    """A statement as far as it was read."""

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self.is_empty = True
        self.body: int | None = None
        """Where the body begins that isn't at its end yet: a semicolon in it ends nothing."""
        self._first = ""
        self._last = ""

    def take(self, word: str, place: int) -> None:
        """A word in capitals, or the kind of another token."""
        self.is_empty = False
        if self.body is not None:
            # The END of a CASE stands never behind a semicolon, nor does a column named "end".
            if word == "END" and self._last in ("end", "ATOMIC"):
                self.body = None
        elif self._last == "BEGIN" and word in _FIRST_IN_BODY and _HAS_BODY.match(self._first):
            self.body = place
        if len(self._first) < 40:
            self._first += f"{word} "
        self._last = word


def keywords(statement: str) -> list[str]:
    """The words of a statement up to its first other token, in capitals; comments are no tokens."""
    found = []
    for kind, begin, end in _tokens(statement):
        if kind == "word":
            found.append(statement[begin:end].upper())
        elif kind not in _NOTHING:
            break
    return found


def shape(statement: str) -> str:
    """The tokens of a statement in capitals, with one space between them and no comments."""
    return " ".join(statement[begin:end].upper() for kind, begin, end in _tokens(statement) if kind not in _NOTHING)


def _tokens(script: str) -> Iterator[tuple[str, int, int]]:
    """The kind, the begin and the end of each token."""
    begin = 0
    while begin < len(script):
        match = _TOKEN.match(script, begin)
        assert match is not None, "the last alternative takes any character"
        kind, end = str(match.lastgroup), match.end()
        if kind == "block":
            kind, end = "comment", _end_of_comment(script, begin)
        elif kind == "dollar":
            end = script.find(match[0], end) + len(match[0])
            if end < match.end():
                raise _endless(f"the string {match[0]}", script, begin)
        elif kind == "open":
            raise _endless("the string", script, begin)
        yield kind, begin, end
        begin = end


def _end_of_comment(script: str, begin: int) -> int:
    place, depth = begin + 2, 1
    while depth:
        mark = _COMMENT_MARK.search(script, place)
        if mark is None:
            raise _endless("the comment", script, begin)
        depth += 1 if mark[0] == "/*" else -1
        place = mark.end()
    return place


def _endless(what: str, script: str, place: int) -> MigrationError:
    line = script.count("\n", 0, place) + 1
    return MigrationError(f"line {line}: {what} that begins here has no end")
