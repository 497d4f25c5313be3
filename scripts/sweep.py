"""Train a grid of settings and seeds, and compare: see recipes/sweep/command.py."""

import sys

from recipes.command import run_command
from recipes.sweep.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
