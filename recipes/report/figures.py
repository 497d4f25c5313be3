"""Draws the figures: each a PNG, and a part of the page."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from recipes.report.panels import View
from recipes.report.specs import Spec, list_specs
from recipes.report.style import BACKGROUND, GRID, TEXT

WIDTH, ROW_HEIGHT = 10.0, 2.9
"""Inches. One width, so that text has one size."""

RC: dict[Any, Any] = {
    "svg.fonttype": "path",  # looks the same wherever it is read
    "svg.hashsalt": "report",  # the same page of the same runs
    "font.size": 9,
    "text.parse_math": False,  # names of runs are no formulas
    "axes.edgecolor": GRID, "axes.labelcolor": TEXT, "axes.titlecolor": TEXT, "text.color": TEXT,
    "xtick.color": TEXT, "ytick.color": TEXT, "legend.labelcolor": TEXT,
    "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": BACKGROUND, "axes.facecolor": "none", "legend.frameon": False,
}  # fmt: skip
DOTS_PER_INCH = 160


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure that has been drawn."""

    spec: Spec
    svg: str
    """Inline SVG without a background, its text and grid in the page's colours."""

    missing: list[str]
    """Labels of the panels, and of the dotted line, that no run has data for."""


def draw_figures(view: View, folder: Path) -> list[Drawing]:
    """Write `<name>.png` of each figure that has data into `folder`; the same for the page."""
    drawings = []
    with matplotlib.rc_context(RC):
        for spec in list_specs(view):
            path = folder / f"{spec.name}.png"
            path.unlink(missing_ok=True)  # an earlier report's
            if _has_data(spec, view):
                drawings.append(_draw(spec, view, path))
    return drawings


def list_left_out(view: View) -> Iterator[str]:
    """Names of the figures that no run has data for."""
    return (spec.name for spec in list_specs(view) if not _has_data(spec, view))


def _has_data(spec: Spec, view: View) -> bool:
    return any(panel.has_data(view) for panel in spec.panels)


def _draw(spec: Spec, view: View, path: Path) -> Drawing:
    panels = [panel for panel in spec.panels if panel.has_data(view)]
    num_columns = 2 if len(panels) in (1, 2, 4) else 3
    num_rows = -(-len(panels) // num_columns)
    figure = Figure((WIDTH, ROW_HEIGHT * num_rows + 0.4), layout="constrained")
    for i, panel in enumerate(panels):
        panel.draw(figure.add_subplot(num_rows, num_columns, i + 1), view)
    legend = _add_legend(figure, spec, view)
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, dpi=DOTS_PER_INCH, metadata={"Date": None}
    )
    # The page has it as a heading; a PNG stands alone.
    legend.set_title(spec.title, FontProperties(size=11, weight="bold"))
    figure.savefig(path, dpi=DOTS_PER_INCH)
    missing = [panel.label for panel in spec.panels if panel not in panels]
    if spec.reference and not _has_dotted(figure):
        missing.append(spec.reference)
    return Drawing(spec, make_inline(buffer.getvalue(), spec.name, spec.title), missing)


def _add_legend(figure: Figure, spec: Spec, view: View) -> Legend:
    """Of the groups that are drawn, and of the dotted lines."""
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    drawn = {line.get_label() for line in lines}
    handles = [
        Line2D([], [], color=style.color, linestyle=style.dashes, linewidth=2, label=label)
        for label, style in view.styles.items()
        if label in drawn
    ]
    if _has_dotted(figure):
        handles.append(Line2D([], [], color=TEXT, linestyle=":", linewidth=2, label=spec.reference))
    return figure.legend(
        handles=handles, loc="outside upper left", ncols=4, fontsize=9, alignment="left"
    )


def _has_dotted(figure: Figure) -> bool:
    return any(line.get_linestyle() == ":" for axes in figure.axes for line in axes.get_lines())


def make_inline(svg: str, name: str, title: str) -> str:
    """The SVG as a part of a page: named by its title, as wide as there is room, in the page's
    colours, and with ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return svg.replace(TEXT, "currentColor").replace(GRID, "var(--grid)")
