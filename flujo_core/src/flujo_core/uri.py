"""Which database does a state URI name, and how is a URI shown without its password?

No driver is needed for either. The grammar is RFC 3986 with an authority: ``scheme://[user[:password]@][hosts][path][?options]``;
several hosts, as libpq writes them, are separated by commas. What the parts mean is the plugin's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import unquote, unquote_to_bytes

from flujo_core.errors import ConfigurationError

HIDDEN: Final = "***"

_SHAPE = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_SCHEME_ONLY = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

_SECRET_WORDS = r"(?:pass|pwd|secret|token|credential|api_?key|private)"
_SECRET_SPELLINGS = ("password", "passwd", "pwd", "secret", "token")
_SECRET_NAME = re.compile(_SECRET_WORDS, re.IGNORECASE)
_SECRET_ASSIGNMENT = re.compile(rf"{_SECRET_WORDS}\w*\s*[=:]", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(
    rf"""(\w*{_SECRET_WORDS}\w*\s*(?:=|%3D)\s*)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s&;,)'"]+)""", re.IGNORECASE
)
_CREDENTIALS = re.compile(r":.*@", re.DOTALL)
_HOST = re.compile(r"(?:\[[0-9A-Za-z:.%\-]*\]|[^:@\[\]=&;\s]*)(?::[0-9]*)?")
_OPTION_NAME = re.compile(r"[\w.\-]+")
_MEMORY_ADVICE = "names no file; write memory:// for state that lives in this process only"
_PORT_ADVICE = (
    "has a host or a port that can't be one; if the colon belongs to a password, '@' and a host are missing after it"
)
_URI_START = re.compile(r"(?<![^\s'\"`(<\[=,])[A-Za-z][A-Za-z0-9+.\-]*://")


@dataclass(frozen=True, slots=True, repr=False)
class StateUri:
    """A state URI in its parts. ``str`` and ``repr`` show it without its password; `text` is the whole."""

    text: str
    scheme: str
    """In lower case."""
    authority: str
    """Credentials and hosts as written, still percent-encoded; empty if there is none."""
    user: str | None
    password: str | None
    hosts: tuple[str, ...]
    """``host[:port]`` as written, still percent-encoded; empty if there is none."""
    path: str
    """As written, still percent-encoded, with its first slash."""
    options: Mapping[str, str] = field(hash=False)

    def __str__(self) -> str:
        return mask_uri(self.text)

    def __repr__(self) -> str:
        return f"StateUri({mask_uri(self.text)!r})"


def parse_uri(text: str) -> StateUri:
    """Split a state URI into its parts.

    User, password and options come percent-decoded, hosts and path as written. Raises `ConfigurationError`, which shows
    no password, for anything that could be read in two ways: no ``scheme://``, an unencoded ``#`` or ``@``, a bad
    percent-encoding, control characters, an option without a value or given twice.
    """
    if not text:
        raise ConfigurationError("the state URI is empty; write one such as sqlite:///flujo_ops.db")
    if text != text.strip() or _CONTROL.search(text):
        _refuse(text, "has spaces around it or control characters in it; remove them")
    if _SURROGATE.search(text):
        _refuse(text, "is not valid UTF-8; percent-encode its special characters")
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        _refuse(text, _advice_without_scheme(text))
    scheme, authority, path, query, fragment = shape.groups()
    if fragment is not None:
        _refuse(text, "has a '#', which would begin a fragment; write it as %23")
    if _BAD_PERCENT.search(text):
        _refuse(text, "has a '%' that is not followed by two hexadecimal digits; write the character itself as %25")
    credentials, at, hosts = authority.rpartition("@")
    if "@" in credentials or (authority and "@" in text[shape.end(2) :]):
        _refuse(text, "is ambiguous; write '@', '/', '?', '#' and '%' inside a user, password or option as %40, %2F, …")
    if not all(_is_host(host) for host in hosts.split(",")):
        _refuse(text, _MEMORY_ADVICE if _names_memory(text) else _PORT_ADVICE)
    user, colon, password = credentials.partition(":")
    return StateUri(
        text=text,
        scheme=scheme.lower(),
        authority=authority,
        user=_decode(user, text) if at else None,
        password=_decode(password, text) if colon else None,
        hosts=tuple(hosts.split(",")) if hosts else (),
        path=path,
        options=_options(query, text),
    )


def file_path(uri: StateUri) -> Path:
    """The file that a URI such as ``sqlite:///x.db`` names (D2), as written: a relative one stays relative.

    Three slashes begin a relative path, four an absolute one. Raises `ConfigurationError` for a host, an empty path,
    a folder, ``~`` and ``:memory:``.
    """
    if _names_memory(uri.text):
        _refuse(uri.text, _MEMORY_ADVICE)
    if uri.authority:
        three_slashes = mask_uri(uri.text).replace("://", ":///", 1)
        _refuse(uri.text, f"has two slashes before a path; use three, {three_slashes}, or four for an absolute path")
    path = _decode(uri.path, uri.text)
    path = re.sub(r"^//+", "/", path) if path.startswith("//") else path.removeprefix("/")
    if not path:
        _refuse(uri.text, f"has no path; write {uri.scheme}:///file.db, or memory:// for state in this process only")
    if path.endswith("/") or Path(path).name in {"", ".", ".."}:
        _refuse(uri.text, "names a folder; add the name of a file")
    if path.startswith("~/"):
        _refuse(uri.text, f"has a '~', which is not expanded; write the whole path, {uri.scheme}:////home/…")
    return Path(path)


def _refuse(text: str, why: str) -> NoReturn:
    raise ConfigurationError(f"the state URI {mask_uri(text)!r} {why}")


