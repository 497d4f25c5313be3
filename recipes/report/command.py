"""Compare finished runs: python scripts/compare_runs.py RUN... --output DIR

Reads each run directory's TensorBoard curves and config.toml, and writes DIR/report.html, which
needs nothing else to be read, DIR/<figure>.png and DIR/comparison.md, which it also prints. Exit
code 0 done, 1 failure, 2 bad usage; what went wrong is one line on stderr that starts with
`error: `.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from recipes.command import ArgumentParser, folder, path, report_error
from recipes.report.markdown import format_report
from recipes.report.report import build_report
from recipes.run.folder import check_is_writable


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code."""
    try:
        given = _parse(arguments)
        report = build_report(given.runs)
        given.output.mkdir(parents=True, exist_ok=True)
        text = format_report(report)
        (given.output / "comparison.md").write_text(text, encoding="utf-8")
        # Here, and not above: only this needs the plotting library.
        from recipes.report.page import write_page

        write_page(report, given.output)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)
    print(text)
    print(f"With figures: {given.output / 'report.html'}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises ValueError for arguments that are none, or without the plotting library."""
    parser = ArgumentParser(prog="compare_runs.py", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("runs", nargs="+", type=folder, metavar="RUN", help="run directory")
    parser.add_argument(
        "--output", type=path, required=True, metavar="DIR",
        help="folder for report.html, its figures and comparison.md",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    check_is_writable(str(given.output), "--output")
    if find_spec("matplotlib") is None:
        raise ValueError(
            'the figures need the package matplotlib. Install "nitp-torchtitan[report]".'
        )
    return given
