"""Tables that are read as text and as Markdown alike."""

from collections.abc import Sequence


def align_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A line a row: the first column to the left, the others, which hold figures, to the right."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [_align(line, widths) for line in (lines[0], rule, *lines[1:])]


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return f"| {' | '.join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)])} |"
