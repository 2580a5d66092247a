"""How is a result shown? As text that is safe in any terminal, or as strict JSON.

Texts of users are shown as they are, but for characters that don't print: an escape sequence in a run's name can't
recolour a terminal, rename its window or hide what stands beside it.

JSON is ASCII. Timestamps are ISO 8601 text in UTC; NaN and the infinities, which JSON can't say, are the texts "NaN",
"Infinity" and "-Infinity"; a lone surrogate is its escape, such as "\\ud800".
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from itertools import zip_longest
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any, Final

import typer

from flujo_core.timestamps import text_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NARROWEST: Final = 12
"""What a column that folds is left with in a narrow terminal."""
UNLIMITED: Final = 1_000_000
_JOINERS: Final = "\u200c\u200d"
"""Not printable by themselves, but words of some scripts and many emoji are written with them."""
_STATUS_STYLES: Final = {
    "running": "cyan", "paused": "yellow", "completed": "green", "failed": "red", "cancelled": "bright_black",
}  # fmt: skip


def write(text: str) -> None:
    """To stdout, at once."""
    try:
        if sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_the_rest()
        raise typer.Exit(141) from None
    except UnicodeEncodeError as error:
        # Text that the terminal's encoding can't say.
        write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
    except OSError as error:
        _discard_the_rest()
        message(f"the output can't be written: {error.strerror or error}", label="error", style="bold red")
        raise typer.Exit(1) from None


def _discard_the_rest() -> None:
    """What is left in the buffer would fail again when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def message(text: str, *, label: str = "", style: str = "dim") -> None:
    """One line on stderr."""
    from rich.console import Console
    from rich.text import Text

    text = safe(" ".join(line.strip() for line in text.splitlines()))
    line = Text.assemble((f"{label}: ", style), text) if label else Text(text, style)
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)


# --- JSON ------------------------------------------------------------------------------------------------------------


def write_json(value: Any) -> None:
    write(json_text(value, indent=2) + "\n")


