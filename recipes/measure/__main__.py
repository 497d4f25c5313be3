"""python -m recipes.measure: scripts/geometry.py where there is no checkout."""

import sys

from recipes.command import run_command
from recipes.measure.command import main

if __name__ == "__main__":
    sys.exit(run_command(main, is_output_result=True))
