"""What is drawn, and the page and comparison.md around it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from recipes.report import command, tags
from recipes.report.drawing import MAX_POINTS_AS_LINES
from recipes.report.figures import PANEL_FONT, draw_figures
from recipes.report.panels import Curves, Depth, Differences, Panel, View
from recipes.report.report import Report, build_report
from recipes.report.specs import SPECS
from recipes.report.style import BACKGROUND, BACKGROUND_DARK, COLORS, TEXT, choose_styles
from tests.report_runs import NITP_CURVE, NTP_CURVE, write_run

Points = list[tuple[float, float]]


def all_tags(seed: int, nitp: bool) -> dict[str, dict[int, float]]:
    """NTP: 9 to 5.25, 0.1 more for each seed, and (seed / 2) more with NITP."""
    by = 0.1 * seed + (0.5 * seed if nitp else 0.0)
    curves = {
        tags.NTP: {step: value + by for step, value in NTP_CURVE.items()},
        tags.RANK: {1: 2.0, 7: 40.0 + seed}, tags.COSINE: {1: 0.9, 7: 0.3},
        tags.PRE_RANK: {7: 30.0}, tags.PRE_COSINE: {7: 0.4},
        tags.VALIDATION: {1: 9.0, 7: 5.5 + by}, tags.VALIDATION_RANK: {7: 39.0},
        tags.STEP_TIME: {1: 90.0, 2: 2.0, 7: 3.0}, tags.THROUGHPUT: {1: 10.0, 2: 99.0},
        tags.MEMORY: {1: 3.0},
    }  # fmt: skip
    for layer in (1, 2, 10):
        curves[tags.LAYER.format(layer, "effective_rank")] = {3: 1.0, 6: 10.0 * layer + seed}
    if nitp:
        curves |= {
            tags.NITP: NITP_CURVE, tags.CONSTANT: {1: 1.0, 7: 0.5}, tags.SKILL: {1: 0.0, 7: 0.9},
            tags.TARGET_RANK: {7: 50.0}, tags.VALIDATION_NITP: {7: 0.06},
            tags.VALIDATION_CONSTANT: {7: 0.5}, tags.VALIDATION_SKILL: {7: 0.88},
        }  # fmt: skip
    return curves


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two seeds a side."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / f"{arm}_{seed}", all_tags(seed, arm == "nitp"), seed=seed)
        for arm in ("ntp", "nitp")
        for seed in (1, 2)
    ]


@pytest.fixture(scope="module")
def report(runs: list[Path]) -> Report:
    return build_report(runs)


@pytest.fixture
def view(report: Report) -> View:
    return View(report.groups, report.baselines, choose_styles(report.groups))


def draw(panel: Panel, view: View) -> Axes:
    axes = Figure().add_subplot()
    panel.draw(axes, view)
    return axes


def count_thin(axes: Axes, color: str) -> int:
    """Lines of single runs."""
    return sum(line.get_color() == color and line.get_linewidth() < 1 for line in axes.get_lines())


def means(axes: Axes, label: str) -> Points:
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return [*zip(line.get_xdata(), line.get_ydata(), strict=True)]


def bands(axes: Axes) -> list[Points]:
    return [
        [tuple(point) for point in collection.get_paths()[0].vertices]
        for collection in axes.collections
        if isinstance(collection, PolyCollection)
    ]


# ------------------------------------------------------------------------------------- figures


def test_a_group_is_its_mean_in_a_band_of_one_spread_with_every_run_thin(view):
    axes = draw(Curves(tag=tags.NTP, label="loss"), view)
    # Seeds 1 and 2: 9.1 and 9.2 without NITP, 9.6 and 10.2 with it.
    assert means(axes, "NTP")[0] == pytest.approx((1, 9.15), abs=1e-6)
    assert means(axes, "NITP")[0] == pytest.approx((1, 9.9), abs=1e-6)
    assert count_thin(axes, COLORS[0]) == 2
    # The sample deviation of two values is their distance over sqrt 2.
    spread = 0.6 / 2**0.5
    at_1 = [y for x, y in bands(axes)[1] if x == 1]
    assert (min(at_1), max(at_1)) == pytest.approx((9.9 - spread, 9.9 + spread), abs=1e-6)
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "loss"


def test_differences_are_drawn_pair_by_pair_in_students_interval(view):
    """0.5 and 1.0: mean 0.75, half width 12.7062 * (0.5 / sqrt 2) / sqrt 2 = 3.17655. Steps 6 and 7
    are nearer than a tenth of a decade: one point."""
    axes = draw(Differences(tag=tags.NTP, label="loss"), view)
    points = means(axes, "NITP")
    assert points == [(step, pytest.approx(0.75, abs=1e-6)) for step in (1, 2, 3, 4, 5, 7)]
    assert count_thin(axes, COLORS[1]) == 2
    at_7 = [y for x, y in bands(axes)[0] if x == 7]
    assert (min(at_7), max(at_7)) == pytest.approx((0.75 - 3.17655, 0.75 + 3.17655), abs=1e-4)
    assert axes.get_ylabel() == "loss\nminus that of NTP"


def test_the_baseline_has_no_difference_from_itself(view):
    axes = draw(Differences(tag=tags.NTP, label="loss"), view)
    assert "NTP" not in {line.get_label() for line in axes.get_lines()}


def test_the_constants_loss_is_dotted_and_the_phases_are_marked(view):
    panel = Curves(tag=tags.NITP, label="L_NITP", reference=tags.CONSTANT, has_phases=True)
    axes = draw(panel, view)
    dotted = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert [[*line.get_ydata()] for line in dotted] == [[1.0, 0.5]]
    upright = [line.get_xdata() for line in axes.get_lines() if [*line.get_ydata()] == [0, 1]]
    assert [[*xs] for xs in upright] == [[4, 4], [6, 6]]
    # In the middles of 1..4, 4..6 and 6..7 on a logarithmic axis.
    names = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert names == pytest.approx({"I": 2.0, "II": 24**0.5, "III": 42**0.5})


def test_speed_is_drawn_over_windows_without_what_starts_up(tmp_path):
    """From 1000 / 10^0.1 = 794.3 on it is one point, (1 + 2 + 6) / 3."""
    speed = {1: 90.0, 2: 8.0, 800: 1.0, 900: 2.0, 1000: 6.0}
    report = build_report(
        [write_run(tmp_path / "run", {tags.NTP: {1: 9.0, 1000: 2.0}, tags.STEP_TIME: speed})]
    )
    view = View(report.groups, report.baselines, choose_styles(report.groups))
    axes = draw(Curves(tag=tags.STEP_TIME, label="time of a step (s)", is_pace=True), view)
    assert means(axes, "NTP") == [(2, 8.0), (1000, 3.0)]


def test_depth_is_drawn_over_layers_at_the_last_step(view):
    axes = draw(Depth(measure="effective_rank", label="rank"), view)
    assert means(axes, "NTP") == [(1, 11.5), (2, 21.5), (10, 101.5)]
    assert axes.get_xlabel() == "after layer k, at step 6"
    # nitp.target_layer, of the group with NITP alone.
    upright = [line for line in axes.get_lines() if [*line.get_ydata()] == [0, 1]]
    assert [([*line.get_xdata()], line.get_color()) for line in upright] == [([2, 2], COLORS[1])]


def test_a_single_run_is_one_thick_line_without_a_band(tmp_path):
    report = build_report([write_run(tmp_path / "run", {tags.NTP: NTP_CURVE})])
    view = View(report.groups, report.baselines, choose_styles(report.groups))
    axes = draw(Curves(tag=tags.NTP, label="loss"), view)
    assert means(axes, "NTP") == [*NTP_CURVE.items()]
    assert len(axes.get_lines()) == 1 and not bands(axes)


def test_a_loss_that_is_not_finite_is_a_gap(tmp_path):
    curve = {1: 9.0, 2: float("nan"), 3: 7.0}
    report = build_report([write_run(tmp_path / "run", {tags.NTP: curve})])
    view = View(report.groups, report.baselines, choose_styles(report.groups))
    axes = draw(Curves(tag=tags.NTP, label="loss"), view)
    assert means(axes, "NTP") == [(1, 9.0), (2, pytest.approx(float("nan"), nan_ok=True)), (3, 7.0)]


def test_long_curves_are_pixels(tmp_path):
    curve = dict.fromkeys(range(1, MAX_POINTS_AS_LINES + 2), 1.0)
    short = dict.fromkeys(range(1, MAX_POINTS_AS_LINES + 1), 1.0)
    folders = [
        write_run(tmp_path / "long", {tags.NTP: curve, tags.NITP: {1: 1.0}}),
        write_run(tmp_path / "short", {tags.NTP: short}),
    ]
    report = build_report(folders)
    view = View(report.groups, report.baselines, choose_styles(report.groups))
    axes = draw(Curves(tag=tags.NTP, label="loss"), view)
    pixels = {line.get_label(): line.get_rasterized() for line in axes.get_lines()}
    assert pixels == {"NITP": True, "NTP": False}


def luminance(color: str) -> float:
    """WCAG 2.2's relative luminance."""
    shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", [BACKGROUND, BACKGROUND_DARK])
