"""What the commands share: streams, signals and the way out; arguments; the launcher's environment,
or one in its place; errors as one line."""

import argparse
import getpass
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from recipes.characters import escape
from recipes.config.arguments import check_arguments
from recipes.config.lookup import SettingsError
from recipes.config.paths import expand_path
from recipes.stop import INTERRUPTED, Interruption
from recipes.streams import Streams

_EXPLAINED = (ValueError, NotImplementedError, FloatingPointError, OSError)
"""Errors whose message says it all. Any other is a bug."""

_PATIENCE_S = 15.0
"""More than ranks that start together are apart."""

_READ_ANYWAY = (
    ("LOG_RANK", "ranks separated by commas", r"\d+(,\d+)*"),
    ("SLURM_RESTART_COUNT", "a number", r"\d+"),
)
"""Environment variables that a run reads besides the launcher's, what they must be, and how that is
spelt."""

_LAUNCHER_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def run_command(main: Callable[[Sequence[str]], int], *, is_output_result: bool = False) -> int:
    """Run `main` with the command line's arguments, as every command does; the exit code.

    What cannot be written to stdout or stderr is dropped, and the command goes on; but with
    is_output_result, where stdout is all that the command is for, it ends: quietly if the reader is
    gone, as programs do whom SIGPIPE ends, else with an error. A signal to stop raises
    KeyboardInterrupt in `main`, unless that takes signals itself; ended by it, the command says so
    in one line, with the exit code INTERRUPTED.
    """
    streams = Streams(is_output_result)
    _name_user()
    interruption = Interruption()
    try:
        with interruption:
            exit_code = main(sys.argv[1:])
    except SystemExit as end:  # of argparse, and of the streams
        exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        # Libraries wrap a KeyboardInterrupt in errors of their own.
        if interruption.number is None:
            raise
        name = signal.Signals(interruption.number).name
        line = f"Stopped by {name}. The same command goes on."
        print(line, file=sys.stderr if is_output_result else sys.stdout)
        exit_code = INTERRUPTED
    with suppress(SystemExit):  # streams.exit_code has it
        streams.flush()
    return exit_code if streams.exit_code is None else streams.exit_code


def _name_user() -> None:
    """A container's user may have no name. PyTorch names folders of temporary files by it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which raises ValueError for arguments that are none, for an option given twice
    and for a part of its name."""

    def __init__(self, *, repeatable: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self._repeatable = repeatable

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        check_arguments(sys.argv[1:] if args is None else args, self._repeatable)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        # "argument --output: (x) is no folder." of a type of ours, which says it all.
        option, is_ours, rule = message.removeprefix("argument ").partition(": (")
        raise ValueError(f"{option} ({rule}" if is_ours else f"{message}. See --help.")


def path_text(text: str) -> str:
    """The type of an argument that is a path: a shell leaves `--output=~/x` as it is, and gives
    names with a `$` that are there."""
    if "$" in text and os.path.lexists(text):
        return text
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"({text}) {error}") from None


def path(text: str) -> Path:
    """As `path_text`."""
    return Path(path_text(text))


def folder(text: str) -> Path:
    """As `path`, of a folder that is there."""
    found = path(text)
    if not found.is_dir():
        what = "is a file" if found.exists() else "does not exist"
        raise argparse.ArgumentTypeError(f"({found}) must be a folder, and {what}. Name another.")
    return found


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise SettingsError unless the environment has all that torchrun sets, or no RANK, and what
    else is read of it makes sense."""
    for name, rule, pattern in _READ_ANYWAY:
        value = environment.get(name, "")
        if value and re.fullmatch(pattern, value) is None:
            raise SettingsError(
                f"environment variable {name} ({value}) must be {rule}. Correct or unset it."
            )
    if "RANK" not in environment:
        return
    for name in (*_LAUNCHER_NUMBERS, "MASTER_ADDR"):
        value = environment.get(name, "")
        if not value or (name in _LAUNCHER_NUMBERS and not value.isdecimal()):
            raise SettingsError(
                f"environment variable {name} ({value or 'not set'}) does not go with RANK "
                f"({environment['RANK']}), which is set. Start with torchrun, or unset RANK."
            )
    numbers = {name: int(environment[name]) for name in _LAUNCHER_NUMBERS}
    for name, limit in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if not numbers[name] < numbers[limit]:
            raise SettingsError(
                f"environment variable {name} ({numbers[name]}) must be less than {limit} "
                f"({numbers[limit]}). Start with torchrun, or unset RANK."
            )
    if not 1 <= numbers["MASTER_PORT"] < 2**16:
        raise SettingsError(
            f"environment variable MASTER_PORT ({numbers['MASTER_PORT']}) must be from 1 to 65535. "
            "Start with torchrun, or unset RANK."
        )


def set_single_process_environment() -> None:
    """Set what torchrun would, for a run without it."""
    if "RANK" in os.environ:
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    single = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in single.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"


def report_error(error: BaseException, exit_code: int) -> int:
    """Say what went wrong before the ranks can talk; returns the exit code.

    The ranks of one machine find the same, and its first says it. The others leave it time to:
    torchrun ends them then, and would end that one if they were gone before.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(_PATIENCE_S)
    print_error(error)
    return exit_code


def print_error(error: BaseException) -> None:
    """A user's mistake, or what failed, as one line on stderr; a bug with its traceback."""
    if isinstance(error, _EXPLAINED):
        print(f"error: {describe(error)}", file=sys.stderr)
    else:
        lines = "".join(traceback.format_exception(error)).split("\n")
        print("\n".join(map(escape, lines)), file=sys.stderr, end="")


def describe(error: BaseException) -> str:
    """One line, whatever names or bytes of a file the message quotes."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}."  # not "[Errno 13] ..."
    return escape(" ".join(text.split()))
