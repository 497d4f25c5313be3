"""The first signal asks, the second ends."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from recipes.stop import INTERRUPTED, SIGNALS, EndAtOnce, StopRequest
from tests.waiting import DEADLINE_S

REPEATED = (signal.SIGTERM, signal.SIGINT)

PROGRAM = """
from recipes.stop import StopRequest
from tests.waiting import wait_until
with StopRequest() as request:
    print("ready", flush=True)
    wait_until(lambda: request.signal_name)
    print(request.signal_name, flush=True)
    for line in iter(input, "end"):
        print(line, flush=True)
"""

BLOCKED = """
import ctypes
from recipes.stop import EndAtOnce, StopRequest
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with EndAtOnce("here.", lambda: print("cleared", flush=True)):
    {inside}
    print("ready", flush=True)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)
"""
"""Waits for ever in a library, where Python runs no handler."""


def start(program: str = PROGRAM, **options: Any) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ask(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send the first signal, and wait until it is noted."""
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.name}\n"


def is_alive(process: subprocess.Popen) -> bool:
    """Whether it answers, and so has had all signals sent to it."""
    process.stdin.write("alive\n")
    process.stdin.flush()
    return process.stdout.readline() == "alive\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_announced(number):
    process = start()
    ask(process, number)
    _, err = process.communicate("end\n", timeout=DEADLINE_S)
    assert process.returncode == 0
    ending = "; a second ends at once" if number in REPEATED else ""
    assert err == f"{number.name}: finishing the step, then saving{ending}\n"


@pytest.mark.parametrize("second", REPEATED)
def test_the_second_signal_ends_at_once(second):
    process = start()
    ask(process, signal.SIGTERM)
    process.send_signal(second)
    assert process.wait(timeout=DEADLINE_S) == -second


@pytest.mark.parametrize("notice", [number for number in SIGNALS if number not in REPEATED])
def test_a_notice_that_is_repeated_and_the_signal_that_it_announced_end_nothing(notice):
    """A closing terminal sends SIGHUP twice; SLURM sends SIGUSR1, then SIGTERM at the limit."""
    process = start()
    ask(process, notice)
    process.send_signal(notice)
    assert is_alive(process)
    process.send_signal(signal.SIGTERM)
    assert is_alive(process)
    process.send_signal(notice)
    assert is_alive(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=DEADLINE_S) == -signal.SIGTERM


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    process = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    ask(process, signal.SIGTERM)  # the first that it notes
    assert process.communicate("end\n", timeout=DEADLINE_S)[0] == "" and process.returncode == 0


def test_a_terminal_that_is_gone_is_no_reason_to_fail():
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, stderr=writer, text=True
    )
    assert process.stdout.readline() == "ready\n"
    ask(process, signal.SIGHUP)
    process.communicate("end\n", timeout=DEADLINE_S)
    assert process.returncode == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_waits_in_a_library_is_cleared_and_ended_at_once(number):
    process = start(BLOCKED.format(inside="pass"))
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == INTERRUPTED
    assert (out, err) == ("cleared\n", f"Stopped by {number.name} here.\n")


def test_a_stop_request_inside_is_asked_in_its_place():
    """The first signal of each kind: the second SIGTERM is the system's to act on."""
    inside = PROGRAM.replace("with StopRequest()", "with EndAtOnce('', None), StopRequest()")
    process = start(inside.replace("import StopRequest", "import EndAtOnce, StopRequest"))
    ask(process, signal.SIGTERM)
    for number in SIGNALS:
        if number not in REPEATED:
            process.send_signal(number)
            assert is_alive(process)
    process.communicate("end\n", timeout=DEADLINE_S)
    assert process.returncode == 0


def test_outside_the_contexts_signals_mean_what_they_meant():
    before = [signal.getsignal(number) for number in SIGNALS]
    with EndAtOnce("", lambda: None), StopRequest() as request, request:
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