@pytest.mark.parametrize("color", COLORS)
def test_colors_stand_out_in_both_themes(color, background):
    dark, light = sorted([luminance(color), luminance(background)])
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_groups_beyond_the_colors_differ_in_dashes(report):
    groups = [report.groups[0]] * 5
    labelled = [type(group)(str(i), group.runs) for i, group in enumerate(groups)]
    styles = choose_styles(labelled)
    assert styles["0"].color == styles["4"].color and styles["0"].dashes != styles["4"].dashes
    assert len(set(styles.values())) == 5


# ---------------------------------------------------------------------------------------- page


class Reader(HTMLParser):
    """Collects what a page asks for, its ids, and whether its elements are closed."""

    VOID = {"meta", "br", "img", "link", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.asked: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.asked.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data.replace("\xa0", " "))


@pytest.fixture(scope="module")
def written(runs: list[Path], tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("out")
    assert command.main([*map(str, runs), "--output", str(output)]) == 0
    return output


def test_the_page_asks_for_nothing_and_is_well_formed(written):
    text = (written / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert all(asked.startswith(("#", "data:image/png;base64,")) for asked in reader.asked)
    assert {asked[1:] for asked in reader.asked if asked.startswith("#")} <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_the_page_has_both_themes_and_figures_follow_them(written):
    text = (written / "report.html").read_text()
    assert "prefers-color-scheme: dark" in text and '[data-theme="dark"]' in text
    figures = re.findall(r"<svg role.*?</svg>", text, flags=re.DOTALL)
    assert text.count("<figure id=") == 9 and len(figures) == text.count('<p class="panel">') > 9
    for figure in figures:
        assert TEXT not in figure and "currentColor" in figure and "var(--grid)" in figure


def test_the_page_and_comparison_md_have_the_same_tables(written):
    reader = Reader()
    reader.feed((written / "report.html").read_text())
    markdown = (written / "comparison.md").read_text()
    table_lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = {cell.strip() for line in table_lines for cell in line.split("|")} - {"", "---"}
    losses = markdown.partition("## Losses")[2].partition("## Final")[0]
    only_markdown = {cell.strip() for cell in losses.replace("\n", "|").split("|")}
    signs = {"+-": "\u00b1", "->": "\u2192"}
    expected = cells - only_markdown
    for sign, shown in signs.items():
        expected = {cell.replace(sign, shown) for cell in expected}
    assert len(expected) > 40 and expected <= set(reader.cells)


def test_every_figure_is_a_png_too(written):
    assert {path.stem for path in written.glob("*.png")} == {spec.name for spec in SPECS}
    for path in written.glob("*.png"):
        with Image.open(path) as image:
            assert image.width == 1600 and image.getpixel((2, 2))[:3] == (255, 255, 255)


def test_a_figure_without_data_is_left_out_and_named(tmp_path):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE, tags.VALIDATION: {1: 9.0}})
    output = tmp_path / "out"
    assert command.main([str(run), "--output", str(output)]) == 0
    assert [path.stem for path in output.glob("*.png")] == ["loss"]
    text = (output / "report.html").read_text()
    assert "no run has data for: loss_difference, nitp_loss, effective_rank, " in text
    assert "One group: there is nothing to compare it with." in text


