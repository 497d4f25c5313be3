"""Runs training cases in worlds of real ranks and yields what each computed.

Importing torch and torchtitan costs seconds a process: one worker process imports them once and
starts the ranks of every case, so that cases share the import and nothing else.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

REPOSITORY = Path(__file__).resolve().parents[2]

Device = Literal["cpu", "cuda"]
Layout = tuple[int, Sequence[str]]
"""(number of ranks, overrides that spread the training over them)."""


@dataclass
class Case:
    """One short training run."""

    name: str
    config: str
    """TOML file, relative to the repository."""

    overrides: list[str] = field(default_factory=list)
    num_steps: int = 3
    validate: bool = False
    """Whether to validate after the last step."""

    legs: list[Layout] = field(default_factory=lambda: [(1, [])])
    """Layouts that train equal shares of the steps; each continues from the checkpoint of the one
    before, in a world of its own, and must find there what that one had."""

    keeps_state: bool = False
    """Whether the result has the state at the end: three times the model."""

    save: bool = False
    """Whether to write a checkpoint after the last step."""

    is_plain: bool = False
    """TorchTitan's own Trainer on the same configuration, never seen by `with_nitp`."""

    masks_prompts: bool = False
    """Whether labels at the beginning of rows are ignored (see masking.py)."""

    start: str | None = None
    """An earlier case whose initial parameters this one takes, whatever its layout draws."""

    probe: str | None = None
    """module:function of what measures each step: trainer -> context manager of its findings."""

    runner: str = "recipes.parity.rank:run_leg"
    """module:function of what one rank does: (case, leg, folder, scratch) -> its part of Result."""


@dataclass
class Result:
    """What the ranks computed, gathered; gradients, parameters and state are whole tensors."""

    metrics: list[dict[str, float]]
    """Logged metrics, one dictionary a step, of the rank that has the loss."""

    grads: dict[str, torch.Tensor]
    """Gradients of the first step, before clipping, by name of the parameters that have one."""

    initial: dict[str, torch.Tensor]
    """Initial parameters as the layout drew them."""

    state: dict[str, torch.Tensor]
    """Model and optimizer after the last step, by their names in a checkpoint; empty unless the
    case keeps it."""

    batches: list[dict[str, torch.Tensor]]
    """Rank 0's batches of the first step."""

    num_accumulated: int
    """Batches that each data-parallel rank accumulates in a step."""

    validation: dict[str, float]

    probes: list[Any]
    """Findings of the case's probe on rank 0: one entry a step, and one of the validation."""


@dataclass
class Failure:
    """The first rank that failed or hung."""

    case: str
    rank: int
    num_ranks: int
    error: str
    """One line."""

    log: str
    """The end of the rank's output."""

    is_out_of_time: bool = False
    """Whether the run was not begun, or not ended, before the deadline."""

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.num_ranks}: {self.error}"


def run_world(
    cases: list[Case], world_sizes: tuple[int, ...], timeout_s: float = 300
) -> dict[tuple[str, int], Result]:
    """Every case on every number of ranks, by (name, number of ranks). A world has `timeout_s`.

    A failing or hanging rank fails the call with its number and the end of its log.
    """
    results = {}
    for size in world_sizes:
        sized = [replace(case, legs=[(size, [])]) for case in cases]
        for case, result in run_cases(sized, timeout_s=timeout_s):
            assert isinstance(result, Result), f"{case.name}: {result}\n{result.log}"
            results[case.name, size] = result
    return results


def run_cases(
    cases: Sequence[Case],
    *,
    device: Device = "cpu",
    timeout_s: float = 300,
    deadline_s: float | None = None,
) -> Iterator[tuple[Case, Result | Failure]]:
    """Each case as soon as it is done, in order. One world has `timeout_s`; what is not done at
    `deadline_s` (as time.time() counts) ends as a failure that `is_out_of_time`.

    A case that fails does not stop the others, except those that start from it.
    """
    assert len({case.name for case in cases}) == len(cases), "names of cases must differ"
    with tempfile.TemporaryDirectory() as folder:
        limits = {"timeout_s": timeout_s, "deadline_s": deadline_s}
        with _worker(cases, folder, device, limits) as done:
            for case in cases:
                outcome = json.loads(next(done))
                if outcome is not None:
                    yield case, Failure(**outcome)
                else:
                    path = Path(folder, f"{case.name}.pt")
                    # Mapped, so that many large results need no memory; the file lives as long.
                    yield case, Result(**torch.load(path, weights_only=True, mmap=True))


@contextmanager
def _worker(
    cases: Sequence[Case], folder: str, device: Device, limits: dict[str, float | None]
) -> Iterator[Iterator[str]]:
    """The lines that the worker process writes, one a case; it and its ranks end with the block."""
    spec, log = Path(folder, "cases.json"), Path(folder, "worker.log")
    spec.write_text(json.dumps({"cases": [asdict(case) for case in cases], **limits}))
    command = [sys.executable, "-m", "recipes.parity.worker", str(spec), folder]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=worker_environment(device),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def lines() -> Iterator[str]:
        assert process.stdout is not None
        yield from process.stdout
        raise RuntimeError(f"the worker process has ended:\n{log.read_text()[-4000:]}")

    try:
        yield lines()
    finally:
        kill_group(process.pid)  # the worker and its ranks
        process.wait()


def kill_group(pid: int) -> None:
    """End the process that was started in a session of its own, and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def worker_environment(device: Device) -> dict[str, str]:
    """Of the worker process and, with their place in the world added, of its ranks."""
    if device == "cpu":
        # Without a visible device recipes.platform takes the CPU's place.
        return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    # Asked through NVML whether it is there, CUDA stays untouched in the worker, and ranks can be
    # forked from it.
    return {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def relative_difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64; 0 if both are 0."""
    value, reference = value.double(), reference.double()
    difference = (value - reference).norm()
    return (difference / reference.norm()).item() if difference else 0.0
