"""report.html: the report as one page that needs no network and no other file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from recipes.machine import describe_machine
from recipes.report.figures import Drawing, draw_figures, list_left_out
from recipes.report.panels import View
from recipes.report.report import Report
from recipes.report.specs import list_specs
from recipes.report.style import Style, choose_styles
from recipes.report.tables import (
    PAPER,
    SPREAD,
    Table,
    tabulate_headline,
    tabulate_measures,
    tabulate_options,
    tabulate_runs,
)
from recipes.report.template import SCRIPT, STYLE
from recipes.report.text import show_seed, summarise

LEAD = (
    "Next Implicit Token Prediction (NITP) adds a loss to ordinary next-token prediction (NTP): "
    "the last hidden state must also predict a shallow-layer state of the next token. The paper "
    "claims the same language-model loss, and hidden states that use more directions."
)
WORDS = {
    "L_NTP and validation loss": "Cross entropy of the next token in nats; without NITP's share.",
    "L_NITP": "1 - cosine between the projected last hidden state and the next token's shallow "
    "state, mean over valid pairs. 0 is perfect, 1 is unrelated.",
    "constant's NITP loss": "1 - |mean of the unit targets|: the best that a prediction can get "
    "that ignores its input. While all states are alike it is near 0, and so is the NITP loss.",
    "skill": "1 - L_NITP / the constant's loss: what the model adds. 0 is nothing learnt.",
    "effective rank": "exp(-sum p log p) over the shares p of the covariance's eigenvalues: how "
    "many directions the states use. 1 is a line; the model's width is the most.",
    "average cosine": "Mean cosine of the states of tokens from different sequences. 1: all alike.",
    "phases": "The NITP loss falls while states are alike (I), climbs as shallow states become "
    "informative (II) and declines for long (III). Without a rise of half its minimum it has no "
    "hump, and none is marked.",
    "band": "Mean and one sample standard deviation at the steps that all runs of the group "
    "logged; each run is drawn thin. In differences it is the 95 % interval. Nothing is smoothed, "
    "and only what says so under it is averaged over steps.",
}


PAGE = "report.html"


def list_files(report: Report) -> list[str]:
    """Names of the files that `write_page` writes, or removes if they are an earlier report's."""
    return [PAGE, *(f"{spec.name}.png" for spec in list_specs(_view(report)))]


def write_page(report: Report, folder: Path) -> Path:
    """Draw the figures and write report.html into `folder`; returns the page's path."""
    view = _view(report)
    drawings = draw_figures(view, folder)
    page = folder / PAGE
    page.write_text(format_page(report, view, drawings), encoding="utf-8")
    return page


def _view(report: Report) -> View:
    return View(report.groups, report.baselines, choose_styles(report.groups))