def test_what_a_figure_lacks_is_said_under_it(tmp_path):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE})
    output = tmp_path / "out"
    assert command.main([str(run), "--output", str(output)]) == 0
    text = (output / "report.html").read_text()
    assert "No run logged: validation loss (nats/token)." in text
    assert "No run logged: skill; a constant prediction." in text


def test_figures_of_an_earlier_report_are_gone(tmp_path):
    full = write_run(tmp_path / "full", {tags.NTP: NTP_CURVE, tags.RANK: {1: 2.0}})
    plain = write_run(tmp_path / "plain", {tags.NTP: NTP_CURVE})
    output = tmp_path / "out"
    for run, figures in ((full, {"loss", "effective_rank"}), (plain, {"loss"})):
        assert command.main([str(run), "--output", str(output)]) == 0
        assert {path.stem for path in output.glob("*.png")} == figures


@pytest.mark.parametrize("name", ["loss.png", "report.html", "comparison.md", "cost.png"])
def test_files_that_no_report_wrote_are_neither_replaced_nor_removed(tmp_path, capsys, name):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE})
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_text("mine")
    error = refused([str(run), "--output", str(output)], capsys)
    assert f"--output ({output}) has a {name} that no earlier report wrote." in error
    assert [path.read_text() for path in output.iterdir()] == ["mine"]


