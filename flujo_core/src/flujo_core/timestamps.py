"""Which instants does the contract know (G6), and how are they written?"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Any, Final

from .errors import InvalidStateError

EARLIEST: Final = datetime(1, 1, 2, tzinfo=UTC)
LATEST: Final = datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC)
_ISO: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?(?:([Zz])|([+-])(\d\d)(?::?(\d\d))?)?",
    re.ASCII,
)


def _parse(text: str) -> datetime:
    # Not datetime.fromisoformat: its grammar differs between Python versions.
    found = _ISO.fullmatch(text)
    if found is None:
        raise ValueError
    year, month, day, hour, minute, second, fraction, _, sign, off_hours, off_minutes = found.groups()
    zone: tzinfo = UTC
    if sign:
        if int(off_hours) > 23 or int(off_minutes or 0) > 59:
            raise ValueError
        offset = timedelta(hours=int(off_hours), minutes=int(off_minutes or 0))
        zone = timezone(-offset if sign == "-" else offset)
    micros = int((fraction or "0").ljust(6, "0"))
    return datetime(int(year), int(month), int(day), int(hour), int(minute), int(second or 0), micros, zone)


def _moment(value: Any) -> datetime:
    if isinstance(value, datetime):
        naive = value.tzinfo is None or value.utcoffset() is None
        return value.replace(tzinfo=UTC) if naive else value
    if isinstance(value, str):
        return _parse(value)
    raise TypeError


def instant(value: Any, name: str) -> datetime:
    """The aware UTC datetime that an argument means; naive means UTC. ``name`` is for the message."""
    try:
        moment = _moment(value).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise InvalidStateError(
            f"{name} is {value!r:.80}, not a datetime or an ISO 8601 date and time with at most 6 fraction digits",
            path=f"$.{name}",
        ) from None
    if not EARLIEST <= moment <= LATEST:
        raise InvalidStateError(f"{name} is {value!s:.80}, outside 0001-01-02 to 9999-12-30 UTC", path=f"$.{name}")
    # A subclass may carry more (nanoseconds); what is kept is the microsecond.
    return datetime(
        moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second, moment.microsecond,
        UTC,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def text_of(moment: datetime) -> str:
    """Fixed width, so that text sorts as time: ``2024-05-01T12:00:00.000000+00:00``."""
    return moment.isoformat(timespec="microseconds")


def from_text(text: str) -> datetime:
    """The inverse of `text_of`."""
    return datetime.fromisoformat(text)


def ago(now: datetime, **duration: float) -> datetime:
    """``now`` less a duration of any finite length, not before the calendar begins."""
    try:
        return max(now - timedelta(**duration), EARLIEST)
    except OverflowError:
        return EARLIEST
