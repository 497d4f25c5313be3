"""What the report says of runs that end at different steps."""

from pathlib import Path

import pytest

from recipes.report import tags
from recipes.report.report import Report, build_report
from recipes.report.tables import tabulate_headline
from recipes.report.text import show_difference, show_mean, show_step, summarise
from recipes.sweep.table import tabulate
from tests.report_runs import write_run


def write_arms(folder: Path, ends: dict[str, int], by: float = 0.5) -> Report:
    """Runs `ntp_SEED` and `nitp_SEED` -> last step. Loss 10 - step, and `by` x seed more with
    NITP."""
    runs = []
    for name, end in ends.items():
        arm, seed = name.split("_")
        more = by * int(seed) if arm == "nitp" else 0.0
        curves = {tags.NTP: {step: 10.0 - step + more for step in range(1, end + 1)}}
        if arm == "nitp":
            curves[tags.NITP] = {1: 1.0}
        runs.append(write_run(folder / name, curves, seed=int(seed), steps=6))
    return build_report(runs)


def training_loss(report: Report):
    return next(row for row in report.rows if row.measure.tag == tags.NTP)


def test_a_short_run_leaves_the_figures_of_the_others_at_their_ends(tmp_path):
    report = write_arms(tmp_path, {"ntp_1": 6, "nitp_1": 4})
    row = training_loss(report)
    assert show_step(row) == "each run's end"
    assert show_mean(row, "NTP") == "4.0000 (at step 6)"
    assert show_mean(row, "NITP") == "6.5000 (at step 4)"
    assert show_difference(row, "NITP") == "+0.5000 (at step 4)"
    assert "+0.5000 nats/token at step 4 (" in summarise(report, report.others[0])
    assert any("the longest at 6, nitp_1 at 4." in note for note in report.notes)


def test_a_mean_over_different_ends_says_which(tmp_path):
    report = write_arms(tmp_path, {"ntp_1": 6, "ntp_2": 2, "nitp_1": 6, "nitp_2": 6})
    # 4 at step 6 and 8 at step 2; 4.5 and 5.
    assert show_mean(training_loss(report), "NTP") == "6.0000 +- 2.8284 (at steps 2 to 6)"
    assert show_mean(training_loss(report), "NITP") == "4.7500 +- 0.3536 (at step 6)"
    # Seed by seed, 0.5 and 1.0.
    assert show_difference(training_loss(report), "NITP").startswith("+0.7500 (")
    assert show_difference(training_loss(report), "NITP").endswith(" (at step 2)")


def test_a_short_run_without_a_partner_takes_no_difference_back(tmp_path):
    report = write_arms(tmp_path, {"ntp_1": 6, "nitp_1": 6, "ntp_3": 2})
    assert show_difference(training_loss(report), "NITP") == "+0.5000 (at step 6)"


def test_runs_that_end_together_are_told_once_where(tmp_path):
    report = write_arms(tmp_path, {"ntp_1": 6, "nitp_1": 6})
    assert tabulate_headline(report).rows[0][1:5] == ["step 6", "4.0000", "4.5000", "+0.5000"]


def test_a_sweep_says_where_its_figures_are_taken(tmp_path):
    table = tabulate(write_arms(tmp_path, {"ntp_1": 6, "nitp_1": 4}))
    assert table.columns[2] == "training loss (nats/token), each run's end"
    assert table.rows[1][2:4] == ["6.5000 (at step 4)", "+0.5000 (at step 4)"]


def test_a_difference_early_in_the_runs_is_no_headline(tmp_path):
    """The one validation in common is at step 1 of 6."""
    ntp = {tags.NTP: dict.fromkeys(range(1, 7), 5.0)}
    folders = [
        write_run(tmp_path / "ntp", ntp | {tags.VALIDATION: {1: 9.0, 6: 5.0}}),
        write_run(tmp_path / "nitp", ntp | {tags.NITP: {1: 1.0}, tags.VALIDATION: {1: 9.0}}),
    ]
    report = build_report(folders)
    assert [row.measure.tag for row in report.headline] == [tags.NTP]
    assert "The last validation is before the end: nitp at step 1 of 6." in report.notes


def test_runs_without_a_step_in_common_have_figures_and_no_difference(tmp_path):
    folders = [
        write_run(tmp_path / "ntp", {tags.NTP: {2: 8.0}}),
        write_run(tmp_path / "nitp", {tags.NTP: {3: 8.0}, tags.NITP: {3: 1.0}}),
    ]
    report = build_report(folders)
    row = training_loss(report)
    assert show_mean(row, "NTP") == "8.0000 (at step 2)" and show_difference(row, "NITP") == "-"
    assert "NITP and NTP logged no step in common: training loss." in report.notes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_last_value_that_is_not_finite_is_the_runs_figure(tmp_path, value):
    folders = [
        write_run(tmp_path / "ntp", {tags.NTP: {1: 8.0, 2: 7.0}}),
        write_run(tmp_path / "nitp", {tags.NTP: {1: 8.0, 2: value}, tags.NITP: {1: 1.0}}),
    ]
    assert show_mean(training_loss(build_report(folders)), "NITP") == f"{value:.4f}"
