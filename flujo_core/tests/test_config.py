"""Configuration: who decides what, in which order, and how a wrong value is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from throwaway_backend import Settings
from throwaway_plugins import PluginFolder

from flujo_core.config import Configuration, resolve_configuration, settings_from_uri, split_options
from flujo_core.errors import BackendNotInstalledError, ConfigurationError
from flujo_core.settings import BackendSettings
from flujo_core.settings_validation import validate_settings
from flujo_core.uri import parse_uri

PG = "postgres://u:SECRET@h/db"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, no variable set, and the plugins ``sqlite`` and ``postgres``."""
    installed, work = tmp_path / "installed", tmp_path / "project" / "folder"
    installed.mkdir()
    work.mkdir(parents=True)
    plugins = PluginFolder(installed, monkeypatch)
    plugins.plugin("flujo-sqlite", "sqlite")
    plugins.plugin("flujo-postgres", "postgres", "postgresql")
    monkeypatch.chdir(work)
    for name in ("FLUJO_STATE_URI", "FLUJO_AUTO_MIGRATE", "FLUJO_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    return work


def write(folder: Path, text: str, name: str = "flujo.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def setting(configuration: Configuration, name: str) -> tuple[object, str]:
    return getattr(configuration.settings, name), configuration.sources[name]


# --- the place --------------------------------------------------------------------------------------------------------


def test_d1_order_of_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(uri: str | None = None) -> tuple[str, str]:
        configuration = resolve_configuration(uri)
        return configuration.uri, configuration.sources["uri"]

    assert place() == ("sqlite:///flujo_ops.db", "default")
    path = write(folder, 'state_uri = "sqlite:///old.db"')
    assert place() == ("sqlite:///old.db", f"{path} state_uri")
    write(folder, 'state_uri = "sqlite:///old.db"\n[state]\nuri = "sqlite:///file.db"')
    assert place() == ("sqlite:///file.db", f"{path} [state] uri")
    monkeypatch.setenv("FLUJO_STATE_URI", "sqlite:///env.db")
    assert place() == ("sqlite:///env.db", "environment variable FLUJO_STATE_URI")
    assert place("sqlite:///arg.db") == ("sqlite:///arg.db", "argument")


def test_d1_file_is_looked_for_upwards(folder: Path) -> None:
    path = write(folder.parent, '[state]\nuri = "sqlite:///up.db"')
    assert resolve_configuration().sources["uri"] == f"{path} [state] uri"
    (folder / "flujo.toml").mkdir()
    assert resolve_configuration().uri == "sqlite:///up.db"
    (folder / "flujo.toml").rmdir()
    write(folder, "")
    assert resolve_configuration().sources["uri"] == "default"


@pytest.mark.parametrize("absolute", [True, False])
def test_d1_file_of_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool) -> None:
    write(folder, "not toml")
    path = write(folder.parent, '[state]\nuri = "sqlite:///named.db"', "other.toml")
    monkeypatch.setenv("FLUJO_CONFIG_PATH", str(path) if absolute else "../other.toml")
    configuration = resolve_configuration()
    assert configuration.uri == "sqlite:///named.db"
    assert Path(configuration.sources["uri"].removesuffix(" [state] uri")).samefile(path)


@pytest.mark.parametrize("value", ["absent.toml", "", "."])
@pytest.mark.parametrize("uri", [None, PG])
def test_d1_variable_names_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str, uri: str | None) -> None:
    monkeypatch.setenv("FLUJO_CONFIG_PATH", value)
    if uri:
        monkeypatch.setenv("FLUJO_STATE_URI", uri)
    with pytest.raises(ConfigurationError, match=f"FLUJO_CONFIG_PATH names '{value}', which is no file; .*unset it"):
        resolve_configuration()


def test_d1_an_explicit_uri_reads_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "not toml")
    monkeypatch.setenv("FLUJO_CONFIG_PATH", "absent.toml")
    monkeypatch.setenv("FLUJO_STATE_URI", "wrong")
    assert resolve_configuration("sqlite:///x.db").uri == "sqlite:///x.db"


