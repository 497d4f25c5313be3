"""Draws the figures: each a PNG, and a part of the page."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from recipes.report.panels import Panel, View
from recipes.report.specs import Spec, list_specs
from recipes.report.style import BACKGROUND, GRID, TEXT

WIDTH, ROW_HEIGHT = 10.0, 2.9
"""Inches, of a PNG. One width, so that text has one size."""

PANEL_WIDTH, PANEL_HEIGHT, PANEL_FONT = 4.6, 2.8, 11.0
"""Inches and points, of a panel of the page: text of 11 pixels where a telephone shows it 350
pixels wide, and more where there is more room."""

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
class PanelDrawing:
    """One pair of axes of the page."""

    label: str
    svg: str
    """Inline SVG without a background, its text and grid in the page's colours."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure that has been drawn."""

    spec: Spec
    panels: list[PanelDrawing]
    drawn: list[str]
    """Labels of the groups in it."""

    has_reference: bool
    """Whether it has a dotted line."""

    missing: list[str]
    """Labels of the panels, and of the dotted line, that no run has data for."""


def draw_figures(view: View, folder: Path) -> list[Drawing]:
    """Write `<name>.png` of each figure that has data into `folder`; the same for the page."""
    drawings = []
    with matplotlib.rc_context(RC):
        for spec in list_specs(view):
            path = folder / f"{spec.name}.png"
            path.unlink(missing_ok=True)  # an earlier report's
            panels = [panel for panel in spec.panels if panel.has_data(view)]
            if panels:
                drawings.append(_draw(spec, panels, view, path))
    return drawings


def list_left_out(view: View, drawings: Sequence[Drawing]) -> list[str]:
    """Names of the figures that no run has data for."""
    drawn = {drawing.spec.name for drawing in drawings}
    return [spec.name for spec in list_specs(view) if spec.name not in drawn]


def _draw(spec: Spec, panels: Sequence[Panel], view: View, path: Path) -> Drawing:
    num_columns = 2 if len(panels) in (1, 2, 4) else 3
    num_rows = -(-len(panels) // num_columns)
    figure = Figure((WIDTH, ROW_HEIGHT * num_rows + 0.4), layout="constrained")
    for i, panel in enumerate(panels):
        panel.draw(figure.add_subplot(num_rows, num_columns, i + 1), view)
    legend = _add_legend(figure, spec, view)
    legend.set_title(spec.title, FontProperties(size=11, weight="bold"))
    figure.savefig(path, dpi=DOTS_PER_INCH)
    missing = [panel.label for panel in spec.panels if panel not in panels]
    if spec.reference and not _has_dotted(figure):
        missing.append(spec.reference)
    return Drawing(
        spec=spec,
        panels=[_draw_panel(spec, number, panel, view) for number, panel in enumerate(panels)],
        drawn=_list_drawn(figure, view),
        has_reference=_has_dotted(figure),
        missing=missing,
    )


def _draw_panel(spec: Spec, number: int, panel: Panel, view: View) -> PanelDrawing:
    """By itself: the page lays panels out by the room that there is, and has their labels as
    text."""
    with matplotlib.rc_context({"font.size": PANEL_FONT}):
        figure = Figure((PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        panel.draw(axes, view)
        label = " ".join(axes.get_ylabel().split())
        axes.set_ylabel("")
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, dpi=DOTS_PER_INCH, metadata={"Date": None}
        )
    name = f"{spec.name}-{number}"
    return PanelDrawing(label, make_inline(buffer.getvalue(), name, f"{spec.title}: {label}"))


def _list_drawn(figure: Figure, view: View) -> list[str]:
    lines = (line for axes in figure.axes for line in axes.get_lines())
    drawn = {line.get_label() for line in lines}
    return [label for label in view.styles if label in drawn]


def _add_legend(figure: Figure, spec: Spec, view: View) -> Legend:
    """Of the groups that are drawn, and of the dotted lines."""
    styles = ((label, view.styles[label]) for label in _list_drawn(figure, view))
    handles = [
        Line2D([], [], color=style.color, linestyle=style.dashes, linewidth=2, label=label)
        for label, style in styles
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
