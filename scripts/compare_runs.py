"""Compare finished runs in one report: see recipes/report/command.py."""

import sys

from recipes.command import run_command
from recipes.report.command import main

if __name__ == "__main__":
    sys.exit(run_command(main, is_output_result=True))
