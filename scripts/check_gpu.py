"""Check everything on the GPUs that are here: see recipes/gpu_check."""

import sys

from recipes.command import run_command
from recipes.gpu_check.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
