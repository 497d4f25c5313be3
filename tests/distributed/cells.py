"""Cells with bounds of their own, by precision: short runs against a run of another precision."""

from typing import NamedTuple

import pytest

from recipes.parity.world import Case, Result, relative_difference, run_world

MODELS = {"dense": "train_configs/debug.toml", "moe": "train_configs/debug_moe.toml"}
SMALL = [
    "--training.seq_len=256", "--training.local_batch_size=1", "--training.global_batch_size=4",
    "--model.num_layers=3", "--nitp.target_layer=1", "--validation.enable=false",
]  # fmt: skip
LOSSES = ("global_avg_loss", "ntp_loss", "nitp_loss")


class Cell(NamedTuple):
    """A technique, and how near its runs must come to the reference."""

    ranks: int
    overrides: list[str]
    loss: float = 1e-5
    """Largest relative difference of total, NTP and NITP loss, over all steps."""

    gradient: float = 1e-5
    """Largest relative difference of any gradient of the first step (norm over norm)."""

    reason: str = "float32 sums in another order"
    """Why the two numbers are what they are."""


def run_cells(cells: dict[tuple[str, str], Cell]) -> dict[tuple[str, str], Result]:
    """Three steps of every (model, name)."""
    by_ranks: dict[int, list[Case]] = {}
    for (model, name), cell in cells.items():
        overrides = [*SMALL, *cell.overrides]
        case = Case(f"{model} {name}", MODELS[model], overrides, num_steps=3)
        by_ranks.setdefault(cell.ranks, []).append(case)
    results = {}
    for ranks, cases in by_ranks.items():
        for (case_name, _), result in run_world(cases, (ranks,)).items():
            model, _, name = case_name.partition(" ")
            results[model, name] = result
    return results


def check(cell: Cell, reference: Result, result: Result) -> None:
    for step, (a, b) in enumerate(zip(reference.metrics, result.metrics, strict=True), start=1):
        for loss in LOSSES:
            key = f"loss_metrics/{loss}"
            assert b[key] == pytest.approx(a[key], rel=cell.loss), f"{loss} at step {step}"
    assert result.grads.keys() == reference.grads.keys()
    for parameter, grad in reference.grads.items():
        assert relative_difference(result.grads[parameter], grad) < cell.gradient, parameter
