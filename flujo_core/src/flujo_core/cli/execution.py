"""How does a command use a backend, and what becomes of its errors?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, NoReturn, TypeVar

import typer

from flujo_core.errors import FlujoStateError

from .output import message

if TYPE_CHECKING:
    from flujo_core.backend import StateBackend

Result = TypeVar("Result")

_PATIENCE: Final = 0.5
"""How long an interrupted command takes to close, in seconds."""

UriOption = Annotated[
    str | None,
    typer.Option(
        "--uri",
        metavar="URI",
        help="The database; else FLUJO_STATE_URI, else flujo.toml, else sqlite:///flujo_ops.db.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON instead.")]


ExitCodes = Mapping[type[FlujoStateError], int]
"""Of errors that have one of their own; that of all others is 1."""


def use_backend(
    uri: str | None,
    use: Callable[[StateBackend], Awaitable[Result]],
    *,
    exit_codes: ExitCodes = MappingProxyType({}),
    **settings: object,
) -> Result:
    """The result of ``use``, whose backend has these settings and is closed at the end; an error of ours ends the
    command."""
    with told_errors(exit_codes):
        from flujo_core.opening import open_backend

        async def opened() -> Result:
            backend = open_backend(uri, **settings)
            try:
                result = await use(backend)
            except asyncio.CancelledError:
                # Ctrl-C: whoever pressed it doesn't want to wait for a server that doesn't answer.
                with suppress(TimeoutError, FlujoStateError):
                    await asyncio.wait_for(backend.shutdown(), _PATIENCE)
                raise
            except BaseException:
                await backend.shutdown()
                raise
            await backend.shutdown()
            return result

        return asyncio.run(opened())


@contextmanager
def told_errors(exit_codes: ExitCodes = MappingProxyType({})) -> Iterator[None]:
    """An error of ours becomes one line on stderr and an exit code. Any other exception is a bug and stays one."""
    try:
        yield
    except FlujoStateError as error:
        # Core says where a wrong URI comes from; here "argument" would be the command's.
        fail(str(error).removeprefix("argument: "), exit_codes.get(type(error), 1))


def fail(text: str, code: int = 1) -> NoReturn:
    message(text, label="error", style="bold red")
    raise typer.Exit(code)
