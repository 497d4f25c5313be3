"""The debug recipes, started as users start them, and the export of what they trained."""

import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.gpu_check.section import Section, format_table
from recipes.parity.world import REPOSITORY, Device, kill_group, worker_environment
from recipes.run.curves import Curve, read_curves

CONFIGS = {"dense": "train_configs/debug.toml", "moe": "train_configs/debug_moe.toml"}
SMALL = [
    "--model.num_layers=2", "--nitp.target_layer=1", "--training.steps=12", "--validation.steps=1",
    "--training.global_batch_size=4", "--lr_scheduler.warmup_steps=2", "--metrics.log_freq=3",
]  # fmt: skip
"""Overrides where there is no GPU: the same way with less to compute."""

NTP, NITP = "loss_metrics/ntp_loss", "loss_metrics/nitp_loss"
COLUMNS = {
    "L_NTP, last": (NTP, lambda curve: curve[max(curve)]),
    "L_NITP, last": (NITP, lambda curve: curve[max(curve)]),
    "validation": ("validation_metrics/loss", lambda curve: curve[max(curve)]),
    "step, median (s)": ("time_metrics/end_to_end(s)", lambda c: statistics.median(c.values())),
    "memory, peak (GiB)": ("memory/max_reserved(GiB)", lambda curve: max(curve.values())),
}
RECORDED = "Recorded CUDA graph"
"""TorchTitan's line when it has captured a step."""


def check_recipes(
    section: Section,
    trained: dict[str, Path],
    device: Device,
    num_devices: int,
    folder: Path,
    limit_s: float,
) -> None:
    """Fills the section, and `trained`: the run directory of each recipe that learnt."""
    rows: list[list[str]] = []
    started = time.monotonic()
    for model, config in CONFIGS.items():
        run = folder / model
        more = [] if device == "cuda" else SMALL
        arguments = ["-m", "recipes.train", "--job.config_file", config, *more]
        launcher = [f"--nproc_per_node={num_devices}"] if num_devices > 1 else []
        section.commands.append(
            shlex.join([*(("torchrun", *launcher) if launcher else ("python",)), *arguments])
        )
        command = [*(["-m", "torch.distributed.run", *launcher] if launcher else []), *arguments]
        left_s = limit_s - (time.monotonic() - started)
        code, output, wall_s = run_command(
            [*command, f"--job.dump_folder={run}"], device, max(left_s, 1.0)
        )
        problems = [f"exit code {code}: {last_line(output)}"] if code else []
        if not code:
            curves = read_curves(run)
            problems = find_problems(curves, output, graphs=device == "cuda" and model == "dense")
            figures = {
                name: read(curves[tag]) for name, (tag, read) in COLUMNS.items() if tag in curves
            }
            section.figures[model] = {**figures, "wall (s)": wall_s}
            shown = [section.figures[model].get(name) for name in (*COLUMNS, "wall (s)")]
            rows.append([model, *("-" if value is None else f"{value:.4g}" for value in shown)])
            section.text = format_table(["recipe", *COLUMNS, "wall (s)"], rows)
        if problems:
            section.problems += [f"{model}: {problem}" for problem in problems]
            section.logs[f"recipe-{model}"] = output
        else:
            trained[model] = run


def find_problems(curves: dict[str, Curve], output: str, *, graphs: bool) -> list[str]:
    """What is wrong with a run that ended well."""
    wanted = (NTP, NITP, "grad_norm", *(tag for tag, _ in COLUMNS.values()))
    missing = [tag for tag in dict.fromkeys(wanted) if not curves.get(tag)]
    if missing:
        return [f"not logged: {', '.join(missing)}"]
    problems = []
    for tag in (NTP, NITP, "grad_norm"):
        if not all(map(math.isfinite, curves[tag].values())):
            problems.append(f"{tag} is not finite at every step")
    ntp, nitp = curves[NTP], curves[NITP]
    if not ntp[max(ntp)] < ntp[min(ntp)]:
        problems.append(f"L_NTP did not fall ({ntp[min(ntp)]:.4f} -> {ntp[max(ntp)]:.4f})")
    if not all(0 <= value <= 2 for value in nitp.values()):
        problems.append("L_NITP is not in [0, 2]")
    if graphs and RECORDED not in output:
        problems.append("no step was captured as a CUDA graph, TorchTitan's default")
    return problems


def check_exports(
    section: Section, runs: Mapping[str, Path], device: Device, folder: Path, limit_s: float
) -> None:
    """Export each run and compare stock transformers' logits with our model's."""
    section.not_run = [f"{m}: its training failed" for m in CONFIGS.keys() - runs.keys()]
    started = time.monotonic()
    for model, run in runs.items():
        command = ["scripts/export.py", "--run", str(run), "--output", str(folder / model)]
        section.commands.append(f"python scripts/export.py --run {model} --output DIR")
        left_s = limit_s - (time.monotonic() - started)
        code, output, wall_s = run_command(command, device, max(left_s, 1.0))
        verdict = next((line for line in output.splitlines() if "logits: at most" in line), None)
        if code or verdict is None:
            section.problems.append(f"{model}: exit code {code}: {last_line(output)}")
            section.logs[f"export-{model}"] = output
        else:
            section.figures[model] = {"verdict": verdict.strip(), "wall (s)": wall_s}
            section.text.append(f"* {model}: {verdict.strip()} ({wall_s:.0f} s)")


def run_command(arguments: Sequence[str], device: Device, limit_s: float) -> tuple[int, str, float]:
    """(exit code, output, seconds) of this Python with `arguments`; 124 after `limit_s`."""
    started = time.monotonic()
    own = worker_environment(device) if device == "cpu" else os.environ
    environment = {**own, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
            code = process.returncode
        except subprocess.TimeoutExpired:
            kill_group(process.pid)
            output, _ = process.communicate()
            code, output = 124, f"{output}\nno end within {limit_s:.0f} s"
        except BaseException:
            kill_group(process.pid)  # of a session of its own, which Ctrl-C does not reach
            raise
    return code, output, time.monotonic() - started


def last_line(output: str) -> str:
    """The line that says what failed: the last of `error: `, else the last."""
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])[:300]
