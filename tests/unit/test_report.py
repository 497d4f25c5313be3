"""What the report says of runs: reading, grouping, the figures and their differences."""

from pathlib import Path

import pytest

from recipes.report import tags
from recipes.report.groups import group_runs, list_differences
from recipes.report.measures import Measure, Row, measure_groups
from recipes.report.panels import View
from recipes.report.report import Report, build_report
from recipes.report.runs import read_runs
from recipes.report.specs import list_specs
from recipes.report.style import choose_styles
from recipes.report.tables import tabulate_headline, tabulate_measures
from recipes.report.text import read_difference, show_difference, show_mean, summarise
from recipes.sweep.table import tabulate
from tests.report_runs import NITP_CURVE, NTP_CURVE, write_run, write_start


def shift(curve: dict[int, float], by: float) -> dict[int, float]:
    return {step: value + by for step, value in curve.items()}


def row_of(report: Report, tag: str) -> Row:
    return next(row for row in report.rows if row.measure.tag == tag)


@pytest.fixture
def pair(tmp_path: Path) -> Report:
    """Three seeds a side. Validation: 5.0, 5.2, 5.4 without NITP; 0.1, 0.2, 0.3 more with it."""
    folders = []
    for seed in (1, 2, 3):
        level = 4.8 + 0.2 * seed
        folders.append(write_run(tmp_path / f"ntp_{seed}", {
            tags.NTP: shift(NTP_CURVE, seed), tags.VALIDATION: {1: 9.0, 7: level},
            tags.RANK: {7: 20.0 + seed}, tags.STEP_TIME: {1: 90.0, 2: 2.0, 3: 1.0, 4: 9.0},
            tags.MEMORY: {1: 3.0, 2: 4.0}, tags.MFU: {2: float("nan")},
        }, seed=seed))  # fmt: skip
        folders.append(write_run(tmp_path / f"nitp_{seed}", {
            tags.NTP: shift(NTP_CURVE, seed + 0.5), tags.NITP: NITP_CURVE,
            tags.VALIDATION: {1: 9.0, 7: level + 0.1 * seed},
            tags.RANK: {7: 60.0 + seed}, tags.STEP_TIME: {1: 90.0, 2: 2.2, 3: 2.2},
            tags.MEMORY: {1: 5.0, 2: 4.0},
        }, seed=seed))  # fmt: skip
    return build_report(folders)


# ------------------------------------------------------------------------------------- figures


def test_a_final_figure_is_mean_and_spread_at_the_last_step(pair):
    row = row_of(pair, tags.VALIDATION)
    assert row.step == 7
    # 5.0, 5.2, 5.4: deviations 0.2, 0, 0.2 over n - 1. With NITP 5.1, 5.4, 5.7.
    assert show_mean(row, "NTP") == "5.2000 +- 0.2000"
    assert show_mean(row, "NITP") == "5.4000 +- 0.3000"


def test_a_paired_difference_has_students_interval(pair):
    """0.1, 0.2, 0.3: mean 0.2, half width 4.30265 * 0.1 / sqrt 3 = 0.24841."""
    row = row_of(pair, tags.VALIDATION)
    assert show_difference(row, "NITP") == "+0.2000 (-0.0484 to +0.4484)"
    assert read_difference(row.differences["NITP"]) == "no clear difference"


def test_what_all_seeds_agree_on_reads_higher(pair):
    row = row_of(pair, tags.RANK)
    assert show_difference(row, "NITP") == "+40.0 (+40.0 to +40.0)"
    assert read_difference(row.differences["NITP"]) == "higher"


def test_the_median_step_leaves_out_the_first_which_starts_up(pair):
    row = row_of(pair, tags.STEP_TIME)
    assert row.step is None
    assert show_mean(row, "NTP") == "2.000 +- 0.000"  # of 2, 1 and 9 seconds
    assert show_difference(row, "NITP") == "+0.200, +10.0 % (+0.200 to +0.200)"


def test_memory_is_the_peak(pair):
    assert show_mean(row_of(pair, tags.MEMORY), "NITP") == "5.00 +- 0.00"


def test_what_is_no_number_anywhere_is_no_row(pair):
    """Such as mfu(%) on a CPU."""
    assert tags.MFU not in {row.measure.tag for row in pair.rows}


