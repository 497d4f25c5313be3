"""Colours and lines, the same in every figure and in both themes of the page."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from recipes.report.groups import Group

Dashes = Literal["-", "--", "-.", ":"]

COLORS = ("#1a7fc1", "#d55e00", "#009e73", "#c56a9e")
"""After Okabe and Ito (2008), told apart by the colour-blind; two in other shades, so that each has
a contrast of 3 to 1 and more with both backgrounds (WCAG 2.2, 1.4.11)."""

DASHES: tuple[Dashes, ...] = ("-", "--", "-.")
"""Where there are more groups than colours."""

BACKGROUND, BACKGROUND_DARK = "#ffffff", "#14171c"
TEXT, TEXT_DARK = "#1f2328", "#e6e8eb"
GRID, GRID_DARK = "#d8dee4", "#343a43"


class Style(NamedTuple):
    """How a group is drawn."""

    color: str
    dashes: Dashes


def choose_styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Group label -> style."""
    return {
        group.label: Style(COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)])
        for i, group in enumerate(groups)
    }
