"""The first signal asks, the second ends."""

import signal
import subprocess
import sys

import pytest

from recipes.stop import SIGNALS, StopRequest

PROGRAM = """
import time
from recipes.stop import StopRequest
with StopRequest() as request:
    print("ready", flush=True)
    while request.signal_name is None:
        time.sleep(0.01)
    print(request.signal_name, flush=True)
    time.sleep({pause})
"""


def start(pause: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(pause=pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_announced(number):
    process = start(pause=0)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, f"{number.name}\n")
    assert err == f"{number.name}: finishing the step, then saving; a second ends at once\n"


@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_at_once(second):
    process = start(pause=600)  # longer than anyone waits
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(second)
    assert process.wait(timeout=10) == -second


def test_outside_the_context_signals_mean_what_they_meant():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
