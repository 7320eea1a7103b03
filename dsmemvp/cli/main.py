"""The entry point: one command, its errors in one line, its exit code. The commands themselves are in the
other files of cli/, and `dsmemvp COMMAND --help` explains each."""

import argparse
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TextIO

from dsmemvp.cli import answers, cluster, compare, completion, data, inspect, recipe, runs, weights
from dsmemvp.distributed.launchers import own_rank
from dsmemvp.distributed.stopping import (
    DONE,
    REQUEUE,
    UNEXPECTED,
    USER_ERROR,
    Stopped,
    exit_code,
    leave_word,
    release_signals,
)
from dsmemvp.errors import UserError

LONGEST = 4000
"""Characters of an error."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Errors that a user can mend end in one line on stderr and exit code 1; with DSMEMVP_TRACEBACK
    set, in their traceback. The other exit codes: stopping.py."""
    given = _parsed(arguments)
    warnings.showwarning = _show_warning
    if not given.listens:
        release_signals()
    try:
        given.run(given)
    except Stopped:
        return REQUEUE
    except ModuleNotFoundError as error:  # no other start would find it, so that Slurm must not try again
        leave_word(str(error))
        print(
            f"dsmemvp {_name(given)}: error: {error} in {sys.executable}; `make install` puts all that is needed into"
            " .venv/, under Slurm DSMEMVP_RUN names another environment (docs/cluster.md)",
            file=sys.stderr,
        )
        return USER_ERROR
    except (UserError, OSError) as error:
        if exit_code(error) == USER_ERROR:
            leave_word(_one_line(error))
        if os.environ.get("DSMEMVP_TRACEBACK"):
            raise
        if own_rank(os.environ):
            # if all ranks met the same error the first one says it, and the launcher ends the others meanwhile;
            # a rank that is alone with its error must not stay silent
            time.sleep(3)
        print(f"dsmemvp {_name(given)}: error: {_one_line(error)}", file=sys.stderr, flush=True)
        return exit_code(error)
    except Exception:
        traceback.print_exc()
        return UNEXPECTED
    return DONE


def _one_line(error: BaseException) -> str:
    """Names in an error come out of files, and may hold anything."""
    text = " ".join(str(error).split())
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own in one line for users, those of libraries as Python shows them."""
    own = Path(filename).is_relative_to(Path(__file__).parent.parent) and category is UserWarning
    text = (
        f"dsmemvp: warning: {message}\n" if own else warnings.formatwarning(message, category, filename, lineno, line)
    )
    print(text, file=file or sys.stderr, end="", flush=True)


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    """argparse takes the overrides before an option only; those behind one are found among what it leaves over."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    wrong = [text for text in rest if text.startswith("-") or "overrides" not in given]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        given.overrides = [*given.overrides, *rest]
    return given


def _name(given: argparse.Namespace) -> str:
    return f"{given.command} {given.look}" if given.command == "data" else given.command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsmemvp", description="Memory-space visual prompting on DeepSpeed ZeRO-3.")
    # the deepspeed launcher puts this in front of the program's own arguments
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    # whether the command takes signals as requests to save and end (stopping.listening)
    parser.set_defaults(listens=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for theme in (runs, compare, answers, inspect, recipe, cluster, data, weights, completion):
        theme.add(commands)
    return parser
