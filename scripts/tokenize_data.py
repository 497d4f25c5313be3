"""Tokenize a configuration's documents into Parquet: see recipes/tokenize/command.py."""

import sys

from recipes.command import run_command
from recipes.tokenize.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
