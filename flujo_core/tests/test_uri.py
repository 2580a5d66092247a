"""State URIs: their parts, the file they name, and no password in anything that is shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flujo_core.errors import ConfigurationError
from flujo_core.uri import StateUri, file_path, mask_text, mask_uri, parse_uri

# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///x.db", "x.db"),
        ("sqlite:///./x.db", "x.db"),
        ("sqlite:///../x.db", "../x.db"),
        ("sqlite:///folder/x.db", "folder/x.db"),
        ("sqlite:////abs/x.db", "/abs/x.db"),
        ("SQLite:////abs/x.db", "/abs/x.db"),
        ("sqlite://///abs/x.db", "/abs/x.db"),
        ("sqlite:///my%20file%23%3F%25.db", "my file#?%.db"),
        ("sqlite:///a+b.db", "a+b.db"),
        ("sqlite:///my file.db", "my file.db"),
        ("sqlite:///%C3%A9t%C3%A9.db", "été.db"),
        ("sqlite:///été.db", "été.db"),
        ("sqlite:////home/me@corp/x.db", "/home/me@corp/x.db"),
        ("sqlite:///%2Fabs%2Fx.db", "/abs/x.db"),
        ("sqlite:///~x.db", "~x.db"),
        ("sqlite:///x.db?auto_migrate=no", "x.db"),
    ],
)
def test_d2_path(uri: str, path: str) -> None:
    assert file_path(parse_uri(uri)) == Path(path)


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("sqlite://x.db", r"use three, sqlite:///x\.db"),
        ("sqlite://./x.db", r"use three, sqlite:///\./x\.db"),
        ("sqlite://", "has no path; write sqlite:///"),
        ("sqlite:///", "has no path; write sqlite:///"),
        ("sqlite:///?auto_migrate=no", "has no path"),
        ("sqlite:///folder/", "names a folder"),
        ("sqlite:///..", "names a folder"),
        ("sqlite:////", "names a folder"),
        ("sqlite:///~/x.db", "'~', which is not expanded"),
        ("sqlite:///x#1.db", "'#'.*write it as %23"),
        ("sqlite:///100%.db", "'%'.*%25"),
        ("sqlite:///x%0.db", "'%'.*%25"),
        ("sqlite:///x%00.db", "NUL"),
        ("sqlite:///x\0.db", "control characters"),
        ("sqlite:///x.db\n", "control characters"),
        ("sqlite:///x.db ", "spaces around"),
        ("sqlite:///%FF.db", "not UTF-8"),
        ("sqlite:///\udcff.db", "not valid UTF-8"),
        ("sqlite:x.db", "does not begin with scheme://"),
        ("x.db", "write sqlite:///x.db if it is a file"),
        ("/abs/x.db", "write sqlite:////abs/x.db if it is a file"),
        ("", "is empty"),
    ],
)
def test_d2_refused_path(uri: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        file_path(parse_uri(uri))


@pytest.mark.parametrize(
    "uri",
    [
        ":memory:",
        "sqlite::memory:",
        "sqlite://:memory:",
        "sqlite:///:memory:",
        "sqlite:////:memory:",
        "sqlite:///%3Amemory%3A",
        "sqlite:///:memory:?auto_migrate=no",
        "sqlite:///file::memory:",
        "sqlite:///file::memory:?cache=shared",
    ],
)
def test_d2_memory_is_no_file(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        file_path(parse_uri(uri))


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1).map(lambda s: s + "x"))
def test_d2_any_file_name_can_be_written(name: str) -> None:
    assert file_path(parse_uri(f"sqlite:////folder/{quote(name)}")) == Path("/folder") / name


# --- options and authority --------------------------------------------------------------------------------------------


def test_d2_options_are_decoded_strings() -> None:
    assert parse_uri("sqlite:///x.db?a=1&b%20c=%26+d&e=").options == {"a": "1", "b c": "&+d", "e": ""}
    assert parse_uri("sqlite:///x.db?").options == {}


@pytest.mark.parametrize(
    ("query", "advice"),
    [
        ("a=1&a=2", "'a' twice"),
        ("a=1&%61=2", "'a' twice"),
        ("a", "without a name or a value"),
        ("=1", "without a name or a value"),
        ("a=1&", "without a name or a value"),
        ("a=%00", "NUL"),
    ],
)
def test_d2_refused_options(query: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        parse_uri(f"sqlite:///x.db?{query}")


@pytest.mark.parametrize(
    "uri",
    [
        "postgres://u:1/pw@h/db",
        "postgres://u:1?pw@h/db",
        "postgres://u:p@w@h/db",
        "postgres://h/db?application_name=a@b",
    ],
)
def test_d3_ambiguous_uri(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is ambiguous; write '@', .* as %40, %2F"):
        parse_uri(uri)


def test_d3_several_hosts() -> None:
    uri = parse_uri("postgres://u%40x:p%2Fw:d@h1:5432,[::1]:5433,%2Frun%2Fpg/db?target_session_attrs=any")
    assert (uri.scheme, uri.user, uri.password) == ("postgres", "u@x", "p/w:d")
    assert uri.hosts == ("h1:5432", "[::1]:5433", "%2Frun%2Fpg")
    assert (uri.path, uri.options) == ("/db", {"target_session_attrs": "any"})
    assert parse_uri("postgresql:///db?host=/run/pg").hosts == ()
    assert parse_uri("postgresql://").path == ""
    assert parse_uri("PostgreSQL://h").scheme == "postgresql"
    assert parse_uri("postgres://:@h").user == ""
    assert parse_uri("postgres://u@/db").password is None


@pytest.mark.parametrize(
    "uri",
    [
        "postgres://u:p/SECRET@h/db",
        "postgres://u:p?SECRET=SECRET@h/db",
        "postgres://u:p#SECRET@h/db",
        "postgres://u:p@SECRET@h/db",
        "postgres://u:SECRET",
        "postgres://u:SECRET?SECRET=1",
        "postgres://u:SECRET?SECRET=1&SECRET=2",
        "postgres://u:SECRET%40h/db",
        "postgres://u%3ASECRET%40h/db",
        "postgres://u:SECRET%zz@h/db",
        "postgres://u:SECRET%FF@h/db",
        "postgres://u:SECRET@h/db?a=1&a=2",
        "postgres://u:SECRET@h/db?a",
        "postgres:/u:SECRET@h/db",
        "postgres:u:SECRET@h/db",
        "u:SECRET@h/db",
        " postgres://u:SECRET@h/db",
        "postgres://u:SECRET@h/db#x",
        "host=h password=SECRET",
        "postgres%3A%2F%2Fu%3ASECRET%40h",
    ],
)
def test_g11_malformed_uri_is_refused_without_its_password(uri: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_uri(uri)
    assert "SECRET" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


# --- masking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/me@corp/x.db?a=1", "sqlite:////home/me@corp/x.db?a=1"),
        ("postgres://u:p@h1:5432,h2/db?sslmode=require", "postgres://u:***@h1:5432,h2/db?sslmode=require"),
        ("postgres://u:@h", "postgres://u:***@h"),
        ("postgres://u@[::1]:1/db", "postgres://u@[::1]:1/db"),
        ("postgres://h:5432/db", "postgres://h:5432/db"),
        ("postgres:///db?user=u&password=x&port=1", "postgres:///db?user=u&password=***&port=1"),
        ("postgres:///db?PassWord=x", "postgres:///db?PassWord=***"),
        ("postgres:///db?pasword=x&toekn=y", "postgres:///db?pasword=***&toekn=***"),
        (
            "postgres:///db?sslmode=a&pool_min_size=1&schema=b&passengers=2&sslrootcert=c&dbname=d",
            "postgres:///db?sslmode=a&pool_min_size=1&schema=b&passengers=***&sslrootcert=c&dbname=d",
        ),
        ("postgres:///db?sslpassword=x;a=1", "postgres:///db?sslpassword=***;a=1"),
        ("postgres:///db?pass%77ord=x", "postgres:///db?***"),
        ("postgres:///db?options=-c%20secret%3Dx", "postgres:///db?options=***"),
        ("postgres://u@ha=1&password=x", "postgres://u@***"),
        ("postgres://u%3Ax@h", "postgres://u:***@h"),
        ("postgres://u%253Ax@h", "postgres://u:***@h"),
        ("postgres://u%3Ax:y@h", "postgres://u:***@h"),
        ("postgres://us%40er@h", "postgres://us%40er@h"),
        ("postgres://u/x%40h/db", "postgres://u/***"),
        ("postgres:///db/password=x", "postgres:///***"),
        ("postgres://h:1/db?application_name=a%40b", "postgres://h:1/db?application_name=a%40b"),
        ("postgres://h:1/db?next=x://u:p%40b", "postgres://h:1/db?next=***"),
        ("memory://", "memory://"),
        ("x.db", "x.db"),
        ("not a uri", "not a uri"),
        ("postgres:u:p@h", "postgres:***"),
        ("", ""),
    ],
)
def test_g11_shown_uri(uri: str, shown: str) -> None:
    assert mask_uri(uri) == shown


def test_g11_parsed_uri_shows_no_password() -> None:
    uri = parse_uri("postgres://u:SECRET@h/db?password=SECRET")
    assert isinstance(uri, StateUri)
    assert uri.password == "SECRET"
    assert f"{uri} {uri!r} {[uri]}" == (
        "postgres://u:***@h/db?password=*** StateUri('postgres://u:***@h/db?password=***') "
        "[StateUri('postgres://u:***@h/db?password=***')]"
    )


# A password holds capital letters and nothing else of the URI does: one capital letter in what is shown is a leak.
CAPITALS = "ABCXYZ"
LOWER = st.text("abcdefghij0123456789", min_size=1, max_size=6)
PASSWORDS = st.tuples(
    st.sampled_from(CAPITALS), st.text(CAPITALS + "1:/?#[]@!$&'()*+,;=%\\\" é", min_size=1, max_size=12)
).map("".join)


def _encoded(password: str, times: int) -> str:
    for _ in range(times):
        password = quote(password, safe="")
    return password


@st.composite
def uris_with_password(draw: st.DrawFn) -> str:
    password = _encoded(draw(PASSWORDS), draw(st.integers(0, 2)))
    user, host, path = draw(LOWER), draw(LOWER), draw(st.sampled_from(["", "/", "/db", "/a/b", "//abs", "/a:b"]))
    host += draw(st.sampled_from(["", ":1", ":1,other:2"]))
    query = draw(st.sampled_from(["", "?", "?a=1", "?sslmode=require&b=2"]))
    scheme = draw(st.sampled_from(["postgres", "postgresql+asyncpg", "sqlite", "x"]))
    if draw(st.booleans()):
        return f"{scheme}://{user}:{password}@{host}{path}{query}"
    name = draw(st.sampled_from(["password", "passwd", "sslpassword", "pwd", "client_secret", "token", "p%61ssword"]))
    return f"{scheme}://{user}@{host}{path}?a=1&{name}={_encoded(password, 1)}"


def _leaks(shown: str) -> bool:
    return any(letter in shown for letter in CAPITALS)


@settings(deadline=None)
@given(uris_with_password())
def test_g11_no_password_is_shown(uri: str) -> None:
    assert not _leaks(mask_uri(uri))
    try:
        parsed = parse_uri(uri)
        said = f"{parsed} {parsed!r}"
    except ConfigurationError as error:
        said = str(error).replace("UTF-8", "").replace("NUL", "").replace("%2F", "")
    assert not _leaks(said)


@settings(deadline=None)
@given(uris_with_password(), st.data())
@example("postgres://a:XXXX@h/db", None)
def test_g11_no_password_of_a_malformed_uri_is_shown(uri: str, data: st.DataObject | None) -> None:
    """One character is lost, doubled or a space; only without its colon, a password is a part of the user's name."""
    if data is not None:
        colon = uri.find(":", uri.index("://") + 1)
        places = [place for place, char in enumerate(uri) if not char.isupper() and place != colon]
        place = data.draw(st.sampled_from(places))
        uri = uri[:place] + data.draw(st.sampled_from(["", uri[place] * 2, " "])) + uri[place + 1 :]
    assert not _leaks(mask_uri(uri)), uri


