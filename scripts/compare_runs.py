"""Compare finished runs in one report: see recipes/report/command.py."""

import sys

from recipes.report.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
