"""Compare finished runs: python scripts/compare_runs.py RUN... --output DIR

Reads each run directory's TensorBoard curves and writes DIR/comparison.md, which it also prints.
"""

import argparse
import statistics
import sys
from pathlib import Path

from recipes.machine import describe_machine
from recipes.run.curves import Curve, read_curves

NTP, NITP = "loss_metrics/ntp_loss", "loss_metrics/nitp_loss"
STEP_TIME, VALIDATION = "time_metrics/end_to_end(s)", "validation_metrics/loss"


def read_run(run: Path) -> dict[str, Curve]:
    """Its curves. Raises ValueError if it has none."""
    curves = read_curves(run)
    if NTP not in curves:
        raise ValueError(
            f"{run} has no TensorBoard curves. Give a run directory (job.dump_folder)."
        )
    return curves


def compare(runs: dict[str, dict[str, Curve]], num_rows: int = 12) -> str:
    """Markdown: the loss curves side by side at common steps, then one line of figures a run."""
    steps = sorted(set.intersection(*(set(curves[NTP]) for curves in runs.values())))
    steps = sorted({steps[round(i * (len(steps) - 1) / (num_rows - 1))] for i in range(num_rows)})
    columns = [
        (f"{name} {label}", curves[tag])
        for name, curves in runs.items()
        for label, tag in (("NTP", NTP), ("NITP", NITP))
        if tag in curves
    ]
    lines = ["| step | " + " | ".join(name for name, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for step in steps:
        cells = (f"{curve[step]:.3f}" if step in curve else "-" for _, curve in columns)
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    lines += ["", "| run | validation NTP | NITP least, then most | step time, median (s) |"]
    lines.append("|---|---|---|---|")
    for name, curves in runs.items():
        validation = curves.get(VALIDATION)
        lines.append(
            f"| {name} | {f'{validation[max(validation)]:.4f}' if validation else '-'} "
            f"| {_phases(curves.get(NITP))} "
            # The first logged step also starts up.
            f"| {statistics.median(list(curves[STEP_TIME].values())[1:]):.3f} |"
        )
    return "\n".join([*lines, "", f"Machine: {describe_machine()}.", ""])


def _phases(nitp: Curve | None) -> str:
    """Phases I and II of the method, the fall to a minimum and then the hump: where the largest
    rise of the loss begins and ends."""
    if nitp is None:
        return "-"
    least = start = hump = min(nitp)
    for step in sorted(nitp):
        if nitp[step] <= nitp[least]:
            least = step
        if nitp[step] - nitp[least] > nitp[hump] - nitp[start]:
            start, hump = least, step
    if start == hump:
        return f"{nitp[least]:.3f} at step {least}, no rise"
    return f"{nitp[start]:.3f} at step {start}, {nitp[hump]:.3f} at step {hump}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--output", type=Path, required=True, help="folder for comparison.md")
    arguments = parser.parse_args()
    try:
        text = compare({run.name: read_run(run) for run in arguments.runs})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "comparison.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
