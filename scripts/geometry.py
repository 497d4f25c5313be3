"""Measure the geometry of a model's hidden states: see recipes/measure/command.py."""

import sys

from recipes.command import run_command
from recipes.measure.command import main

if __name__ == "__main__":
    sys.exit(run_command(main, is_output_result=True))