@settings(deadline=None)
@given(st.text())
@example("%25" * 50 + "40")
@example("postgres://[@:")
def test_g11_masking_takes_any_text(text: str) -> None:
    mask_uri(text)
    mask_text(text)
    mask_uri(f"postgres://{text}")


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "can't connect to ", "DSN='", "(see ", "from="]), uris_with_password())))
def test_g11_no_password_in_a_longer_message(parts: list[tuple[str, str]]) -> None:
    message = "\n".join(f"{words.lower()}{uri}: refused" for words, uri in parts)
    assert not _leaks(mask_text(message))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no route to postgres://u:p@h/db, sorry", "no route to postgres://u:***@h/db, sorry"),
        ("postgres://a:b@c/d or 'postgres://e:f@g/h'", "postgres://a:***@c/d or 'postgres://e:***@g/h'"),
        ("postgres://u:two words@h/db failed", "postgres://u:***@h/db failed"),
        ("host=h password='two words' port=1", "host=h password=*** port=1"),
        ("host=h password=x, port=1", "host=h password=***, port=1"),
        ('password authentication failed for user "x"', 'password authentication failed for user "x"'),
        ("see https://example.com/a?b=c\nnext line", "see https://example.com/a?b=c\nnext line"),
    ],
)
def test_g11_shown_message(text: str, shown: str) -> None:
    assert mask_text(text) == shown
