"""What the commands share: errors as one line, and a process group of one without torchrun."""

import os
import socket
import sys
import time
import traceback

_EXPLAINED = (ValueError, NotImplementedError, FloatingPointError, OSError)
"""Errors whose message says it all. Any other is a bug."""

_PATIENCE_S = 15.0
"""More than ranks that start together are apart."""


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


def describe_single_process() -> None:
    """What torchrun would set, for a run without it."""
    if "RANK" in os.environ:
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    single = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in single.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
