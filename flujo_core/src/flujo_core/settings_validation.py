"""Are these values what a backend's settings model asks for? If not, what should be written instead?

Values come from a URI and the environment as text, from ``flujo.toml`` and keyword arguments with a type. All are
checked here, in the same words, before anything is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, TypeVar, Union, get_args, get_origin

from flujo_core.errors import ConfigurationError
from flujo_core.uri import HIDDEN, is_secret_name, mask_text, mask_value

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from flujo_core.settings import BackendSettings

    Settings = TypeVar("Settings", bound=BackendSettings)

_BOOLEANS: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
_BOOLEAN_WORDS = "should be one of true/false, 1/0, yes/no, on/off"


def validate_settings(
    model: type[Settings], values: Mapping[str, object], where: str | Mapping[str, str] = "argument"
) -> Settings:
    """The values as an instance of the settings model.

    ``where`` says where the values come from, for all of them or by name; messages begin with it. Text becomes the
    type of the field; a boolean is no number. Raises one `ConfigurationError` that says what is wrong: for an unknown
    name the known ones, for a value what is expected. A value of a field named like a secret is never shown.
    """
    from pydantic import ValidationError

    fields = setting_fields(model)
    problems: list[str] = []
    checked: dict[str, object] = {}
    for name, value in values.items():
        if name not in fields:
            problems.append(_place(where, name) + _unknown_setting(model, name, fields))
            continue
        checked[name], problem = _checked(fields[name], value)
        if problem:
            problems.append(f"{_place(where, name)}{name} = {shown_value(name, value, fields[name])} {problem}")
    if not problems:
        try:
            return model.model_validate(checked)
        except ValidationError as error:
            # Not chained: pydantic's error carries the values.
            details = error.errors(include_url=False, include_context=False)
        problems = [_explanation(detail, values, fields, where) for detail in details]
    raise ConfigurationError("; ".join(problems))


def setting_fields(model: type[BackendSettings]) -> dict[str, FieldInfo]:
    """The model's fields by the names that users write: the alias where there is one."""
    return {_public_name(name, field): field for name, field in model.model_fields.items()}


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that nothing has: the nearest known one, and all of them."""
    from difflib import get_close_matches

    choices = sorted(known)
    near = get_close_matches(name, choices, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {name!r}{guess} known: {', '.join(choices) or 'none'}"


def shown_value(name: str, value: object, field: FieldInfo) -> str:
    """A value as it may be shown, shortened; a str in quotes."""
    if _is_secret(name, field):
        return HIDDEN
    text = mask_value(name, str(value).lower() if isinstance(value, bool) else str(value))
    text = text if len(text) <= 80 else text[:79] + "…"
    return repr(text) if isinstance(value, str) else text


def _public_name(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias or field.alias
    return alias if isinstance(alias, str) else name


def _place(where: str | Mapping[str, str], name: str) -> str:
    return f"{where if isinstance(where, str) else where.get(name, 'argument')}: "


def _is_secret(name: str, field: FieldInfo) -> bool:
    kinds = {getattr(kind, "__name__", "") for kind in _kinds(field.annotation)}
    return is_secret_name(name) or bool(kinds & {"SecretStr", "SecretBytes"})


def _unknown_setting(model: type[BackendSettings], name: str, fields: Iterable[str]) -> str:
    if name in model.connection_options:
        return f"{name!r} is an option of the connection; write it in the URI, ?{name}=…"
    return unknown_name("option", name, fields)


def _checked(field: FieldInfo, value: object) -> tuple[object, str]:
    """The value for pydantic, and what is wrong with it: it takes more words for booleans than we do, and booleans for
    numbers."""
    kinds = _kinds(field.annotation)
    numbers = kinds & {int, float}
    if bool in kinds and isinstance(value, str) and str not in kinds:
        word = value.strip().lower()
        return _BOOLEANS.get(word), "" if word in _BOOLEANS else _BOOLEAN_WORDS
    if bool in kinds and not numbers and isinstance(value, int | float) and value not in {True, False}:
        return None, _BOOLEAN_WORDS
    if numbers and bool not in kinds and isinstance(value, bool):
        return None, "should be a number, not a boolean"
    return value, ""


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) in {Union, UnionType}:
        return {kind for choice in get_args(annotation) for kind in _kinds(choice)}
    return {annotation}


def _explanation(
    detail: ErrorDetails, values: Mapping[str, object], fields: Mapping[str, FieldInfo], where: str | Mapping[str, str]
) -> str:
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if not detail["loc"]:  # what is wrong with several fields together
        return message
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        return f"{name} is required"
    if name not in fields:  # an alias that has several spellings
        return f"{name} {mask_text(message)}"
    message = "is not what is expected" if _is_secret(name, fields[name]) else mask_text(message)
    return f"{_place(where, name)}{name} = {shown_value(name, values.get(name), fields[name])} {message}"
