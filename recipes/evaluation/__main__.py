"""Benchmarks of exported models and runs, side by side: see recipes/evaluation/command.py."""

import sys

from recipes.evaluation.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
