"""Which statements of a migration's file are refused, before any of its step runs?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from flujo_core.errors import MigrationError
from flujo_core.scripts import keywords, shape

_QUOTED: Final = re.compile(
    r"""E'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | (\$\w*\$).*?\1""", re.VERBOSE | re.DOTALL
)
_COPIES: Final = re.compile(r"COPY .*(?<= )(?:FROM|TO) (?:STDIN|STDOUT)(?= |$)", re.DOTALL)
_UNTIL_ITS_END: Final = ("LOCAL", "CONSTRAINTS", "TRANSACTION")
"""What SET is followed by where the end of the transaction undoes it."""
_NAME: Final = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
# Of the shape of a statement.
_REPEATABLE: Final = re.compile(
    "(?:CREATE (?:UNIQUE )?INDEX CONCURRENTLY|DROP INDEX CONCURRENTLY IF EXISTS|VACUUM|ANALYZE|ANALYSE"
    r"|REINDEX (?:\( [^()]* \) )?(?:INDEX|TABLE|SCHEMA|DATABASE) CONCURRENTLY"
    r"|REINDEX \( (?:[^()]* , )?CONCURRENTLY(?: , [^()]*)? \)"
    rf"|REFRESH MATERIALIZED VIEW CONCURRENTLY|ALTER TYPE {_NAME}(?: \. {_NAME})* ADD VALUE IF NOT EXISTS)(?: |$)"
)
_ACCEPTED: Final = (
    "CREATE INDEX CONCURRENTLY some_name, DROP INDEX CONCURRENTLY IF EXISTS, REINDEX … CONCURRENTLY, VACUUM, ANALYZE, "
    "REFRESH MATERIALIZED VIEW CONCURRENTLY, ALTER TYPE … ADD VALUE IF NOT EXISTS"
)


def check(statements: Iterable[str], where: str) -> None:
    """Raises `MigrationError` for one that would wait for a client's data, or outlive its transaction."""
    for statement in statements:
        words = keywords(statement)
        if words[:1] == ["COPY"] and _COPIES.match(_QUOTED.sub("''", shape(statement))):
            # The driver has no rows to send, and the server waits for them for ever.
            raise MigrationError(
                f"{where} has a COPY from or to the client, which is not there; write INSERT, or COPY from a file of "
                "the server's"
            )
        if words[:1] == ["RESET"] or (words[:1] == ["SET"] and words[1:2] not in [[word] for word in _UNTIL_ITS_END]):
            raise MigrationError(
                f"{where} has {' '.join(words[:2])}, which would hold for the session, also for others that use it "
                "after the file; write SET LOCAL …, which ends with the transaction"
            )


def check_repeatable(statement: str, where: str) -> None:
    """A crash may come between a statement outside of a transaction and its record: then it is run again."""
    if _REPEATABLE.match(shape(statement)) is None:
        raise MigrationError(
            f"{where} has transaction=false, where a crash may make it run twice, so only these are accepted: "
            f"{_ACCEPTED}; remove the directive, or write one of them"
        )
