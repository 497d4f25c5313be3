"""Runs training cases in worlds of real gloo ranks and returns what each computed.

Importing torch and torchtitan costs seconds a process: one process imports them and forks the
ranks of every case, so that cases share the import and nothing else.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Case:
    """One short training run."""

    name: str
    config: str
    """TOML file, relative to the repository."""

    overrides: list[str] = field(default_factory=list)
    num_steps: int = 3
    validate: bool = False
    save: bool = False
    """Whether to write a checkpoint after the last step."""


@dataclass
class Result:
    """What rank 0 saw; gradients and parameters are whole tensors."""

    metrics: list[dict[str, float]]
    """Logged metrics, one dictionary a step."""

    grads: dict[str, torch.Tensor]
    """Gradients of the first step, before clipping, by parameter name."""

    initial: dict[str, torch.Tensor]
    """Initial parameters."""

    batches: list[dict[str, torch.Tensor]]
    """Rank 0's batches of the first step."""

    validation: dict[str, float]


def run_world(
    cases: list[Case], world_sizes: tuple[int, ...], timeout_s: float = 120
) -> dict[tuple[str, int], Result]:
    """Every case on every number of ranks, by (name, number of ranks). A world has `timeout_s`.

    A failing or hanging rank fails the call with its number and the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "cases.json")
        runs = [[asdict(case), size] for case in cases for size in world_sizes]
        spec.write_text(json.dumps(runs))
        command = [sys.executable, "-m", "tests.distributed.worker", str(spec), folder, timeout_s]
        done = subprocess.run(
            [str(part) for part in command], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {
            (case.name, size): Result(
                **torch.load(Path(folder, f"{case.name}-{size}.pt"), weights_only=True)
            )
            for case in cases
            for size in world_sizes
        }


def relative_difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64."""
    value, reference = value.double(), reference.double()
    return ((value - reference).norm() / reference.norm()).item()
