"""How do authors of backends run the suite without a test file? With the ``flujo-conformance`` command.

Results go to stdout, messages and progress to stderr.
"""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command that ``sys.argv`` asks for; ends the process with its exit code."""
    from .app import app

    # Traces hold integers of up to 4,300 digits, whatever limit the environment sets.
    sys.set_int_max_str_digits(0)
    app()
    raise AssertionError("the app ends the process")
