"""Waits for events. Nothing else in tests/ sleeps: how fast a machine is decides no test."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

DEADLINE_S = 600.0
"""Of every wait in a test: more than a busy machine takes for anything; only a hang reaches it."""

_POLL_S = 0.01


def wait_until(condition: Callable[[], object], what: Callable[[], str] = lambda: "") -> None:
    """Return when `condition()` is true. A hang is an AssertionError, with what `what()` says."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"no such event in {DEADLINE_S:g} s: {what()}"
        time.sleep(_POLL_S)


def wait_for_state(pid: int, states: str) -> None:
    """Until the kernel gives one of the states of proc(5): S waits, T stopped, Z ended, unread."""
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2][1] in states)


def let_pass(duration_s: float) -> None:
    """Leave the moment of what comes next to chance. No result may depend on it."""
    time.sleep(duration_s)


def block() -> NoReturn:
    """Do nothing until this process is killed, or the one that started it is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
