"""The parity matrix as Markdown, line by line as cells are done."""

import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from recipes.machine import describe_machine
from recipes.parity.cells import GROUPS, Selected
from recipes.parity.compare import Error, largest
from recipes.parity.matrix import Outcome, compare_cells
from recipes.parity.world import Device

COLUMNS = (
    "technique", "model", "ranks", "loss", "other metrics", "validation", "geometry", "gradient",
    "of", "state", "tolerance", "result",
)  # fmt: skip
SUMMARISED = ("loss", "metric", "validation", "geometry", "gradient", "state")
"""Fields of Comparison."""

LEGEND = """\
Largest relative error against one process (for the baselines: against TorchTitan without NITP in
the same layout). Loss: total, NTP and NITP over three steps; other metrics: every logged mean;
geometry: effective ranks, average cosines, constant loss and skill of every step and validation;
gradient: norm of the difference over norm, of the parameter where it is largest, at step 1; state:
the same of parameters, buffers and optimizer state at the end. Global batch 8, packed documents of
uneven length, masked labels, gradient accumulation of at least 2, float32.
"""


def format_report(
    selected: Sequence[Selected],
    device: Device,
    command: str,
    outcomes: list[Outcome],
    deadline_s: float | None = None,
) -> Iterator[str]:
    """Run the cells and yield the report's lines; the outcomes are added to `outcomes`."""
    started = time.perf_counter()
    yield "# Parity matrix\n"
    yield f"    {command}\n"
    yield f"{_describe_platform(device)}.\n"
    yield LEGEND
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for outcome in compare_cells(selected, device, deadline_s):
        outcomes.append(outcome)
        yield _format_row(outcome)
    yield ""
    yield from _format_notes(outcomes)
    yield from _format_summary(outcomes)
    passed = sum(outcome.has_passed for outcome in outcomes)
    failed = sum(bool(outcome.failure) for outcome in outcomes)
    minutes = (time.perf_counter() - started) / 60
    yield (
        f"{passed} passed, {failed} failed, {len(outcomes) - passed - failed} not run, "
        f"in {minutes:.1f} minutes."
    )


def save_logs(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write the output of each cell that failed to `<folder>/<cell>.log`."""
    paths = []
    for outcome in outcomes:
        if outcome.log:
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{outcome.selected.id}.log")
            paths[-1].write_text(f"{outcome.failure}\n\n{outcome.log}\n", encoding="utf-8")
    return paths


def _describe_platform(device: Device) -> str:
    parts = [describe_machine()]
    if device == "cuda":
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    parts += [f"{name} {version(name)}" for name in ("torch", "torchtitan")]
    return ", ".join([*parts, platform.system()])


def _format_summary(outcomes: list[Outcome]) -> Iterator[str]:
    """A line for each group of cells: its largest errors."""
    yield f"| {' | '.join(('cells', 'passed', 'ranks', *SUMMARISED))} |"
    yield "|---" * (3 + len(SUMMARISED)) + "|"
    for group, cells in GROUPS.items():
        run = [o for o in outcomes if o.selected.name in cells and not o.not_run]
        if not run:
            continue
        ranks = sorted({num_ranks for o in run for num_ranks, _ in o.selected.cell.legs})
        compared = [o.comparison for o in run if o.comparison is not None]
        errors = (largest(getattr(c, field) for c in compared) for field in SUMMARISED)
        yield (
            f"| {group} | {sum(o.has_passed for o in run)} of {len(run)} "
            f"| {', '.join(map(str, ranks))} | {' | '.join(map(_format_error, errors))} |"
        )
    yield ""


def _format_row(outcome: Outcome) -> str:
    name, model, cell, _ = outcome.selected
    comparison, tolerance = outcome.comparison, outcome.tolerance
    errors = ["-"] * 7
    if comparison is not None:
        gradient = comparison.gradient
        errors = [
            *map(_format_error, (comparison.loss, comparison.metric, comparison.validation)),
            _format_error(comparison.geometry),
            _format_error(gradient),
            "-" if gradient is None or gradient.value == 0.0 else gradient.where,
            _format_error(comparison.state),
        ]
    limits = sorted({tolerance.loss, tolerance.tensor, tolerance.metric or tolerance.loss})
    if outcome.not_run:
        verdict = f"not run: {outcome.not_run}"
    else:
        verdict = f"**FAIL** {outcome.failure}" if outcome.failure else "pass"
    ranks = ", ".join(str(num_ranks) for num_ranks, _ in cell.legs)
    cells = [name, model, ranks, *errors, ", ".join(f"{x:g}" for x in limits), verdict]
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in cells)} |"


def _format_error(error: Error | None) -> str:
    return "-" if error is None else f"{error.value:.1e}" if error.value else "0"


def _format_notes(outcomes: list[Outcome]) -> Iterator[str]:
    for tolerance in dict.fromkeys(outcome.tolerance for outcome in outcomes):
        loss, tensor, reason, metric = tolerance
        limits = f"{loss:.2g} of losses, {metric or loss:.2g} of metrics, {tensor:.2g} of tensors"
        yield f"Tolerance {limits}: {reason}.\n"
    margins = [
        findings["margin"]
        for outcome in outcomes
        if outcome.reference is not None
        for findings in outcome.reference.probes
        if findings
    ]
    if margins:
        yield (
            f"Smallest gap between the scores of a chosen and a rejected expert: {min(margins):.1e}"
            ". Smaller differences route no token elsewhere.\n"
        )
