"""An export killed at any moment leaves nothing that looks finished."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch

from recipes.export.command import main
from tests.integration.export_runs import DENSE, save_run

pytestmark = pytest.mark.slow

# 23 million parameters: most of the time goes to reading and writing.
OVERRIDES = ["--model.dim=512", "--model.ffn_dim=1024", "--training.seq_len=64"]


def export(arguments: list[str]) -> None:
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    main(arguments)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_twenty_kills_never_leave_half_a_folder(tmp_path):
    save_run(tmp_path / "run", DENSE, OVERRIDES)
    place = tmp_path / "place"
    output = place / "out"
    arguments = ["--run", str(tmp_path / "run"), "--output", str(output), "--verify", "keys"]
    fork = multiprocessing.get_context("fork")  # imports once, not twenty times

    def start() -> multiprocessing.Process:
        process = fork.Process(target=export, args=(arguments,))
        process.start()
        return process

    started = time.perf_counter()
    start().join()
    duration = time.perf_counter() - started
    whole = read(output)
    assert len(whole) == 8
    leftovers = 0
    random.seed(0)
    for _ in range(20):
        for path in output.iterdir() if output.exists() else ():
            path.unlink()
        if output.exists():
            output.rmdir()
        process = start()
        time.sleep(random.uniform(0, duration))
        process.kill()
        process.join()
        assert {path.name for path in place.iterdir()} <= {"out", ".out.partial"}
        assert not output.exists() or read(output) == whole
        leftovers += (place / ".out.partial").exists()
    assert leftovers >= 5, "the kills must have hit exports at work"
    if not output.exists():
        start().join()
    assert read(output) == whole and [path.name for path in place.iterdir()] == ["out"]
