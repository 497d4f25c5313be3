"""Compare finished runs: python scripts/compare_runs.py RUN... --output DIR

Reads each run directory's TensorBoard curves and config.toml, and writes DIR/report.html, which
needs nothing else to be read, DIR/<figure>.png and DIR/comparison.md, which it also prints. Exit
code 0 done, 1 failure, 2 bad usage; what went wrong is one line on stderr that starts with
`error: `.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from recipes.command import ArgumentParser, folder, path, report_error
from recipes.report.markdown import HEADING, format_report
from recipes.report.report import build_report
from recipes.run.folder import check_is_writable

_TEXT = "comparison.md"


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code."""
    try:
        given = _parse(arguments)
        report = build_report(given.runs)
        text = format_report(report)
        # Here, and not above: only this needs the plotting library.
        from recipes.report.page import list_files, write_page

        _check_is_ours(given.output, list_files(report))
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / _TEXT).write_text(text, encoding="utf-8")
        write_page(report, given.output)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)
    print(text)
    print(f"With figures: {given.output / 'report.html'}")
    return 0


def _check_is_ours(folder: Path, names: Sequence[str]) -> None:
    """Raise ValueError if a file that would be replaced is there, and is no earlier report's."""
    text = folder / _TEXT
    if text.is_file() and text.read_bytes().startswith(HEADING.encode()):
        return
    for name in (_TEXT, *names):
        if (folder / name).exists():
            raise ValueError(
                f"--output ({folder}) has a {name} that no earlier report wrote. Name another "
                "folder."
            )


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
