"""What the commands share: errors as one line, and a process group of one without torchrun."""

import os
import socket
import sys


def report_error(error: BaseException, exit_code: int) -> int:
    """Say a user's mistake, or what failed, as one line on stderr; returns the exit code."""
    if os.environ.get("RANK", "0") == "0":  # the same on every rank: said once
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return exit_code


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
