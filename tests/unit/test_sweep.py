"""scripts/sweep.py: its grid and names, what it refuses, and what survives kills and failures."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes.config.settings import resolve_settings
from recipes.run.lock import RunLock
from recipes.sweep import runner
from recipes.sweep.command import main
from recipes.sweep.grid import MAX_NAME, name_run, parse_grid, split_values
from tests.waiting import DEADLINE_S, wait_until

ROOT = Path(__file__).parents[2]
STAND_IN = ["-m", "tests.sweep_stand_in"]
SWEEP = f"""import sys
from recipes.sweep.command import main
sys.exit(main(sys.argv[1:], [sys.executable, *{STAND_IN}]))
"""
GRID = ["--grid", "nitp.target_layer=1,2", "--seeds", "2"]
ORDER = [
    "baseline_seed=0", "target_layer=1_seed=0", "target_layer=2_seed=0",
    "baseline_seed=1", "target_layer=1_seed=1", "target_layer=2_seed=1",
]  # fmt: skip


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--job.config_file", "train_configs/debug.toml", *GRID, "--output", str(folder),
        "--training.steps=4", "--metrics.log_freq=1", "--lr_scheduler.warmup_steps=1", *more,
    ]  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, *arguments(folder, *more)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def sweep(folder: Path, *more: str) -> tuple[int, str, str]:
    process = start(folder, *more)
    output, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output, errors


def plan_faults(folder: Path, **faults: object) -> None:
    folder.mkdir()
    (folder / "tests.json").write_text(json.dumps(faults))


def started(folder: Path) -> list[str]:
    return (folder / "order.txt").read_text().split()


def table(folder: Path) -> list[str]:
    """The rows: not the notes, which say how often a run was started."""
    return [line for line in (folder / "sweep.md").read_text().splitlines() if line[:1] == "|"]


# ------------------------------------------------------------------------------ grid and names


def test_the_last_key_of_the_grid_changes_fastest():
    grid = parse_grid(["nitp.target_layer=0,4", "nitp.weight=0.5,1"])
    assert [name_run(overrides, 3) for overrides in grid] == [
        "target_layer=0_weight=0.5_seed=3", "target_layer=0_weight=1_seed=3",
        "target_layer=4_weight=0.5_seed=3", "target_layer=4_weight=1_seed=3",
    ]  # fmt: skip


def test_a_list_in_brackets_is_one_value():
    assert split_values("[0.9,0.95], [0.9,0.99]") == ["[0.9,0.95]", "[0.9,0.99]"]


def test_keys_of_the_same_name_keep_their_tables():
    overrides = (("nitp.enable", "true"), ("compile.enable", "true"))
    assert name_run(overrides, 0) == "nitp.enable=true_compile.enable=true_seed=0"


@pytest.mark.parametrize(
    ("first", "second", "beginning"),
    [
        ("a/b", "a:b", "path=a-b_"),
        ("[0.9,0.95]", '["0.9","0.95"]', "path=0.9,0.95_"),
        ("a" * 300 + "b", "a" * 300 + "c", "path=aaa"),
    ],
)
def test_names_stay_unique_where_their_values_are_no_names(first, second, beginning):
    names = [name_run((("tokenizer.path", value),), 0) for value in (first, second)]
    assert names[0] != names[1]
    for name in names:
        assert name.startswith(beginning) and "/" not in name
        assert len(name) <= MAX_NAME + len("_12345678_seed=0")


# ------------------------------------------------------------------------------------ bad usage


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--grid", "nitp.weight=-1"], "nitp.weight (-1.0) must"),
        (["--grid", "nitp.wieght=1"], "Did you mean nitp.weight?"),
        (["--grid", "nitp.weight=1,x"], 'nitp.weight ("x") must be a number'),
        (["--grid", "nitp.weight=1,1"], "has the value 1 twice"),
        (["--grid", "nitp.weight=1,1.0"], "make the same run"),
        (["--grid", "nitp.weight=1,"], "has an empty value"),
        (["--grid", "weight=1"], "must be table.key=v1,v2"),
        (["--grid", "nitp.target_layer=3"], "has nitp.target_layer twice"),
        (["--grid", "data.seed=1,2"], "make the same run"),
        (["--grid", "job.dump_folder=a"], "names no setting of the training"),
        (["--seeds", "3"], "--seeds is given twice"),
        (["--nproc-per-node", "0"], "--nproc-per-node (0) must be at least 1"),
        (["--nitp.target_layer=2"], "--nitp.target_layer (2) has no effect beside --grid"),
        (["--job.dump_folder=x"], "--job.dump_folder (x) has no effect with --output"),
        (["--baseline", "train_configs/debug_moe.toml"], 'has model.flavor = "debug_moe"'),
        (["--baseline", "train_configs/debug_ntp.toml", "--job.config_file=x"], "is given twice"),
        (["--grid", "data.sources=[{path='a\nb'}]"], "has a control character"),
        (["--debug.seed=none"], "debug.seed"),
        (["--checkpoint.enable=false"], "checkpoint.enable (false) must be true in a sweep"),
        (["--baseline", "train_configs/debug_ntq.toml"], "Did you mean train_configs/debug_ntp"),
        (["--dry-run", "--slurm"], "not allowed with"),
        (["--wieght", "1"], "--wieght is not --table.key"),
    ],
)
def test_bad_usage_is_one_line_before_anything_runs(more, message, tmp_path, capsys):
    folder = tmp_path / "sweep"
    assert main(arguments(folder, *more), ["false"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not folder.exists()


def test_a_sweep_does_not_start_under_torchrun(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert main(arguments(tmp_path), ["false"]) == 2
    assert "--nproc-per-node" in capsys.readouterr().err


# ----------------------------------------------------------------------------- order and results


def test_runs_go_seed_by_seed_and_end_in_one_table(tmp_path):
    folder = tmp_path / "sweep"
    code, output, errors = sweep(folder)
    assert (code, errors) == (0, "")
    assert started(folder) == ORDER
    # At step 4: 2 + seed / 4, with NITP 0.5 + k / 8 more. Seeds 0 and 1: spread 0.25 / sqrt 2.
    assert table(folder) == [
        "|  | seeds | training loss (nats/token), step 4 | minus NTP |",
        "| --- | --- | --- | --- |",
        "| NTP | 2 | 2.1250 +- 0.1768 | - |",
        "| NITP target_layer=1 | 2 | 2.7500 +- 0.1768 | +0.6250 (+0.6250 to +0.6250) |",
        "| NITP target_layer=2 | 2 | 2.8750 +- 0.1768 | +0.7500 (+0.7500 to +0.7500) |",
    ]
    assert (folder / "sweep.md").read_text() in output


def test_a_sweep_that_is_done_runs_nothing_again(tmp_path):
    folder = tmp_path / "sweep"
    assert sweep(folder)[0] == 0
    before = table(folder)
    assert sweep(folder)[0] == 0
    assert started(folder) == ORDER
    assert table(folder) == before


def test_a_sweep_killed_twice_ends_with_the_table_of_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kills = [["target_layer=1_seed=0", 3], ["target_layer=2_seed=1", 1]]
    plan_faults(killed, kill=kills)
    assert sweep(whole)[0] == 0
    assert [sweep(killed)[0] for _ in range(3)] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert started(killed) == [*ORDER[:2], *ORDER[1:], ORDER[-1]]
    assert table(killed) == table(whole)


def test_a_signal_lets_the_run_under_way_save_and_starts_no_other(tmp_path):
    folder = tmp_path / "sweep"
    plan_faults(folder, wait=[ORDER[0], 2])
    process = start(folder)
    log = folder / "logs" / f"{ORDER[0]}.log"
    wait_until(lambda: log.exists() and "step 2" in log.read_text())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0 and "The same command goes on." in output
    assert started(folder) == ORDER[:1]
    assert (folder / ORDER[0] / "checkpoint" / "step-2" / ".metadata").exists()
    assert not (folder / "failed").exists()
    (folder / "tests.json").unlink()
    assert sweep(folder)[0] == 0
    assert started(folder) == [ORDER[0], *ORDER]


def test_a_failed_run_is_kept_apart_and_the_sweep_goes_on(tmp_path):
    folder = tmp_path / "sweep"
    plan_faults(folder, fail={"target_layer=1_seed=0": 3})
    code, output, _ = sweep(folder)
    assert code == 1
    assert started(folder) == ORDER
    failure = folder / "failed" / "target_layer=1_seed=0.log"
    assert list(failure.parent.iterdir()) == [failure]
    assert failure.read_text().splitlines() == [
        "target_layer=1_seed=0: exit code 1. The end of its log:",
        "", "step 1", "step 2", "error: step 3 is not finite",
    ]  # fmt: skip
    assert f"* failed: target_layer=1_seed=0, see {failure}" in output
    rows = {row.split(" | ")[0][2:]: row.split(" | ")[1] for row in table(folder)[2:]}
    assert rows == {"NTP": "2", "NITP target_layer=1": "1", "NITP target_layer=2": "2"}
    (folder / "tests.json").unlink()
    assert sweep(folder)[0] == 0
    assert started(folder) == [*ORDER, "target_layer=1_seed=0"]
    assert not failure.exists()


def test_a_run_that_ends_early_is_a_failure(tmp_path):
    """As where its data run out."""
    folder = tmp_path / "sweep"
    launch = [sys.executable, "-c", "print('no more data')"]
    assert main(arguments(folder), launch) == 1
    text = (folder / "failed" / f"{ORDER[0]}.log").read_text()
    assert text.startswith(f"{ORDER[0]}: exit code 0 without step-4: stopped, or its data ran out.")
    assert text.endswith("no more data\n")


def test_a_run_that_outlives_its_sweep_is_waited_for(tmp_path, capfd, monkeypatch):
    """It ends when the sweep has looked for it three times."""
    folder = tmp_path / "sweep"
    (folder / ORDER[0]).mkdir(parents=True)
    held = (
        "import sys; from recipes.run.lock import RunLock\n"
        "with RunLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", held, str(folder / ORDER[0])],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    pauses: list[float] = []

    def pause(duration_s: float) -> None:
        assert not (folder / "order.txt").exists(), "nothing is trained meanwhile"
        pauses.append(duration_s)
        if len(pauses) == 3:
            owner.communicate(timeout=DEADLINE_S)

    clock = SimpleNamespace(sleep=pause, monotonic=time.monotonic)
    monkeypatch.setattr(runner, "time", clock)
    code = main(arguments(folder), [sys.executable, *STAND_IN])
    assert (code, owner.returncode, len(pauses)) == (0, 0, 3)
    assert started(folder) == ORDER
    errors = capfd.readouterr().err
    assert errors.startswith(f"waiting: --output ({folder / ORDER[0]}) belongs to another job: ")
    assert errors.count("waiting: ") == 1 and f"process {owner.pid}" in errors


def test_another_configuration_in_its_folder_is_refused(tmp_path, capsys):
    folder = tmp_path / "sweep"
    assert sweep(folder)[0] == 0
    assert main(arguments(folder, "--optimizer.lr=0.5"), ["false"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --output ({folder / ORDER[0]}) holds a run with another ")
    assert "optimizer.lr (0.001 -> 0.5)" in error and "name another --output" in error


@pytest.mark.parametrize("option", ["--output", "job.dump_folder"])
def test_a_folder_of_another_sweep_is_called_by_the_option_that_named_it(tmp_path, capsys, option):
    folder = tmp_path / "run_sweep"
    given = arguments(folder)
    if option == "job.dump_folder":
        at = given.index("--output")
        given[at : at + 2] = ["--job.dump_folder", str(tmp_path / "run")]
    with RunLock(str(folder)):
        assert main(given, ["false"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option} ({folder}) belongs to another job: ")
    assert error.endswith(f" Wait for its end, or name another {option}.\n")


# ------------------------------------------------------------------- commands, arrays, baselines


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "sweep"
    assert main(arguments(folder, "--dry-run", "--nproc-per-node", "2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ORDER)
    assert "torch.distributed.run --standalone --nproc_per_node=2" in lines[1]
    assert lines[1].endswith(
        "-m recipes.train --job.config_file=train_configs/debug.toml --training.steps=4 "
        "--metrics.log_freq=1 --lr_scheduler.warmup_steps=1 --nitp.target_layer=1 --debug.seed=0 "
        f"--data.seed=0 --job.dump_folder={folder}/target_layer=1_seed=0"
    )
    assert not folder.exists()


def test_the_baseline_is_a_file_the_configuration_itself_or_none(tmp_path, capsys):
    def first(*more: str) -> str:
        assert main(arguments(tmp_path, "--dry-run", *more)) == 0
        return capsys.readouterr().out.splitlines()[0]

    assert "debug.toml" in first() and "--nitp.enable=false" in first()
    assert "debug_ntp.toml" in first("--baseline", "train_configs/debug_ntp.toml")
    assert "--nitp.target_layer=1" in first("--baseline", "none")


def test_options_of_nitp_alone_are_not_the_baselines(tmp_path, capsys):
    """Where it would be a mistake to give them beside nitp.enable=false."""
    more = ["--nitp.weight=0.5", "--nitp.enable", "--float8.enable", "--float8.projector"]
    assert main(arguments(tmp_path, "--dry-run", *more)) == 0
    baseline, run, *_ = capsys.readouterr().out.splitlines()
    assert "nitp.weight" not in baseline and "float8.projector" not in baseline
    assert baseline.count("nitp.enable") == 1 and "--float8.enable=true" in baseline
    assert "--nitp.weight=0.5 --nitp.enable=true" in run and "--float8.projector=true" in run


def test_each_point_has_a_baseline_that_differs_by_nitp_alone(tmp_path, capsys):
    assert main(arguments(tmp_path, "--grid", "optimizer.lr=1,2", "--dry-run")) == 0
    commands = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [command[-1].rpartition("/")[2] for command in commands][:6] == [
        "baseline_lr=1_seed=0", "target_layer=1_lr=1_seed=0", "baseline_lr=2_seed=0",
        "target_layer=1_lr=2_seed=0", "target_layer=2_lr=1_seed=0", "target_layer=2_lr=2_seed=0",
    ]  # fmt: skip
    assert len(commands) == 12
    for baseline, run in ((0, 1), (0, 4), (2, 3), (2, 5)):
        values = [resolve_settings(None, commands[i][3:]).values for i in (baseline, run)]
        assert [v["nitp"]["enable"] for v in values] == [False, True]
        for table in values[0].keys() - {"nitp", "job"}:
            assert values[0][table] == values[1][table]


def test_a_value_that_is_the_baseline_is_not_run_twice(tmp_path, capsys):
    grid = ["--grid", "nitp.enable=false,true", "--dry-run"]
    given = [a for a in arguments(tmp_path) if a not in ("--grid", "nitp.target_layer=1,2")]
    assert main([*given, *grid]) == 0
    captured = capsys.readouterr()  # the commands alone on stdout: they can be a shell's input
    assert captured.err == "note: nitp.enable=false is the baseline: it is not run twice.\n"
    assert [line.rpartition("/")[2] for line in captured.out.splitlines()] == [
        "baseline_seed=0", "enable=true_seed=0", "baseline_seed=1", "enable=true_seed=1",
    ]  # fmt: skip


def test_an_array_has_a_task_for_each_run_that_is_not_done(tmp_path):
    """It hands train.sbatch, in whose place one prints what it is given, that run's arguments."""
    folder = tmp_path / "sweep"
    plan_faults(folder, fail={ORDER[2]: 1, ORDER[4]: 2})
    assert sweep(folder)[0] == 1
    assert main(arguments(folder, "--slurm", "--nproc-per-node", "2")) == 0
    script = folder / "sweep.sbatch"
    assert "#SBATCH --array=0-1\n" in script.read_text()
    assert "#SBATCH --signal=B:TERM@600\n" in script.read_text()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.sbatch").write_text('echo "$NPROC_PER_NODE" "$@"\n')
    printed = subprocess.run(
        ["bash", script], cwd=tmp_path, env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert printed.stdout == (
        "2 train_configs/debug.toml --training.steps=4 --metrics.log_freq=1 "
        "--lr_scheduler.warmup_steps=1 --nitp.target_layer=1 --debug.seed=1 --data.seed=1 "
        f"--job.dump_folder={folder}/{ORDER[4]}\n"
    )


@pytest.mark.parametrize("name", ["a b", "100%A", "it's $(touch PWNED) `x`;", '"q" \\'])
def test_a_folders_name_is_no_part_of_an_array_but_a_name(tmp_path, name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / name
    given = arguments(folder, "--slurm")
    if "$" in name:  # which begins no variable
        assert main(given) == 2
        return
    assert main(given) == 0
    script = (folder / "sweep.sbatch").read_text()
    (output,) = (line for line in script.splitlines() if line.startswith("#SBATCH --output="))
    logs = shlex.split(output.removeprefix("#SBATCH "))[0].removeprefix("--output=")
    assert logs == f"{str(folder).replace('%', '%%')}/logs/%x-%A_%a.log"
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.sbatch").write_text('printf "%s\\n" "$@"\n')
    printed = subprocess.run(
        ["bash", folder / "sweep.sbatch"], cwd=tmp_path,
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert printed.stdout.endswith(f"--job.dump_folder={folder}/{ORDER[0]}\n")
    queue = capsys.readouterr().out.splitlines()[0].partition(": ")[2]
    assert shlex.split(queue) == ["sbatch", "--nodes=1", f"{folder}/sweep.sbatch"]


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\u2028"])
def test_a_newline_in_a_folders_name_never_gets_to_a_script(tmp_path, character, capsys):
    (tmp_path / "x.toml").write_text(
        f'[job]\nextends = "{ROOT}/train_configs/debug.toml"\n'
        f'dump_folder = "{tmp_path}/x\\u{ord(character):04x}touch PWNED #"\n'
    )
    given = [f"--job.config_file={tmp_path / 'x.toml'}", *GRID, "--slurm"]
    assert main(given) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and captured.count("\n") == 1
    assert "x.toml: job.dump_folder (" in captured and "has a control character" in captured
    assert {path.name for path in tmp_path.iterdir()} == {"x.toml"}


def test_the_table_of_what_is_done_needs_no_run(tmp_path, capsys):
    """As after an array; before it, there is none, and nothing to queue after it."""
    folder = tmp_path / "sweep"
    assert main(arguments(folder, "--table"), ["false"]) == 0
    assert f"* not done: {ORDER[0]}" in capsys.readouterr().out
    assert sweep(folder)[0] == 0
    before = table(folder)
    (folder / "sweep.md").unlink()
    assert main(arguments(folder, "--table"), ["false"]) == 0
    assert table(folder) == before
    assert main(arguments(folder, "--slurm")) == 2
    assert "all runs are done" in capsys.readouterr().err
