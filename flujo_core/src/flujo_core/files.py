"""Which file does a caller mean, who opens a backend that keeps its state in one?"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import ConfigurationError
from .uri import mask_uri

_ADVICE = "open memory:// for state in the memory of this process"


def absolute_file(path: str | os.PathLike[str], example: str) -> Path:
    """The path, absolute from the working directory of now; the disk isn't looked at.

    ``example`` is a URI for messages, such as ``sqlite:///file.db``. Raises `ConfigurationError` for ``:memory:``, a
    URI, a folder, ``~``, and for what can't name a file.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigurationError(f"path is {path!r}, not the path of a file; give a str or a Path")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\x00" in text:
        raise ConfigurationError(f"path is {text!r}, not the path of a file; give a str or a Path")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ConfigurationError(f"path is {text!r}, which no file can be called; remove the surrogates") from None
    if text == ":memory:":
        raise ConfigurationError(f"path is ':memory:'; {_ADVICE}")
    if isinstance(path, str) and re.match("file:|[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ConfigurationError(
            f"path is the URI {mask_uri(text)!r}; give the path of a file, {example}, or use open_backend; {_ADVICE}"
        )
    if text.endswith(("/", os.sep)) or Path(text).name in {"", ".", ".."}:
        raise ConfigurationError(f"path is the folder {text!r}; add the name of a file")
    if text.startswith("~/"):
        raise ConfigurationError(f"path is {text!r}, and a '~' is not expanded; give Path(…).expanduser()")
    try:
        return Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would look at the disk
    except FileNotFoundError:
        raise ConfigurationError(
            f"path is {text!r}, and the working directory is gone; change to another or give the whole path"
        ) from None
