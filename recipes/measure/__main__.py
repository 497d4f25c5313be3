"""python -m recipes.measure: scripts/geometry.py where there is no checkout."""

import sys

from recipes.measure.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
