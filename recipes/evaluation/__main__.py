"""Benchmarks of exported models and runs, side by side: see recipes/evaluation/command.py."""

import sys

from recipes.command import run_command
from recipes.evaluation.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
