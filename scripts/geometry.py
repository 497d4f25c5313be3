"""Measure the geometry of a model's hidden states: see recipes/measure/command.py."""

import sys

from recipes.measure.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
