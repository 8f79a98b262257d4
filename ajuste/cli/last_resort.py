"""What no command foresaw: one line for the user, and a log file with the stack trace that the line names.

    error: KeyError: 'columns' (not foreseen); what was done when it happened stands in .state/errors/....log

The log is for its owner alone (0600). Values of environment variables that are named as secrets, passwords in
addresses and keys are replaced before anything is written or shown, and no local variable is kept. A server that is
away, a full disk and a name that is not UTF-8 are named for what they are.
"""

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|WEBHOOK", re.IGNORECASE)
LONGEST = 300  # characters of the error's own words in the line
AWAY = ("Failed to reach API at", "All connection attempts failed", "Connection refused", "Max retries exceeded",
        "Name or service not known", "Can't connect to Server API")  # fmt: skip


def not_utf8(arguments: Sequence[str]) -> str:
    """What is wrong with the first argument that is not UTF-8, "" if all are: sets and runs could not name it."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            return f"`{shown}` is not UTF-8: give the file or folder a name in UTF-8 (`mv` can do that), then try again"
    return ""


def line_of(error: Exception, arguments: Sequence[str]) -> str:
    """The one line for this error; its stack trace is in the log that the line names. Never raises."""
    try:
        where = f"the stack trace is in {_written(error, arguments)}"
    except Exception as other:  # a full disk is no reason to say nothing
        where = f"no log of it could be written ({type(other).__name__})"
    try:
        return f"{_named(error)}; {where}"
    except Exception:
        return f"{type(error).__name__}; {where}"


def _named(error: Exception) -> str:
    """What is wrong and what to do, in one line without secrets."""
    words = _shown(" ".join(str(error).split()))[:LONGEST]
    causes = _causes(error)
    text = " ".join(str(cause) for cause in causes)
    if any(sign in text for sign in AWAY) or any(isinstance(cause, ConnectionError) for cause in causes):
        return f"{_server(text)} does not answer ({words or type(error).__name__}): start it, or correct its address"
    if any(isinstance(cause, UnicodeError) and "surrogates not allowed" in str(cause) for cause in causes):
        return f"a text or a file's name is not UTF-8 ({words}): rename the file, or save the text as UTF-8"
    full = (errno.ENOSPC, errno.EDQUOT)
    if any(isinstance(cause, OSError) and cause.errno in full for cause in causes):
        return f"the disk is full ({words}): make room (`ajuste prune` shows what may go), then run the command again"
    if isinstance(error, OSError) and error.errno:
        return words
    return f"{type(error).__name__}: {words or 'no message'} (this command did not foresee it)"


def _causes(error: BaseException | None) -> list[BaseException]:
    """The error and those that it came from."""
    found: list[BaseException] = []
    while error is not None and error not in found and len(found) < 20:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _server(text: str) -> str:
    """Which of the two servers it was, by the address that the error or the environment names."""
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        address = os.environ.get(variable, "")
        host = re.sub(r"^\w+://(?:[^@/]*@)?", "", address).partition("/")[0].partition(":")[0]
        if host and host in text:
            return f"the server {_shown(address)} of {variable}"
    return "a server"


def _written(error: Exception, arguments: Sequence[str]) -> Path:
    """Write the log; returns its path. Raises OSError."""
    now = datetime.now(UTC)
    trace = "".join(traceback.format_exception(error))
    command = " ".join(["ajuste", *arguments])
    content = _shown(f"{now:%Y-%m-%d %H:%M:%S} UTC\n{command}\nPython {sys.version}\n\n{trace}")
    name = f"{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"
    try:
        from ajuste.core.home import home

        return _private(home() / ".state" / "errors" / name, content)
    except Exception:  # no git, no home, or a disk that takes nothing
        return _private(Path(tempfile.mkdtemp(prefix="ajuste-")) / name, content)


def _private(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content.encode("utf-8", "backslashreplace"))
    return path


def _shown(text: str) -> str:
    """The text without what is secret by its name or by its form."""
    from ajuste.serving.log.credentials import secrets_out

    for name, value in os.environ.items():
        if len(value) >= 4 and SECRET.search(name):
            text = text.replace(value, "***")
    return secrets_out(text).encode("utf-8", "backslashreplace").decode()
