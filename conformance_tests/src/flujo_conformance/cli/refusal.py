"""How does a command say that it can't do what it was asked? In one line, with exit code 2: 1 is a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from flujo_core.cli.output import message
from flujo_core.errors import FlujoStateError


def refuse(text: str) -> NoReturn:
    message(text, label="error", style="bold red")
    raise typer.Exit(2)


@contextmanager
def told_errors() -> Iterator[None]:
    """An error of ours becomes one line."""
    try:
        yield
    except FlujoStateError as error:
        refuse(str(error).removeprefix("argument: "))


def write_whole(path: Path, text: str) -> None:
    """The text into a file, all of it or nothing."""
    part = _part(path)
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        refuse(f"{path} can't be written: {error.strerror}")


def check_writable(path: Path) -> None:
    """Before the work whose result is to be written there."""
    part = _part(path)
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        refuse(f"{path} can't be written: {error.strerror}")
    if path.is_dir():
        refuse(f"{path} can't be written: it is a folder")


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
