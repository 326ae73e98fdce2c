"""How a command ends: an exit code, words for people on stderr, and with --json an answer for machines on stdout."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from storage.errors import ConfigurationError, LucencyError

DONE, FAILED, BAD_USAGE, ALARM = 0, 1, 2, 3

_INTERRUPTED = "Interrupted. Finished shards are kept: the same command goes on where this one stopped."
_ROOMS = ("storage", "tasks", "workflows")

Command = Callable[..., int | None]


def command(function: Command) -> Callable[..., None]:
    """Turn what a command returns or raises into an exit code and, with --json, a machine's answer."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        with _failures(as_json=options.get("as_json", False)):
            sys.exit(function(*arguments, **options) or DONE)

    return run


@contextmanager
def _failures(*, as_json: bool) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        _fail(str(error), BAD_USAGE, as_json=as_json)
    except LucencyError as error:
        _fail(str(error), FAILED, as_json=as_json)
    except KeyboardInterrupt:
        _fail(_INTERRUPTED, FAILED, as_json=as_json)
    except click.ClickException:
        raise
    except Exception as error:
        _fail(_unexpected(error), FAILED, as_json=as_json)


def _fail(message: str, code: int, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"state": "failed", "error": message, "exit_code": code}))
    click.echo(f"lucency: {message}", err=True)
    sys.exit(code)


def _unexpected(error: Exception) -> str:
    """Class and place of a fault in our code. Its text stays out: a library may have put a file's name in it."""
    if os.environ.get("LUCENCY_TRACEBACK"):
        return "".join(traceback.format_exception(error)).rstrip()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return (
        f"unexpected {type(error).__name__}{place}. This is a fault in Lucency, and the run can be resumed. "
        "LUCENCY_TRACEBACK=1 shows everything; that may name files of the archive, so read it before you share it."
    )


def _is_ours(filename: str) -> bool:
    root = Path(__file__).parent.parent
    return any(Path(filename).is_relative_to(root / room) for room in _ROOMS)
