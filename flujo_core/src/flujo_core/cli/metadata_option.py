"""Which metadata filter do the ``--meta KEY=VALUE`` options mean?

VALUE is JSON if it can be read as JSON, else text: ``a=1`` is a number, ``a="1"`` and ``a=one`` are texts. A dot in
KEY leads into an object: ``user.id=123`` is ``{"user": {"id": 123}}``. A backslash before a dot, an equals sign or a
backslash makes it part of a name. Several options hold together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import typer

_OPTION: Final = re.compile(r"((?:[^\\=]|\\[\\.=])*)=(.*)", re.DOTALL)
_NAME: Final = re.compile(r"(?:^|\.)((?:[^\\.]|\\.)*)", re.DOTALL)


def metadata_filter(options: Sequence[str]) -> dict[str, Any] | None:
    """What `StateBackend.list_runs` takes: the runs that match each of the options. None for no options.

    Raises `typer.BadParameter` for an option that can't be read, and for two that no run can match both.
    """
    merged: dict[str, Any] = {}
    for option in options:
        names, text = _split(option)
        value = _value(text, option)
        for name in reversed(names):
            value = {name: value}
        merged = _merged(merged, value, [])
    return merged or None


def _split(option: str) -> tuple[list[str], str]:
    """The names that KEY is made of, and VALUE."""
    found = _OPTION.fullmatch(option)
    if found is None:
        _refuse(option, "is not KEY=VALUE, such as batch_id=b-1; a backslash in KEY is written twice")
    names = [re.sub(r"\\(.)", r"\1", name) for name in _NAME.findall(found[1])]
    if not all(names):
        _refuse(option, "has an empty name in its key; a dot that is part of a name is written \\.")
    return names, found[2]


def _value(text: str, option: str) -> Any:
    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            _refuse(option, "gives a key of an object twice")
        return value

    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=object_of)
    except ValueError:
        return text
    except RecursionError:
        _refuse(option, "is nested too deeply")


def _no_constant(name: str) -> NoReturn:
    """NaN and the infinities are no JSON."""
    raise ValueError(name)


def _merged(first: Any, second: Any, path: list[str]) -> Any:
    """A value that contains both, as containment means it: arrays add up, objects are merged, scalars are equal."""
    if isinstance(first, dict) and isinstance(second, dict):
        merged = dict(first)
        for key, value in second.items():
            merged[key] = _merged(first[key], value, [*path, key]) if key in first else value
        return merged
    if isinstance(first, list) and isinstance(second, list):
        return first + second
    containers = isinstance(first, (dict, list)) or isinstance(second, (dict, list))
    if containers or isinstance(first, bool) is not isinstance(second, bool) or first != second:
        key = ".".join(name.replace("\\", "\\\\").replace(".", "\\.").replace("=", "\\=") for name in path)
        raise _bad(f"{key!r} can't be both {_shown(first)} and {_shown(second)}; no run matches")
    return first


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _refuse(option: str, why: str) -> NoReturn:
    raise _bad(f"{option!r:.80} {why}")


def _bad(text: str) -> typer.BadParameter:
    return typer.BadParameter(text, param_hint="'--meta'")
