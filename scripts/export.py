"""Export a training checkpoint to a Hugging Face folder: see recipes/export/command.py."""

import sys

from recipes.command import run_command
from recipes.export.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
