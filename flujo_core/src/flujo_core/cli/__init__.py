"""How do people at a terminal, and their scripts, look at state and prepare databases? With the ``flujo`` command.

Results go to stdout, messages to stderr. Exit codes:

    0    done
    1    error: one sentence on stderr says what is wrong and what to do
    2    wrong usage: an unknown option, or a value of another kind than the option's
    130  interrupted by Ctrl-C
    141  the reader of stdout went away, such as ``head``

typer and rich are the extra ``cli``, imported here only and not before the command runs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn


def main() -> NoReturn:
    """Run the command that ``sys.argv`` asks for; ends the process with its exit code."""
    try:
        import_module("rich")  # imported late by what follows
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"error: the flujo command needs {error.name}; run: pip install 'flujo-core[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    # Documents hold integers of up to 4,300 digits, whatever limit the environment sets.
    sys.set_int_max_str_digits(0)
    app()
    raise AssertionError("the app ends the process")
