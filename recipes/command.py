"""What the commands share: the launcher's environment, or one in its place; errors as one line."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping

from recipes.config.settings import SettingsError

_EXPLAINED = (ValueError, NotImplementedError, FloatingPointError, OSError)
"""Errors whose message says it all. Any other is a bug."""

_PATIENCE_S = 15.0
"""More than ranks that start together are apart."""

_LAUNCHER_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise SettingsError unless the environment has all that torchrun sets, or no RANK."""
    if "RANK" not in environment:
        return
    for name in (*_LAUNCHER_NUMBERS, "MASTER_ADDR"):
        value = environment.get(name, "")
        if not value or (name in _LAUNCHER_NUMBERS and not value.isdecimal()):
            raise SettingsError(
                f"environment variable {name} ({value or 'not set'}) does not go with RANK "
                f"({environment['RANK']}), which is set. Start with torchrun, or unset RANK."
            )
    if not int(environment["RANK"]) < int(environment["WORLD_SIZE"]):
        raise SettingsError(
            f"environment variable RANK ({environment['RANK']}) must be less than WORLD_SIZE "
            f"({environment['WORLD_SIZE']}). Start with torchrun, or unset RANK."
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
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        traceback.print_exception(error)
