"""A SLURM array with a task for each run that is not done: each is scripts/train.sbatch."""

import shlex
from pathlib import Path

from recipes.sweep.plan import Plan
from recipes.sweep.runner import LOGS

FILE = "sweep.sbatch"
TRAIN = Path(__file__).parents[2] / "scripts" / "train.sbatch"


def format_array(plan: Plan, num_ranks: int | None) -> str:
    """The script, with train.sbatch's requests. num_ranks: per node; None for all its GPUs.

    Raises ValueError if all runs are done, or this is no checkout.
    """
    trials = [trial for trial in plan.trials if not trial.is_done]
    if not trials:
        raise ValueError("--slurm has nothing to queue: all runs are done. Use --table.")
    if not TRAIN.is_file():
        raise ValueError(f"--slurm needs {TRAIN}. Run it in a checkout.")
    requests = [
        line
        for line in TRAIN.read_text(encoding="utf-8").splitlines()
        if line.startswith("#SBATCH ") and not line.startswith("#SBATCH --output")
    ]
    logs = str(plan.folder / LOGS).replace("%", "%%")
    lines = [
        "#!/bin/bash",
        f"# {len(trials)} runs, each an array task that is queued again until it is done.",
        *requests,
        f"#SBATCH --array=0-{len(trials) - 1}",
        # SLURM's own: "%%" is a percent sign.
        f"#SBATCH --output={shlex.quote(f'{logs}/%x-%A_%a.log')}",
        "",
        'case "$SLURM_ARRAY_TASK_ID" in',
    ]
    for i, trial in enumerate(trials):
        config_file, *overrides = trial.arguments
        arguments = [config_file.partition("=")[2], *overrides]
        lines.append(f"{i}) set -- {shlex.join(arguments)} ;;")
    lines.append("esac")
    if num_ranks is not None:
        lines.append(f"export NPROC_PER_NODE={num_ranks}")
    return "\n".join([*lines, 'exec bash scripts/train.sbatch "$@"', ""])
