"""The first signal asks, the second ends."""

import signal
import subprocess
import sys

import pytest

from recipes.stop import SIGNALS, StopRequest
from tests.waiting import DEADLINE_S

PROGRAM = """
from recipes.stop import StopRequest
from tests.waiting import block, wait_until
with StopRequest() as request:
    print("ready", flush=True)
    wait_until(lambda: request.signal_name)
    print(request.signal_name, flush=True)
    if {is_busy}:
        block()
"""


def start(is_busy: bool) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(is_busy=is_busy)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_announced(number):
    process = start(is_busy=False)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, f"{number.name}\n")
    assert err == f"{number.name}: finishing the step, then saving; a second ends at once\n"


@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_at_once(second):
    process = start(is_busy=True)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(second)
    assert process.wait(timeout=DEADLINE_S) == -second


def test_outside_the_context_signals_mean_what_they_meant():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