def _advice_without_scheme(text: str) -> str:
    if _names_memory(text):
        return _MEMORY_ADVICE
    if mask_uri(text) != text:
        return "does not begin with scheme://; write one such as sqlite:///flujo_ops.db or postgresql://user@host/db"
    return f"has no scheme; write sqlite:///{text} if it is a file"


def _names_memory(text: str) -> bool:
    return bool(re.search(r"(^|[/:]):memory:($|\?)", unquote(text)))


def _decode(part: str, text: str) -> str:
    """Percent-decode one part of the URI ``text``; '+' is itself (RFC 3986)."""
    data = unquote_to_bytes(part)
    if b"\0" in data:
        _refuse(text, "has a NUL (%00); remove it")
    decoded = data.decode("utf-8", "replace")
    if decoded.encode() != data:
        _refuse(text, "has a percent-encoding that is not UTF-8; encode the UTF-8 bytes of each character")
    return decoded


def _options(query: str | None, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for piece in query.split("&") if query else ():
        name, equals, value = piece.partition("=")
        if not (name and equals):
            _refuse(text, "has an option without a name or a value; write ?name=value&name=value")
        name = _decode(name, text)
        if name in options:
            _refuse(text, f"gives the option {name!r} twice; give it once")
        options[name] = _decode(value, text)
    return options


def _is_host(host: str) -> bool:
    if not _HOST.fullmatch(host):
        return False
    return host.startswith("[") or not re.search("[:@]", _decoded(host.partition(":")[0]))


def mask_uri(text: str) -> str:
    """The URI as it may be shown: every password, in whatever place, is ``***``.

    It takes any text, and hides too much rather than too little: of text that is no well-formed URI only the scheme is
    left as soon as it holds a character of a URI's credentials. Two mistakes can't be seen: without the host, a
    password of digits is a port (``scheme://user:5432``); without the colon, a password is a part of the user's name.
    Never raises.
    """
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        return _mask_malformed(text)
    scheme, authority, path, query, fragment = shape.groups()
    start = f"{scheme}://"
    credentials, at, hosts = authority.rpartition("@")
    elsewhere = text[shape.end(2) :]
    if ("@" in elsewhere) if authority else _CREDENTIALS.search(_decoded(elsewhere)):
        return start + HIDDEN
    shown = start + _mask_credentials(credentials) + at
    if not all(_is_host(host) for host in hosts.split(",")):
        return shown + HIDDEN
    shown += hosts
    if _SECRET_ASSIGNMENT.search(_decoded(path)) or (authority and "@" in _decoded(path)):
        return f"{shown}/{HIDDEN}"
    shown += path
    if query is not None:
        shown += "?" + _mask_options(query)
    return shown if fragment is None else f"{shown}#{_mask_options(fragment)}"


def mask_text(text: str) -> str:
    """A message as it may be shown: the passwords of the URIs in it, and of ``password=…`` settings, are ``***``.

    For what drivers and plugins say. A URI reaches to the last ``@`` of its line, so that a password with spaces is
    hidden as well. Never raises.
    """
    lines = text.splitlines(keepends=True)
    return "".join(_SECRET_IN_TEXT.sub(rf"\1{HIDDEN}", _mask_line(line)) for line in lines)


def mask_value(name: str, value: str) -> str:
    """The value of an option as it may be shown: ``***`` if the name or the value looks like a secret's."""
    seen = _decoded(value)
    if is_secret_name(name) or _CREDENTIALS.search(seen) or _SECRET_ASSIGNMENT.search(seen):
        return HIDDEN
    return mask_text(value)


def is_secret_name(name: str) -> bool:
    """Whether values of an option of this name must not be shown, the name being misspelt or not."""
    if _SECRET_NAME.search(name):
        return True
    from difflib import get_close_matches

    words = {name.lower(), *re.split(r"[\W_]+", name.lower())}
    return any(get_close_matches(word, _SECRET_SPELLINGS, cutoff=0.75) for word in words)


def _mask_line(line: str) -> str:
    starts = [match.start() for match in _URI_START.finditer(line)]
    masked = line[: starts[0]] if starts else line
    for start, end in zip(starts, [*starts[1:], len(line)], strict=False):
        part = line[start:end]
        uri = re.match(r".*@\S*|\S+", part, re.DOTALL)
        length = uri.end() if uri else 0
        masked += mask_uri(part[:length]) + part[length:]
    return masked


def _mask_malformed(text: str) -> str:
    if not re.search("[:@=%]", text) or text in {":memory:", "sqlite::memory:"}:
        return text
    scheme = _SCHEME_ONLY.match(text)
    return (scheme.group() if scheme else "") + HIDDEN


def _mask_credentials(credentials: str) -> str:
    if ":" not in _decoded(credentials):
        return credentials
    user = credentials.partition(":")[0]
    if ":" in _decoded(user):
        user = user.partition("%")[0]
    return f"{user}:{HIDDEN}"


def _mask_options(query: str) -> str:
    return "".join(piece if piece in {"&", ";"} else _mask_option(piece) for piece in re.split("([&;])", query))


def _mask_option(piece: str) -> str:
    name, equals, value = piece.partition("=")
    if not _OPTION_NAME.fullmatch(name) or not equals:
        return HIDDEN if piece else ""
    return f"{name}={mask_value(name, value)}"


def _decoded(text: str) -> str:
    """Percent-decoded until nothing changes: a value may have been encoded more than once."""
    for _ in range(8):
        decoded = unquote(text)
        if decoded == text:
            break
        text = decoded
    return text
