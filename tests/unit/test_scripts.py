"""The figures of scripts/compare_runs.py and scripts/benchmark_data.py."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

from torch.utils.tensorboard import SummaryWriter

from recipes.data.loader import PackedDataLoader

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare_runs, benchmark_data = load("compare_runs"), load("benchmark_data")

# Falls, by half at step 3, to 0.1; climbs to 0.3 at step 6; declines.
NITP = {1: 1.0, 2: 0.8, 3: 0.4, 4: 0.1, 5: 0.2, 6: 0.3, 7: 0.05}
NTP = {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.5, 5: 6.0, 6: 5.5, 7: 5.25}


def write_run(folder: Path, curves: dict[str, dict[int, float]]) -> Path:
    with SummaryWriter(str(folder / "tb" / "20260101-0000")) as writer:
        for tag, curve in curves.items():
            for step, value in curve.items():
                writer.add_scalar(tag, value, step)
    return folder


def test_runs_are_compared_at_the_steps_they_have_in_common(tmp_path, monkeypatch, capsys):
    seconds = {1: 90.0, 2: 3.0, 3: 1.0, 4: 2.0, 5: 8.0}
    validation = {2: 7.75, 6: 5.4321}
    nitp = write_run(tmp_path / "nitp", {
        compare_runs.NTP: NTP, compare_runs.NITP: NITP, compare_runs.STEP_TIME: seconds,
        compare_runs.VALIDATION: validation,
    })  # fmt: skip
    ntp = write_run(tmp_path / "ntp", {
        compare_runs.NTP: {step: NTP[step] + 0.5 for step in (1, 3, 5, 7)},
        compare_runs.STEP_TIME: {1: 50.0, 2: 4.0},
    })  # fmt: skip
    output = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["compare", str(nitp), str(ntp), "--output", str(output)])
    assert compare_runs.main() == 0
    text = (output / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    assert text.split("\n\nMachine: ")[0].splitlines() == [
        "| step | nitp NTP | nitp NITP | ntp NTP |",
        "|---|---|---|---|",
        "| 1 | 9.000 | 1.000 | 9.500 |",
        "| 3 | 7.000 | 0.400 | 7.500 |",
        "| 5 | 6.000 | 0.200 | 6.500 |",
        "| 7 | 5.250 | 0.050 | 5.750 |",
        "",
        "| run | validation NTP | NITP least, then most | step time, median (s) |",
        "|---|---|---|---|",
        # Of 3, 1, 2 and 8 seconds; the first step starts up.
        "| nitp | 5.4321 | 0.100 at step 4, 0.300 at step 6 | 2.500 |",
        "| ntp | - | - | 4.000 |",
    ]


def test_a_loss_that_only_falls_has_no_hump():
    curves = {
        compare_runs.NTP: NTP, compare_runs.NITP: {1: 0.9, 2: 0.5, 3: 0.25},
        compare_runs.STEP_TIME: {1: 1.0, 2: 1.0},
    }  # fmt: skip
    assert "| run | - | 0.250 at step 3, no rise | 1.000 |" in compare_runs.compare({"run": curves})


def test_long_runs_are_compared_in_twelve_rows_with_both_ends(tmp_path):
    curves = {compare_runs.NTP: {s: float(s) for s in range(1, 1001)}}
    curves[compare_runs.STEP_TIME] = {1: 1.0, 2: 1.0}
    lines = compare_runs.compare({"long": curves}).split("\n\n")[0].splitlines()[2:]
    steps = [int(line.split("|")[1]) for line in lines]
    assert len(steps) == 12 and (steps[0], steps[-1]) == (1, 1000)
    assert {after - before for before, after in zip(steps, steps[1:], strict=False)} <= {90, 91}


def test_a_folder_without_curves_is_one_line(tmp_path, monkeypatch, capsys):
    arguments = ["compare", str(tmp_path), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    assert compare_runs.main() == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path} has no TensorBoard curves.")
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_the_speed_of_a_rank_is_its_rows_over_the_time_they_took(tmp_path, monkeypatch, capsys):
    """Drawing a row takes half a second of this clock, 0.25 s where it is one of four ranks."""
    now_s, drawn = [0.0], []
    draw = PackedDataLoader.__iter__

    def draw_slowly(self: PackedDataLoader):
        for batch in draw(self):
            now_s[0] += 0.5 / (1 if self._num_ranks == 1 else 2)
            drawn.append((self._num_ranks, self._rank))
            yield batch

    monkeypatch.setattr(PackedDataLoader, "__iter__", draw_slowly)
    monkeypatch.setattr(benchmark_data.time, "perf_counter", lambda: now_s[0])
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"row {i} " * 40}) + "\n" for i in range(64)))
    monkeypatch.setattr("sys.argv", [
        "benchmark", "--job.config_file", "train_configs/debug.toml", "--seconds", "3",
        "--ranks", "1,3,4", f"--data.sources=[{{path='{corpus}'}}]", "--data.num_streams=8",
        "--training.seq_len=64",
    ])  # fmt: skip
    monkeypatch.chdir(SCRIPTS.parent)
    assert benchmark_data.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["| 1 | 2 | 128 | 128 |", "| 4 | 4 | 256 | 256 |"]
    assert "rows of 64 tokens, 8 streams, 0 workers" in lines
    # After one row of each of its streams: 3 seconds of rows. 3 ranks cannot share 8 streams.
    assert drawn == [(1, 0)] * (8 + 6) + [(4, 0)] * (2 + 12)