def test_files_of_other_names_do_not_matter(tmp_path):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE})
    (tmp_path / "mine.png").write_text("mine")
    for _ in range(2):
        assert command.main([str(run), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "mine.png").read_text() == "mine"


# A telephone: 390 pixels wide, of which the margins take 40.
NARROW = 350


def test_text_of_figures_has_11_pixels_on_a_telephone(written):
    text = (written / "report.html").read_text()
    widths = [float(w) for w in re.findall(r'<svg role[^>]*viewBox="0 0 ([0-9.]+) ', text)]
    assert len(widths) > 9
    assert min(NARROW / width * PANEL_FONT for width in widths) >= 11
    # The letters are paths, scaled from the font's 1000s: the axes have no smaller ones.
    scales = {float(s) for s in re.findall(r"scale\((0\.[0-9]+) -", text)}
    assert scales and min(scales) >= PANEL_FONT / 100 - 1e-9
    assert "min-width: 34rem" not in text and "minmax(min(100%, 21.5rem), 1fr)" in text


def test_a_cell_is_named_where_columns_do_not_fit(written):
    """Below 40 rem rows are blocks, and each cell shows the name of its column."""
    text = (written / "report.html").read_text()
    for table in re.findall(r"<table>.*?</table>", text, flags=re.DOTALL):
        head, *rows = table.split("<tr>")[1:]
        columns = re.findall(r'<th scope="col">(.*?)</th>', head)
        for row in rows:
            assert re.findall(r'data-label="(.*?)"', row) == columns[1:]
    assert "td::before { content: attr(data-label)" in text


def test_names_are_text_in_the_page(tmp_path):
    runs = [tmp_path / "a$\\frac$&<b>", tmp_path / "c|d"]
    for run in runs:
        write_run(run, {tags.NTP: NTP_CURVE})
        (run / "config.toml").unlink()
    output = tmp_path / "out"
    assert command.main([*map(str, runs), "--output", str(output)]) == 0
    assert "a$\\frac$&amp;&lt;b&gt;" in (output / "report.html").read_text()
    assert "<b>" not in (output / "report.html").read_text()
    assert "| c\\|d |" in (output / "comparison.md").read_text()


HOSTILE = "</script>]](x) `a` | $\\frac$ *b* \"'> --> [c](d) {0} %s\n# e"


def test_hostile_values_are_text_in_page_and_table(tmp_path):
    """Of a configuration that this version did not write; and a name that begins as a heading."""
    names = ["# _a", "_b <svg onload=x>"]
    for i, name in enumerate(names):
        write_run(tmp_path / name, {tags.NTP: NTP_CURVE, tags.RANK: {1: 2.0, 7: 3.0}},
                  job__name=f"{HOSTILE}{i}", steps=9)  # fmt: skip
    (tmp_path / names[1] / "config.toml").unlink()
    write_run(tmp_path / "z", {tags.NTP: NTP_CURVE}, job__name=HOSTILE, steps=9)
    output = tmp_path / "out"
    runs = [str(tmp_path / name) for name in (*names, "z")]
    assert command.main([*runs, "--output", str(output)]) == 0
    page = (output / "report.html").read_text()
    assert page.count("</script>") == page.count("<script>") == 1
    assert "<svg onload" not in page and "_b &lt;svg onload=x&gt;" in page
    lines = (output / "comparison.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# Comparison of runs", "## Runs", "## Losses", "## Final figures",
        "## The groups' configurations differ in", "## Notes",
    ]  # fmt: skip
    assert any(line.startswith("* \\# _a") for line in lines)
    tables = "\n".join(lines).split("\n\n")
    for table in (text.splitlines() for text in tables if text.startswith("| ")):
        assert len({len(re.split(r"(?<!\\)\|", row)) for row in table}) == 1
    assert "\\`a\\`" in "".join(lines) and "[c\\](d)" in "".join(lines)


def test_the_same_runs_give_the_same_page(written, view, tmp_path):
    page = (written / "report.html").read_text()
    drawn = [panel.svg for drawing in draw_figures(view, tmp_path) for panel in drawing.panels]
    assert len(drawn) > 9 and all(svg in page for svg in drawn)


# ------------------------------------------------------------------------------------- command


def test_comparison_md_has_the_losses_at_common_steps(tmp_path, capsys):
    nitp = write_run(tmp_path / "nitp", {
        tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE, tags.VALIDATION: {2: 7.75, 6: 5.4321},
        tags.STEP_TIME: {1: 90.0, 2: 3.0, 3: 1.0, 4: 2.0, 5: 8.0},
    })  # fmt: skip
    ntp = write_run(tmp_path / "ntp", {
        tags.NTP: {step: NTP_CURVE[step] + 0.5 for step in (1, 3, 5, 7)},
        tags.STEP_TIME: {1: 50.0, 2: 4.0},
    })  # fmt: skip
    assert command.main([str(nitp), str(ntp), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    section = text.partition("## Losses\n\n")[2].partition("\n\n## ")[0]
    assert section.splitlines() == [
        "| step | NTP: L_NTP | NITP: L_NTP | NITP: L_NITP |",
        "| --- | --- | --- | --- |",
        "| 1 | 9.500 | 9.000 | 1.000 |",
        "| 3 | 7.500 | 7.000 | 0.400 |",
        "| 5 | 6.500 | 6.000 | 0.200 |",
        "| 7 | 5.750 | 5.250 | 0.050 |",
    ]
    assert "| nitp | NITP | 0 | 7 | 0.100 at step 4, 0.300 at step 6 |" in text
    # Of 3, 1, 2 and 8 seconds; the first step starts up.
    assert "| median step time (s) | median | 4.000 | 2.500 | -1.500, -37.5 % | +1.8 % |" in text


def test_long_runs_are_compared_in_twelve_rows_with_both_ends(tmp_path):
    run = write_run(tmp_path / "run", {tags.NTP: {s: float(s) for s in range(1, 1001)}})
    assert command.main([str(run), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    section = text.partition("## Losses\n\n")[2].partition("\n\n## ")[0]
    steps = [int(line.split("|")[1]) for line in section.splitlines()[2:]]
    assert len(steps) == 12 and (steps[0], steps[-1]) == (1, 1000)
    assert {after - before for before, after in zip(steps, steps[1:], strict=False)} <= {90, 91}


def refused(arguments: list[str], capsys) -> str:
    assert command.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.out == ""
    return printed.err


def test_a_folder_without_curves_is_one_line(tmp_path, capsys):
    error = refused([str(tmp_path), "--output", str(tmp_path / "out")], capsys)
    assert error.startswith(f"error: {tmp_path} has no TensorBoard curves.")
    assert not (tmp_path / "out").exists()


def test_without_the_plotting_library_one_line_names_the_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    error = refused([str(tmp_path), "--output", str(tmp_path / "out")], capsys)
    assert error == (
        'error: the figures need the package matplotlib. Install "nitp-torchtitan[report]".\n'
    )


def test_bad_usage_is_one_line(tmp_path, capsys):
    assert refused([str(tmp_path)], capsys).startswith(
        "error: the following arguments are required:"
    )


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE})
    (tmp_path / "out").write_text("")
    error = refused([str(run), "--output", str(tmp_path / "out")], capsys)
    assert error.startswith(f"error: --output ({tmp_path}/out) is no folder")