def json_text(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(_plain(value), ensure_ascii=True, allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return text_of(value)
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


# --- texts -----------------------------------------------------------------------------------------------------------


def safe(text: str) -> str:
    """The text with escapes, as in a Python literal, for all that doesn't print."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode()


def one_line(value: Any) -> str:
    """A JSON value as a person reads it."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def excerpt(text: str, longest: int) -> str:
    """The text, or the beginning of a long one."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters; --json shows all)"


def moment(value: datetime | None) -> str:
    """``2024-05-01T12:00:00Z``; what is shorter than a second is cut off."""
    return "" if value is None else f"{value.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat()}Z"


def duration(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    size = abs(milliseconds)
    if size < 10:
        return f"{milliseconds:.3g} ms"
    if size < 999.5:
        return f"{milliseconds:.0f} ms"
    if size < 59_950:
        return f"{milliseconds / 1000:.1f} s"
    if size >= 1e12:
        return f"{milliseconds / 1000:.3g} s"
    sign, seconds = "-" if milliseconds < 0 else "", round(size / 1000)
    if seconds < 3600:
        return f"{sign}{seconds // 60} min {seconds % 60:02} s"
    return f"{sign}{seconds // 3600:,} h {seconds % 3600 // 60:02} min"


def dollars(amount: float | None) -> str:
    if amount is None:
        return ""
    if amount and not 0.0001 <= abs(amount) < 1e9:
        return f"${amount:.3g}"
    return f"${amount:,.4f}"


def status_text(status: str) -> Text:
    from rich.text import Text

    return Text(safe(status), style=_STATUS_STYLES.get(status, ""))


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: a title, and how much it matters when the terminal is narrow."""

    title: str
    right: bool = False
    folds_at: int | None = None
    """How wide it is at most before other columns are left out; its cells are then folded into several lines."""
    rank: int = 0
    """0: always shown; else, of the columns for which there is no room, the highest goes first."""


def write_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> None:
    """Texts in aligned columns, none of them cut off.

    A terminal is filled and not exceeded as long as that is possible; anywhere else lines are as long as they need to
    be. Columns without a single text are left out.
    """
    from rich.text import Text

    cells = [[_text(cell) for cell in row] for row in rows]
    filled = [place for place in range(len(columns)) if any(row[place].plain for row in cells)]
    natural = {place: max(len(columns[place].title), *(row[place].cell_len for row in cells)) for place in filled}
    widths, gap = _fitted(columns, natural, _width())
    titles = [Text(column.title, "bold") for column in columns]
    right = {place for place in widths if columns[place].right}
    _write_lines(line for row in [titles, *cells] for line in _laid_out(row, widths, gap, right))


def write_fields(fields: Sequence[tuple[str, str | Text]]) -> None:
    """Names and values, one below the other; empty values are left out."""
    from rich.text import Text

    shown = [(Text(safe(name), "bold"), _text(value)) for name, value in fields if value]
    names, values = (max(row[place].cell_len for row in shown) for place in (0, 1))
    gap = 2
    widths = {0: names, 1: min(values, max(NARROWEST, _width() - names - gap))}
    _write_lines(line for row in shown for line in _laid_out(row, widths, gap))


def _text(cell: str | Text) -> Text:
    from rich.text import Text

    return cell if isinstance(cell, Text) else Text(safe(cell))


def _fitted(columns: Sequence[Column], natural: dict[int, int], width: int) -> tuple[dict[int, int], int]:
    """The columns for which there is room, by their places, and how wide each is; and the gap between columns."""

    def room(gap: int) -> int:
        return width - sum(chosen.values()) - gap * (len(chosen) - 1)

    wanted = {place: min(size, columns[place].folds_at or size) for place, size in natural.items()}
    chosen = {place: size for place, size in wanted.items() if not columns[place].rank}
    gap = 2 if room(2) >= 0 else 1
    for place in sorted(wanted.keys() - chosen.keys(), key=lambda place: columns[place].rank):
        if room(gap) >= gap + wanted[place]:
            chosen[place] = wanted[place]
    chosen = dict(sorted(chosen.items()))
    folding = [place for place in chosen if columns[place].folds_at]
    for place in reversed(folding):  # the first is the one by which a row is found
        chosen[place] = max(min(NARROWEST, chosen[place]), chosen[place] + min(0, room(gap)))
    for place in folding:
        chosen[place] = min(natural[place], chosen[place] + max(0, room(gap)))
    return chosen, gap


def _console() -> Console:
    """Which knows what stdout is: a terminal or not, how wide, with which colours."""
    from rich.console import Console

    return Console()


def _width() -> int:
    """Of the terminal; without one there is no limit, unless COLUMNS sets it."""
    console = _console()
    return console.width if console.is_terminal or "COLUMNS" in os.environ else UNLIMITED


def _laid_out(cells: Sequence[Text], widths: Mapping[int, int], gap: int, right: Container[int] = ()) -> Iterator[Text]:
    """The lines of one row; a cell that is wider than its column is folded."""
    from rich.text import Text

    folded = [
        [cells[place]] if cells[place].cell_len <= width else cells[place].wrap(_console(), width, overflow="fold")
        for place, width in widths.items()
    ]
    for pieces in zip_longest(*folded):
        line = Text()
        for piece, (place, width) in zip(pieces, widths.items(), strict=True):
            text = piece or Text()
            blank = " " * (width - text.cell_len)
            line.append(blank if place in right else "").append_text(text)
            line.append(" " * gap if place in right else blank + " " * gap)
        line.rstrip()
        yield line


def _write_lines(lines: Iterable[Text]) -> None:
    from rich.console import Console
    from rich.text import Text

    stdout, rendered = _console(), StringIO()
    console = Console(
        file=rendered,
        force_terminal=stdout.is_terminal,
        color_system=stdout.color_system,  # type: ignore[arg-type]  # a str there, one of these here
        no_color=stdout.no_color,
        legacy_windows=False,
    )
    console.print(Text("\n").join(lines), soft_wrap=True)
    write(rendered.getvalue())