def test_the_sets_of_a_validation_are_rows_beside_its_loss_and_a_figure(tmp_path):
    curves = {tags.NTP: NTP_CURVE, tags.VALIDATION: {7: 5.0}}
    sets = {
        "validation_metrics/pile/loss": {7: 2.5},
        "validation_metrics/pile/bits_per_byte": {7: 0.75},
        "validation_metrics/ids/loss": {7: 3.0},
    }
    without = write_run(tmp_path / "without", curves)
    report = build_report([without, write_run(tmp_path / "with", curves | sets, seed=1)])
    rows = [(row[0], row[2]) for row in tabulate_measures(report).rows]
    assert rows[:4] == [
        ("validation loss (nats/token)", "5.0000 +- 0.0000"),
        ("validation loss, ids (nats/token)", "3.0000"),
        ("validation loss, pile (nats/token)", "2.5000"),
        ("bits per byte, pile", "0.7500"),
    ]
    styles = choose_styles(report.groups)
    (spec,) = (
        spec
        for spec in list_specs(View(report.groups, report.baselines, styles))
        if spec.name == "validation_sets"
    )
    assert [panel.label for panel in spec.panels] == ["ids (nats/token)", "pile (nats/token)"]


def test_the_answer_is_one_sentence(pair):
    assert summarise(pair, pair.others[0]) == (
        "NITP against NTP, 3 pairs of runs: no clear difference in validation loss (+0.2000 "
        "nats/token); higher effective rank (+40.0); higher median step time (+10.0 %); higher "
        "peak memory (+25.0 %)."
    )


def test_the_headline_table_has_the_papers_end_points_beside_it(pair):
    table = tabulate_headline(pair)
    assert table.columns == [
        "", "taken at", "NTP", "NITP", "NITP minus NTP", "reading", "paper's 9B, NTP to NITP",
    ]  # fmt: skip
    assert table.rows[1] == [
        "effective rank", "step 7", "22.0 +- 1.0", "62.0 +- 1.0", "+40.0 (+40.0 to +40.0)",
        "higher", "22 -> 60",
    ]  # fmt: skip
    assert [row[0] for row in table.rows] == [
        "validation loss (nats/token)", "effective rank", "median step time (s)",
        "peak memory (GiB)",
    ]  # fmt: skip


def test_runs_without_nitp_have_no_nitp_loss(pair):
    rows = {row[0]: row for row in tabulate_measures(pair).rows}
    assert rows["NITP loss"][2:5] == ["-", "0.0500 +- 0.0000", "-"]
    assert "Runs without NITP have no NITP loss, no constant's loss and no skill." in pair.notes


def test_a_validation_in_the_first_half_is_no_headline(tmp_path):
    curves = {tags.NTP: NTP_CURVE, tags.VALIDATION: {1: 9.0}}
    folders = [
        write_run(tmp_path / "ntp", curves),
        write_run(tmp_path / "nitp", curves | {tags.NITP: NITP_CURVE}),
    ]
    report = build_report(folders)
    assert [row.measure.tag for row in report.headline] == [tags.NTP]
    assert (
        "The last validation is before the end: ntp at step 1 of 7, nitp at step 1 of 7."
        in report.notes
    )


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    folders = [
        write_run(tmp_path / "ntp", {tags.NTP: NTP_CURVE}),
        write_run(tmp_path / "nitp", {tags.NTP: {7: float("nan")}, tags.NITP: NITP_CURVE}),
    ]
    report = build_report(folders)
    assert read_difference(row_of(report, tags.NTP).differences["NITP"]) == "not finite in a run"


def test_seeds_that_do_not_pair_give_the_difference_of_the_means(tmp_path):
    folders = [
        write_run(tmp_path / "a", {tags.NTP: {1: 4.0}}, seed=1),
        write_run(tmp_path / "b", {tags.NTP: {1: 6.0}}, seed=2),
        write_run(tmp_path / "c", {tags.NTP: {1: 5.5}, tags.NITP: {1: 0.5}}, seed=3),
    ]
    report = build_report(folders)
    row = row_of(report, tags.NTP)
    assert show_difference(row, "NITP") == "+0.5000"
    assert read_difference(row.differences["NITP"]) == "no pairs: no interval"
    assert any("NITP and NTP do not pair in c, a, b" in note for note in report.notes)
    assert summarise(report, report.others[0]).endswith(
        "+0.5000 nats/token (no pairs: no interval)."
    )


