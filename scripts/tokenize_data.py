"""Tokenize a configuration's documents into Parquet: see recipes/tokenize/command.py."""

import sys

from recipes.tokenize.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
