"""python -m recipes.export: scripts/export.py where there is no checkout."""

import sys

from recipes.command import run_command
from recipes.export.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