def test_runs_of_one_seed_count_once_in_pairs(tmp_path):
    """Seed 1: 5.0 against the mean of 4.0 and 4.4; seed 2: 5.0 against 4.0. Differences 0.8, 1."""
    losses = {"a": (1, 4.0), "b": (1, 4.4), "c": (2, 4.0)}
    folders = [
        write_run(tmp_path / name, {tags.NTP: {1: loss}}, seed=seed)
        for name, (seed, loss) in losses.items()
    ]
    folders += [
        write_run(tmp_path / f"n{seed}", {tags.NTP: {1: 5.0}, tags.NITP: {1: 0.5}}, seed=seed)
        for seed in (1, 2)
    ]
    report = build_report(folders)
    difference = row_of(report, tags.NTP).differences["NITP"]
    assert difference.estimate.num == 2
    assert difference.estimate.mean == pytest.approx(0.9, abs=1e-6)
    assert any("NTP has seed 1 more than once (a, b)" in note for note in report.notes)


def test_a_tag_that_some_runs_lack_is_said_with_their_names(tmp_path):
    folders = [
        write_run(tmp_path / "ntp", {tags.NTP: NTP_CURVE, tags.RANK: {7: 22.0}}),
        write_run(tmp_path / "nitp", {tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE}),
    ]
    report = build_report(folders)
    assert "Without a number in nitp: effective rank." in report.notes
    assert "NITP" not in row_of(report, tags.RANK).differences


def test_every_measure_names_a_tag_once():
    from recipes.report.measures import MEASURES

    measured = [measure.tag for measure in MEASURES]
    assert len(set(measured)) == len(measured)
    assert all(isinstance(measure, Measure) for measure in MEASURES)


# ------------------------------------------------------------------------------------- reading


def test_a_resumed_run_follows_its_last_start(tmp_path):
    """The second start went back to step 4 and logs every other step; 5 and 7 are of the first."""
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE})
    write_start(run, {tags.NTP: {4: 6.75, 6: 5.75}}, "000001")
    (found,) = read_runs([run])
    assert found.curves[tags.NTP] == {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.75, 6: 5.75}
    assert found.first_steps == (1, 4)
    assert found.notes[0].startswith("was started 2 times, first logging steps 1, 4.")


def test_a_validation_before_the_last_start_is_kept(tmp_path):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE, tags.VALIDATION: {3: 7.0, 6: 5.5}})
    write_start(run, {tags.NTP: {4: 6.75}}, "000001")
    (found,) = read_runs([run])
    assert found.curves[tags.VALIDATION] == {3: 7.0}


def test_the_first_step_of_each_start_is_no_step_time(tmp_path):
    seconds = {1: 90.0, 2: 1.0, 3: 1.0, 4: 1.0}
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE, tags.STEP_TIME: seconds})
    write_start(run, {tags.NTP: {5: 6.0}, tags.STEP_TIME: {5: 80.0, 6: 3.0, 7: 3.0}}, "000001")
    # Of 1, 1, 1, 3, 3 seconds; with step 5 it would be 2.
    assert show_mean(row_of(build_report([run]), tags.STEP_TIME), "NTP") == "1.000"


def test_curves_of_all_ranks_are_read_from_the_first(tmp_path):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE})
    folder = run / "tb" / "20260101-000000"
    folder.rename(run / "rank")
    folder.mkdir()
    (run / "rank").rename(folder / "rank_0")
    assert read_runs([run])[0].last_step == 7


def test_the_folder_of_the_curves_is_the_configurations(tmp_path):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE}, metrics__save_tb_folder="curves")
    (run / "tb").rename(run / "curves")
    assert read_runs([run])[0].last_step == 7


def test_a_run_of_torchtitans_own_stands_for_a_baseline(tmp_path):
    write_start(tmp_path / "titan", {tags.TOTAL: NTP_CURVE})
    (found,) = read_runs([tmp_path / "titan"])
    assert found.curves[tags.NTP] == NTP_CURVE and not found.is_nitp
    assert found.notes[0].startswith(f"has no {tags.NTP};")
    assert found.notes[1].startswith("has no config.toml:")


def test_runs_are_called_by_the_shortest_names_that_tell_them_apart(tmp_path):
    folders = [tmp_path / "a" / "debug", tmp_path / "b" / "debug", tmp_path / "other"]
    for folder in folders:
        write_run(folder, {tags.NTP: NTP_CURVE})
    assert [run.name for run in read_runs(folders)] == ["a/debug", "b/debug", "other"]


