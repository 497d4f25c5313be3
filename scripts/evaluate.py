"""Benchmarks of exported models and runs, side by side: see recipes/evaluation/command.py."""

import sys
from pathlib import Path

# Python puts this folder first, where lm-eval would find this file as the package evaluate.
sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

from recipes.command import run_command  # noqa: E402
from recipes.evaluation.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_command(main))