def test_d1_empty_variable_opens_no_other_database(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUJO_STATE_URI", "")
    with pytest.raises(ConfigurationError, match="FLUJO_STATE_URI: the state URI is empty; write"):
        resolve_configuration()
    with pytest.raises(ConfigurationError, match="argument: the state URI is empty"):
        resolve_configuration("")


def test_d1_names_of_variables_are_exact(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("flujo_state_uri", "sqlite:///lower.db")
    monkeypatch.setenv("STATE_URI", "sqlite:///short.db")
    write(folder, 'FLUJO_STATE_URI="sqlite:///dotenv.db"', ".env")
    assert resolve_configuration().sources["uri"] == "default"


def test_d1_a_folder_above_may_not_be_entered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder.parent, "not toml")
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent == folder:
            return is_file(path)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert resolve_configuration().sources["uri"] == "default"


def test_d1_working_directory_is_gone(folder: Path) -> None:
    folder.rmdir()
    assert resolve_configuration().sources["uri"] == "default"


def test_d1_the_scheme_needs_a_backend(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    PluginFolder(tmp_path / "installed" / "nothing", monkeypatch)
    with pytest.raises(BackendNotInstalledError, match="pip install 'flujo-sqlite'"):
        resolve_configuration("sqlite:///x.db")


# --- the settings -----------------------------------------------------------------------------------------------------


def test_d1_order_of_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, f'[state]\nuri = "{PG}?auto_migrate=on"\n[state.postgres]\nauto_migrate = false')
    monkeypatch.setenv("FLUJO_AUTO_MIGRATE", "no")
    configuration = resolve_configuration(settings={"auto_migrate": False})
    assert setting(configuration, "auto_migrate") == (False, "argument")
    assert setting(resolve_configuration(), "auto_migrate") == (True, "option in the URI")
    write(folder, f'[state]\nuri = "{PG}"\n[state.postgres]\nauto_migrate = true')
    variable = "environment variable FLUJO_AUTO_MIGRATE"
    assert setting(resolve_configuration(), "auto_migrate") == (False, variable)
    assert setting(resolve_configuration(PG), "auto_migrate") == (False, variable)
    monkeypatch.delenv("FLUJO_AUTO_MIGRATE")
    write(folder, f'[state]\nuri = "{PG}"\n[state.postgres]\nauto_migrate = false')
    assert setting(resolve_configuration(), "auto_migrate") == (False, f"{path} [state.postgres]")
    assert setting(resolve_configuration(PG), "auto_migrate") == (True, "default")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "PostgreSQL"])
