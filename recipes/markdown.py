"""Tables that are read as text and as Markdown alike."""

import re
from collections.abc import Sequence

from recipes.characters import escape as escape_controls


def escape(text: str) -> str:
    """Text of a user's that Markdown and HTML show as it is, on one line. Cells of a table that are
    escaped like this keep their bars, which the table escapes."""
    text = re.sub(r"([\\`*<]|\](?=\()|^[#>]|^[-+](?= ))", r"\\\1", " ".join(text.split()))
    return escape_controls(text)


def escape_cell(cell: str) -> str:
    """A cell of a table, Markdown itself: its bars are no cell's end, and it is one line."""
    return " ".join(cell.split("\n")).replace("|", "\\|")


def align_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row: the first column to the left, the others, which hold figures, to the right."""
    lines = [[escape_cell(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [_align(line, widths) for line in (lines[0], rule, *lines[1:])]


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return f"| {' | '.join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)])} |"