def test_a_run_that_is_given_twice_is_one_line(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^run is given twice\. Name each run directory once\.$"):
        read_runs([run, Path("run")])


@pytest.mark.parametrize("text", ["[job", "job = 3\n"])
def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path, text):
    run = write_run(tmp_path / "run", {tags.NTP: NTP_CURVE})
    (run / "config.toml").write_text(text)
    with pytest.raises(ValueError, match="config.toml is no run's configuration: .* move it away"):
        read_runs([run])


# ------------------------------------------------------------------------------------ grouping


def labels(*runs: Path) -> list[tuple[str, list[str]]]:
    groups = group_runs(read_runs(runs))
    return [(group.label, [run.name for run in group.runs]) for group in groups]


def test_seeds_names_and_places_make_no_other_group(tmp_path):
    runs = [
        write_run(tmp_path / f"r{i}", {tags.NTP: NTP_CURVE}, seed=i, checkpoint__folder=f"c{i}",
                  data__seed=i)
        for i in (1, 2)
    ]  # fmt: skip
    assert labels(*runs) == [("NTP", ["r1", "r2"])]


def test_any_other_option_makes_a_group_that_is_named_by_it(tmp_path):
    nitp = {tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE}
    runs = [
        write_run(tmp_path / "base", {tags.NTP: NTP_CURVE}),
        write_run(tmp_path / "one", nitp),
        write_run(tmp_path / "half", nitp, nitp__weight=0.5),
    ]
    expected = [("NTP", ["base"]), ("NITP weight=1.0", ["one"]), ("NITP weight=0.5", ["half"])]
    assert labels(*runs) == expected
    groups = group_runs(read_runs(runs))
    assert list_differences(groups) == [
        ("nitp.enable", ["false", "true", "true"]),
        ("nitp.weight", ["-", "1.0", "0.5"]),
    ]


def test_groups_that_differ_in_much_are_named_by_a_run(tmp_path):
    other = {"training__seq_len": 64, "optimizer__lr": 0.1, "nitp__weight": 0.5}
    nitp = {tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE}
    first, second = write_run(tmp_path / "a", nitp), write_run(tmp_path / "b", nitp, **other)
    assert labels(first, second) == [("NITP a", ["a"]), ("NITP b", ["b"])]


def test_options_of_nitp_are_not_in_force_without_it(tmp_path):
    first = write_run(tmp_path / "a", {tags.NTP: NTP_CURVE}, nitp__target_layer=4)
    second = write_run(tmp_path / "b", {tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE})
    differences = dict(list_differences(group_runs(read_runs([first, second]))))
    assert differences["nitp.target_layer"] == ["-", "2"]


def test_an_option_that_a_version_did_not_have_is_not_set(tmp_path):
    first = write_run(tmp_path / "a", {tags.NTP: NTP_CURVE}, geometry__freq=5)
    second = write_run(tmp_path / "b", {tags.NTP: NTP_CURVE})
    differences = dict(list_differences(group_runs(read_runs([first, second]))))
    assert differences == {"geometry.freq": ["5", "not set"]}


def test_weight_0_is_a_baseline(tmp_path):
    run = write_run(tmp_path / "a", {tags.NTP: NTP_CURVE}, nitp=True, nitp__weight=0.0)
    assert labels(run) == [("NTP", ["a"])]
    other = write_run(
        tmp_path / "b", {tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE}, nitp__target_layer=4
    )
    assert list_differences(group_runs(read_runs([run, other]))) == [
        ("nitp.target_layer", ["-", "4"]),
        ("nitp.weight", ["0.0", "1.0"]),
    ]


def test_a_run_without_a_configuration_is_a_group_of_its_own(tmp_path):
    runs = [write_run(tmp_path / name, {tags.NTP: NTP_CURVE}) for name in ("a", "b")]
    for run in runs:
        (run / "config.toml").unlink()
    assert labels(*runs) == [("a", ["a"]), ("b", ["b"])]