def test_d1_table_of_the_backend(folder: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    path = write(
        folder,
        "[state.postgres]\npool_min_size = 2\npool_max_size = 20\nauto_migrate = false\n"
        "[state.sqlite]\nnonsense = 1\n[state.someone_elses]\nx = 1\n[cost]\nlimit = 3",
    )
    monkeypatch.setenv("FLUJO_STATE_URI", f"{scheme}://h/db")
    configuration = resolve_configuration(settings={"pool_min_size": 3})
    assert setting(configuration, "pool_max_size") == (20, f"{path} [state.postgres]")
    assert setting(configuration, "pool_min_size") == (3, "argument")
    assert setting(configuration, "lock_timeout") == (10.0, "default")
    assert configuration.sources.keys() == configuration.describe().keys()


@pytest.mark.parametrize(
    ("words", "value"),
    [("true True 1 yes YES on oN", True), ("false False 0 no NO off oFF", False)],
)
def test_d1_booleans(folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, value: bool) -> None:
    for word in words.split():
        monkeypatch.setenv("FLUJO_AUTO_MIGRATE", word)
        assert resolve_configuration("sqlite:///x.db").settings.auto_migrate is value
        monkeypatch.delenv("FLUJO_AUTO_MIGRATE")
        assert resolve_configuration(f"sqlite:///x.db?auto_migrate={word}").settings.auto_migrate is value
        assert resolve_configuration("sqlite:///x.db", {"auto_migrate": word}).settings.auto_migrate is value


@pytest.mark.parametrize("word", ["maybe", "", "t", "y", "2", "truee"])
def test_d1_no_boolean(folder: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    expected = f"auto_migrate = '{word}' should be one of true/false, 1/0, yes/no, on/off"
    monkeypatch.setenv("FLUJO_AUTO_MIGRATE", word)
    with pytest.raises(ConfigurationError, match=f"environment variable FLUJO_AUTO_MIGRATE: {expected}"):
        resolve_configuration("sqlite:///x.db")
    monkeypatch.delenv("FLUJO_AUTO_MIGRATE")
    path = write(folder, f'[state.sqlite]\nauto_migrate = "{word}"')
    with pytest.raises(ConfigurationError) as raised:
        resolve_configuration()
    assert str(raised.value) == f"{path} [state.sqlite]: {expected}"


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[state", "can't be read: it is not valid TOML: .*FLUJO_CONFIG_PATH"),
        ('state = "sqlite:///x.db"', "'state' should be a table"),
        ("[[state]]", "'state' should be a table"),
        ("[state]\nuri = 3", r"\[state\] uri should be a string"),
        ("[state.uri]\nx = 3", r"\[state\] uri should be a string"),
        ("state_uri = 3", "state_uri should be a string"),
        (
            '[state]\nurl = "x"',
            r"\[state\]: unknown key 'url'; did you mean 'uri'\? known: uri, and .*\[state.<backend>\]",
        ),
        (
            "[state]\nauto_migrate = true",
            r"unknown key 'auto_migrate'; known: uri, and a backend's settings in its table",
        ),
        (
            "[state.sqlite]\nauto_migrat = true",
            r"\[state.sqlite\]: unknown option 'auto_migrat'; did you mean 'auto_migr",
        ),
        ("[state.sqlite]\nauto_migrate = 2", r"\[state.sqlite\]: auto_migrate = 2 should be one of true/false"),
        ("[state.sqlite]\npool_max_size = true", "pool_max_size = true should be a number, not a boolean"),
        ("[state.sqlite]\npool_max_size = [1]", r"pool_max_size = \[1\] should be a valid integer"),
        ('[state]\nuri = "x.db"', r"\[state\] uri: the state URI 'x.db' has no scheme"),
        ('[state]\nuri = ""', r"\[state\] uri: the state URI is empty"),
    ],
)
def test_d1_wrong_file(folder: Path, text: str, reason: str) -> None:
    write(folder, text)
    with pytest.raises(ConfigurationError, match=rf"flujo\.toml.*{reason}"):
        resolve_configuration()


def test_d1_file_that_can_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "").write_bytes(b'[state]\nuri = "\xff"')
    with pytest.raises(ConfigurationError, match=r"flujo\.toml can't be read: it is not UTF-8"):
        resolve_configuration()

    def refuse(_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tomllib.load", refuse)
    with pytest.raises(ConfigurationError, match=r"flujo\.toml can't be read: Permission denied; correct"):
        resolve_configuration()


def test_d1_table_named_like_the_scheme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "[state.postgresql]\nauto_migrate = false")
    monkeypatch.setenv("FLUJO_STATE_URI", "postgresql://h/db")
    with pytest.raises(ConfigurationError, match=r"stand in the table \[state.postgres\]; rename \[state.postgresql\]"):
        resolve_configuration()


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_d1_one_call_tells_where_each_value_came_from(folder: Path) -> None:
    configuration = resolve_configuration(
        f"{PG}?pool_min_size=2&sslmode=require", {"api_token": "SECRET", "key": "SECRET"}
    )
    shown = configuration.describe()
    assert shown["uri"] == "postgres://u:***@h/db?pool_min_size=2&sslmode=require"
    assert shown["key"] == "***"
    assert (shown["api_token"], shown["auto_migrate"], shown["schema"]) == ("***", "true", "'public'")
    lines = str(configuration).splitlines()
    assert lines[0] == f"uri = {shown['uri']}  (argument)"
    assert "pool_min_size = 2  (option in the URI)" in lines
    assert "api_token = ***  (argument)" in lines
    assert "auto_migrate = true  (default)" in lines
    assert configuration.uri == f"{PG}?pool_min_size=2&sslmode=require"


def test_g11_configuration_shows_no_password(folder: Path) -> None:
    configuration = resolve_configuration(PG, {"api_token": "SECRET", "key": "SECRET", "password": "abc"})
    everything = (
        f"{configuration} {configuration!r} {[configuration]} {configuration.describe()} {configuration.sources}"
    )
    assert "SECRET" not in everything
    assert "abc" not in everything


@pytest.mark.parametrize(
    "uri",
    [
        "postgres://u:SECRET/@h/db",
        f"{PG}?pool_max_size=x",
        f"{PG}?nonsense=1",
        f"{PG}?password=SECRET",
        f"{PG}?api_token=SECRET&replica=postgres://u:SECRET",
        f"{PG}?schema=a&pool_min_size=u:SECRET%2540h",
        "nonsense://u:SECRET@h",
        "u:SECRET@h",
    ],
)
def test_g11_no_password_in_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    for way in ("argument", "variable", "file"):
        if way == "variable":
            monkeypatch.setenv("FLUJO_STATE_URI", uri)
        elif way == "file":
            monkeypatch.delenv("FLUJO_STATE_URI")
            write(folder, f'[state]\nuri = "{uri}"')
        with pytest.raises(Exception, match=r"[a-z]") as raised:
            resolve_configuration(uri if way == "argument" else None)
        error: BaseException | None = raised.value
        while error is not None:
            assert "SECRET" not in f"{error} {error!r} {vars(error)}"
            error = error.__cause__ or error.__context__


