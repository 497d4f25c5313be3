"""An export killed at any of its calls leaves nothing that looks finished."""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from recipes.export.command import main
from tests.integration.export_runs import DENSE, save_run
from tests.waiting import DEADLINE_S

pytestmark = pytest.mark.slow

# 23 million parameters: most of the time goes to reading and writing.
OVERRIDES = ["--model.dim=512", "--model.ffn_dim=1024", "--training.seq_len=64"]


def export(arguments: list[str], num_calls: Any, kill_at: int | None) -> None:
    """Count into `num_calls` the C functions called since the first folder was made, such as reads,
    writes and renames; die by SIGKILL at the call of that number."""
    torch.set_num_threads(1)  # a fork has none of its parent's threads

    def count(frame: FrameType, event: str, function: object) -> None:
        if event == "c_call" and (num_calls.value or function is os.mkdir):
            num_calls.value += 1
            if num_calls.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    main(arguments)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_twenty_kills_never_leave_half_a_folder(tmp_path):
    save_run(tmp_path / "run", DENSE, OVERRIDES)
    place = tmp_path / "place"
    output = place / "out"
    arguments = ["--run", str(tmp_path / "run"), "--output", str(output), "--verify", "keys"]
    fork = multiprocessing.get_context("fork")  # imports once, not twenty times

    def run(kill_at: int | None) -> int:
        """The number of calls."""
        num_calls = fork.Value("q", lock=False)
        process = fork.Process(target=export, args=(arguments, num_calls, kill_at))
        process.start()
        process.join(DEADLINE_S)
        assert process.exitcode in (0, -signal.SIGKILL)
        return num_calls.value

    num_calls = run(kill_at=None)
    whole = read(output)
    assert len(whole) == 8
    leftovers = 0
    random.seed(0)
    for _ in range(20):
        for path in output.iterdir() if output.exists() else ():
            path.unlink()
        if output.exists():
            output.rmdir()
        run(kill_at=random.randrange(1, num_calls))
        assert {path.name for path in place.iterdir()} <= {"out", ".out.partial"}
        assert not output.exists() or read(output) == whole
        leftovers += (place / ".out.partial").exists()
    assert leftovers >= 5, "the kills must have hit exports at work"
    if not output.exists():
        run(kill_at=None)
    assert read(output) == whole and [path.name for path in place.iterdir()] == ["out"]