def test_labels_do_not_depend_on_the_order_of_the_runs(tmp_path):
    """Of groups with an option that others lack, and of those that differ in much."""
    nitp = {tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE}
    few = [
        write_run(tmp_path / "a", {tags.NTP: NTP_CURVE}, optimizer__lr=0.1),
        write_run(tmp_path / "b", {tags.NTP: NTP_CURVE}, model__dim=8, optimizer__lr=0.2),
    ]
    much = {"training__seq_len": 64, "optimizer__lr": 0.1, "nitp__weight": 0.5}
    many = [
        write_run(tmp_path / "c", nitp, seed=1), write_run(tmp_path / "d", nitp, seed=2),
        write_run(tmp_path / "e", nitp, **much),
    ]  # fmt: skip
    expected = {"NTP model.dim=not set optimizer.lr=0.1", "NTP model.dim=8 optimizer.lr=0.2"}
    expected |= {"NITP c", "NITP e"}
    for runs in ([*few, *many], [*many[::-1], *few[::-1]]):
        assert {label for label, _ in labels(*runs)} == expected


def test_the_baseline_is_the_first_group_without_nitp(tmp_path):
    nitp = write_run(tmp_path / "nitp", {tags.NTP: NTP_CURVE, tags.NITP: NITP_CURVE})
    ntp = write_run(tmp_path / "ntp", {tags.NTP: NTP_CURVE})
    report = build_report([nitp, ntp])
    assert {label: group.label for label, group in report.baselines.items()} == {"NITP": "NTP"}
    assert [group.label for group in report.groups] == ["NTP", "NITP"]
    reverse = {"NTP": report.groups[1]}
    assert measure_groups(report.groups, reverse)[0].differences.keys() == {"NTP"}


@pytest.fixture
def rates(tmp_path: Path) -> Report:
    """Two learning rates without NITP, losses 4 and 6, and with it, 5 and 6.25."""
    losses = {("ntp", 0.1): 4.0, ("ntp", 0.2): 6.0, ("nitp", 0.1): 5.0, ("nitp", 0.2): 6.25}
    return build_report([
        write_run(
            tmp_path / f"{arm}_{lr}",
            {tags.NTP: {1: loss}} | ({tags.NITP: {1: 0.5}} if arm == "nitp" else {}),
            optimizer__lr=lr,
        )
        for (arm, lr), loss in losses.items()
    ])  # fmt: skip


def test_each_group_is_compared_with_the_nearest_configuration_without_nitp(rates):
    differences = row_of(rates, tags.NTP).differences
    assert {label: found.estimate.mean for label, found in differences.items()} == {
        "NTP optimizer.lr=0.2": 2.0,
        "NITP optimizer.lr=0.1": 1.0,
        "NITP optimizer.lr=0.2": 0.25,
    }
    assert tabulate_headline(rates).columns[6:12:2] == [
        "NTP optimizer.lr=0.2 minus NTP optimizer.lr=0.1",
        "NITP optimizer.lr=0.1 minus NTP optimizer.lr=0.1",
        "NITP optimizer.lr=0.2 minus NTP optimizer.lr=0.2",
    ]
    assert summarise(rates, rates.others[2]).startswith(
        "NITP optimizer.lr=0.2 against NTP optimizer.lr=0.2: "
    )
    assert not any("do not pair" in note for note in rates.notes)


def test_the_table_of_a_sweep_names_the_baselines_where_there_are_several(rates):
    table = tabulate(rates)
    assert table.columns[:5] == [
        "", "seeds", "baseline", "training loss (nats/token), step 1", "minus baseline",
    ]  # fmt: skip
    assert [row[:5] for row in table.rows] == [
        ["NTP optimizer.lr=0.1", "1", "-", "4.0000", "-"],
        ["NTP optimizer.lr=0.2", "1", "NTP optimizer.lr=0.1", "6.0000", "+2.0000"],
        ["NITP optimizer.lr=0.1", "1", "NTP optimizer.lr=0.1", "5.0000", "+1.0000"],
        ["NITP optimizer.lr=0.2", "1", "NTP optimizer.lr=0.2", "6.2500", "+0.2500"],
    ]


def test_an_unknown_configuration_is_no_nearer_than_a_known_one(tmp_path):
    runs = [
        write_run(tmp_path / "unknown", {tags.NTP: {1: 1.0}}),
        write_run(tmp_path / "ntp", {tags.NTP: {1: 2.0}}, optimizer__lr=0.1),
        write_run(tmp_path / "nitp", {tags.NTP: {1: 4.0}, tags.NITP: {1: 0.5}}),
    ]
    (runs[0] / "config.toml").unlink()
    report = build_report(runs)
    assert {label: group.label for label, group in report.baselines.items()} == {
        "NTP": "unknown", "NITP": "NTP",
    }  # fmt: skip