def test_g11_no_password_of_a_file_that_is_no_toml(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (f'uri = "{PG}\n', f"uri = {PG}", f'[state]\nuri = "{PG}"\n[state]\n', f'[state]\nuri = "{PG}" x'):
        write(folder, text)
        with pytest.raises(ConfigurationError) as raised:
            resolve_configuration()
        assert "SECRET" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None

    def fail(_: object) -> object:
        raise ValueError(f"an error that quotes {PG}")

    monkeypatch.setattr("tomllib.load", fail)
    with pytest.raises(ConfigurationError, match=r"quotes postgres://u:\*\*\*@h/db; correct it"):
        resolve_configuration()


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"pool_max_sise": 1},
            r"argument: unknown option 'pool_max_sise'; did you mean 'pool_max_size'\? known: api_token",
        ),
        ({"zzz": 1}, "argument: unknown option 'zzz'; known: api_token, auto_migrate, close_timeout"),
        ({"schema_name": "x"}, "unknown option 'schema_name'; did you mean 'schema'"),
        ({"sslmode": "x"}, "'sslmode' is an option of the connection; write it in the URI"),
        ({"pool_max_size": "x"}, "argument: pool_max_size = 'x' should be a valid integer"),
        ({"pool_max_size": True}, "pool_max_size = true should be a number, not a boolean"),
        ({"connect_timeout": False}, "connect_timeout = false should be a number, not a boolean"),
        ({"pool_min_size": -1}, "pool_min_size = -1 should be greater than or equal to 0"),
        ({"lock_timeout": "inf"}, "lock_timeout = 'inf' should be a finite number"),
        ({"lock_timeout": float("nan")}, "lock_timeout = nan should be a finite number"),
        ({"auto_migrate": None}, "auto_migrate = None should be a valid boolean"),
        ({"auto_migrate": 0.5}, "auto_migrate = 0.5 should be one of true/false"),
        ({"password": "SECRET"}, r"argument: password = \*\*\* is not what is expected"),
        ({"key": "SECRET" * 3}, r"argument: key = \*\*\* is not what is expected"),
        ({"key": 3}, r"argument: key = \*\*\* is not what is expected"),
        ({"api_token": 3}, r"api_token = \*\*\* is not what is expected"),
        ({"pool_min_size": 9, "pool_max_size": 3}, "^pool_max_size should be at least pool_min_size$"),
        ({"a": 1, "pool_min_size": True}, "unknown option 'a'.*; argument: pool_min_size = true should be a number"),
        ({"pool_min_size": "x", "lock_timeout": "y"}, "argument: lock_timeout = 'y' .*; argument: pool_min_size = 'x'"),
    ],
)
def test_d1_wrong_settings(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as raised:
        validate_settings(Settings, values)
    assert "SECRET" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_d1_text_becomes_the_type_of_the_setting() -> None:
    values = {"pool_max_size": "5", "lock_timeout": "2.5", "replica": "YES", "schema": "s", "max_document_bytes": "1"}
    settings: Any = validate_settings(Settings, values, "option in the URI")
    assert (settings.pool_max_size, settings.lock_timeout, settings.replica) == (5, 2.5, True)
    assert (settings.schema_name, settings.max_document_bytes) == ("s", 1)
    assert validate_settings(Settings, {"replica": 1, "pool_max_size": None}).replica is True


def test_d1_settings_of_a_backend_made_directly() -> None:
    uri = parse_uri(f"{PG}?pool_min_size=2&pool_max_size=9&sslmode=require&connect_timeout=3")
    settings: Any = settings_from_uri(Settings, uri, {"pool_max_size": 4})
    assert (settings.pool_min_size, settings.pool_max_size, settings.connect_timeout) == (2, 4, 3.0)
    assert split_options(Settings, uri)[1] == {"sslmode": "require"}
    with pytest.raises(ConfigurationError, match="option in the URI: pool_min_size = 'x'"):
        settings_from_uri(Settings, parse_uri(f"{PG}?pool_min_size=x"))


def test_d2_unknown_option_of_a_uri_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigurationError, match=r"unknown option 'slmode'; did you mean 'sslmode'.*auto_migrate.*sslmode"
    ):
        split_options(Settings, parse_uri(f"{PG}?slmode=require"))
    with pytest.raises(ConfigurationError, match="unknown option 'sslmode'; known: auto_migrate, close_timeout"):
        split_options(BackendSettings, parse_uri("sqlite:///x.db?sslmode=require"))


def test_a_folder_of_migrations_counts_from_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flujo.toml").write_text('[state]\nuri = "sqlite:///x.db"\n[state.sqlite]\nmigrations_dir = "own"\n')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert resolve_configuration().settings.migrations_dir == tmp_path / "own"
    assert resolve_configuration("sqlite:///x.db?migrations_dir=own").settings.migrations_dir == Path("own")