def format_page(report: Report, view: View, drawings: Sequence[Drawing]) -> str:
    labels, baselines = [group.label for group in report.groups], report.baseline_labels
    compared = ", ".join(label for label in labels if label not in baselines)
    title = f"{compared} against {', '.join(baselines)}" if baselines else f"{labels[0]}, alone"
    parts = [
        f"<header><h1>{escape(title)}</h1>"
        '<button id="theme" type="button" hidden>Theme</button></header>',
        _paragraph(LEAD),
        _format_key(report, view.styles),
        *_format_answer(report),
        *(_format_figure(drawing, view.styles) for drawing in drawings),
        "<h2>Final figures</h2>",
        _format_table(tabulate_measures(report)),
        _paragraph(f"{SPREAD} {PAPER}", "muted"),
        *_format_configurations(report),
        "<h2>Runs</h2>",
        _format_table(tabulate_runs(report)),
        *_format_notes(report, list_left_out(view, drawings)),
        "<h2>Words</h2><dl>",
        *(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in WORDS.items()),
        "</dl>",
        _paragraph(
            f"This report was made on: {describe_machine()}. The runs' machines are not recorded.",
            "muted",
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(parts)}\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def _paragraph(text: str, css_class: str = "") -> str:
    attribute = f' class="{css_class}"' if css_class else ""
    return f"<p{attribute}>{_escape(text)}</p>"


def _escape(text: str) -> str:
    """As HTML, with the signs that ASCII stands in for elsewhere."""
    return escape(text).replace("+-", "&plusmn;").replace("-&gt;", "&rarr;")


def _keep_together(cell: str) -> str:
    """As HTML; a line may break before an interval, and not within it."""
    return _escape(cell).replace(" ", "&nbsp;").replace("&nbsp;(", " (")


def _format_key(report: Report, styles: dict[str, Style]) -> str:
    """The groups in their colours."""
    items = []
    for group in report.groups:
        seeds = ", ".join(show_seed(run.seed) for run in group.runs)
        several = len(group.runs) > 1
        facts = f"{len(group.runs)} runs, seeds {seeds}" if several else f"1 run, seed {seeds}"
        steps = sorted({run.last_step for run in group.runs})
        facts += f", {' and '.join(f'{step:,}' for step in steps)} steps"
        baselines = report.baseline_labels
        article = "the" if len(baselines) == 1 else "a"
        role = f"; {article} baseline" if group.label in baselines else ""
        items.append(
            f"<li>{_swatch(styles[group.label])}<strong>{escape(group.label)}</strong> "
            f'<span class="muted">{escape(facts + role)}</span></li>'
        )
    return f'<ul class="key">{"".join(items)}</ul>'


def _swatch(style: Style) -> str:
    dashes = {"-": "none", "--": "7 4", "-.": "8 3 2 3", ":": "2 3"}[style.dashes]
    return (
        '<svg viewBox="0 0 32 12" aria-hidden="true"><line x1="0" y1="6" x2="32" y2="6" '
        f'stroke="{style.color}" stroke-width="4" stroke-dasharray="{dashes}"/></svg>'
    )


def _format_answer(report: Report) -> list[str]:
    if not report.others:
        return [
            "<h2>In short</h2>",
            _paragraph("One group: there is nothing to compare it with."),
            _format_table(tabulate_headline(report)),
        ]
    sentences = "".join(f"<li>{escape(summarise(report, g))}</li>" for g in report.others)
    return [
        "<h2>In short</h2>",
        f'<ul class="answer">{sentences}</ul>',
        _format_table(tabulate_headline(report)),
        _paragraph(SPREAD, "muted"),
    ]


def _format_figure(drawing: Drawing, styles: dict[str, Style]) -> str:
    spec = drawing.spec
    caption = spec.caption
    if drawing.missing:
        caption += f" No run logged: {'; '.join(drawing.missing)}."
    keys = [f"<li>{_swatch(styles[label])}{escape(label)}</li>" for label in drawing.drawn]
    if drawing.has_reference:
        keys.append(f"<li>{_swatch(Style('currentColor', ':'))}{escape(spec.reference)}</li>")
    panels = "".join(
        f'<div><p class="panel">{escape(panel.label)}</p>{panel.svg}</div>'
        for panel in drawing.panels
    )
    return (
        f'<section><h2>{escape(spec.title)}</h2><figure id="{spec.name}">'
        f'<ul class="legend">{"".join(keys)}</ul><div class="panels">{panels}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure></section>"
    )


def _format_configurations(report: Report) -> list[str]:
    heading = "<h2>What the groups' configurations differ in</h2>"
    options = tabulate_options(report)
    if options.rows:
        return [heading, _format_table(options)]
    return [heading, _paragraph("Nothing but seeds, names, and where the runs write.")]


def _format_notes(report: Report, left_out: Sequence[str]) -> list[str]:
    notes = [*report.notes]
    if left_out:
        notes.append(f"Figures that no run has data for: {', '.join(left_out)}.")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return [f"<h2>What to know about these runs</h2><ul>{items}</ul>"] if notes else []


def _format_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f'<td data-label="{escape(column)}">{_keep_together(cell)}</td>'
            for column, cell in zip(table.columns[1:], cells, strict=True)
        )
        + "</tr>"
        for name, *cells in table.rows
    )
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
