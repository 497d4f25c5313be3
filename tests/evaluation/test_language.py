"""python scripts/evaluate.py on tasks of lm-eval: models whose every answer is known."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.evaluation.chain_model import save_chain_model
from tests.evaluation.local_tasks import write_tasks
from tests.integration.export_runs import DENSE, SMALL, save_run
from tests.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

# What the models say after red, green and blue. Right by hand, question by question:
FIRST = {"red": "one", "green": "two", "blue": "three"}  # small 110, large 01011, chains 1100
SECOND = {"red": "one", "green": "three", "blue": "two"}  # small 101, large 01100, chains 1010

SUITE = """
title = "Words"
harness = "lm-eval"
task_folders = ["tasks"]
notes = ["Colours are answered."]

[[tasks]]
name = "small"
label = "Small"
num_fewshot = 2
metric = "acc"

[[tasks]]
name = "by_document"
num_fewshot = 1
metric = "acc"

[[tasks]]
name = "by_task"
num_fewshot = 0
metric = "acc"

[[tasks]]
name = "chains"
metric = "exact_match"
filter = "first"
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A suite, and two models."""
    folder = tmp_path_factory.mktemp("words")
    write_tasks(folder)
    (folder / "suite.toml").write_text(SUITE)
    save_chain_model(folder / "first", FIRST)
    save_chain_model(folder / "second", SECOND)
    return folder


def evaluate(*arguments):
    """The command, as a user starts it: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "scripts/evaluate.py", *map(str, arguments)],
        cwd=ROOT, env=os.environ | OFFLINE, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def read_table(output):
    content = json.loads((output / "evaluation.json").read_text())
    return {row["title"]: row for row in content["rows"]}


@pytest.fixture(scope="module")
def evaluated(words, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    arguments = ["--model", words / "first", words / "second", "--suite", words / "suite.toml"]
    code, stdout, stderr = evaluate(*arguments, "--output", output)
    assert code == 0, stderr
    return output, stdout, arguments


def test_scores_are_the_share_of_the_answers_that_are_right_by_hand(evaluated):
    rows = read_table(evaluated[0])
    assert rows["Small"]["scores"] == pytest.approx([2 / 3, 2 / 3])
    assert rows["by_document"]["scores"] == pytest.approx([5 / 8, 4 / 8])
    assert rows["by_task"]["scores"] == pytest.approx(
        [(2 / 3 + 3 / 5) / 2, (2 / 3 + 2 / 5) / 2], abs=1e-12
    )
    assert rows["chains"]["scores"] == pytest.approx([2 / 4, 2 / 4])
    means = [
        (2 / 3 + 5 / 8 + (2 / 3 + 3 / 5) / 2 + 2 / 4) / 4,
        (2 / 3 + 4 / 8 + (2 / 3 + 2 / 5) / 2 + 2 / 4) / 4,
    ]
    assert rows["mean"]["scores"] == pytest.approx(means)
    (difference,) = rows["mean"]["differences"]
    assert difference["value"] == pytest.approx(means[1] - means[0])
    assert difference["low"] < difference["value"] < difference["high"]


def test_shots_and_documents_are_those_of_the_suite(evaluated):
    rows = read_table(evaluated[0])
    assert [rows[t]["num_fewshot"] for t in ("Small", "by_document", "by_task", "chains")] == [
        2, 1, 0, 0,
    ]  # fmt: skip
    assert [rows[t]["num_documents"] for t in ("Small", "by_document", "by_task", "chains")] == [
        3, 8, 8, 4,
    ]  # fmt: skip


def test_the_table_that_is_printed_is_the_one_that_is_written(evaluated):
    output, stdout, _ = evaluated
    written = (output / "evaluation.md").read_text()
    assert stdout.endswith(written)
    cells = [cell.strip() for cell in re.findall(r"(?m)^\| by_document .*$", written)[0].split("|")]
    assert cells[1:7] == ["by_document", "1", "acc", "8", "62.50", "50.00"]
    assert cells[7].startswith("-12.50 [-")
    assert "Colours are answered." in written
    assert "second: above first on 0 of 4 tasks." in written


def test_a_second_start_does_no_task_twice(evaluated):
    output, _, arguments = evaluated
    before = {path: path.stat().st_mtime_ns for path in output.glob("results/*/*")}
    assert len(before) == 8
    table = (output / "evaluation.json").read_bytes()
    code, stdout, _ = evaluate(*arguments, "--output", output)
    assert code == 0 and "running" not in stdout and "4 of 4 tasks done" in stdout
    assert {path: path.stat().st_mtime_ns for path in output.glob("results/*/*")} == before
    assert (output / "evaluation.json").read_bytes() == table


def test_an_interrupted_evaluation_goes_on_where_it_was(words, tmp_path, evaluated):
    """SIGTERM during a run's second task: what is done stays, the export does not."""
    torch.manual_seed(0)
    save_run(tmp_path / "run", DENSE, SMALL)
    output = tmp_path / "output"
    arguments = [
        "--model", words / "first", "--run", tmp_path / "run", "--suite", words / "suite.toml",
        "--output", output,
    ]  # fmt: skip
    command = [sys.executable, "scripts/evaluate.py", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | OFFLINE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[2/4] run/step-3, by_document: running"):
                process.terminate()
                break
        rest = process.stdout.read()
    assert process.returncode == 130 and "The same command goes on." in rest
    assert {path.name for path in output.iterdir()} == {"results"}
    done = {path: path.stat().st_mtime_ns for path in output.glob("results/*/*")}
    assert len(done) == 5
    code, stdout, stderr = evaluate(*arguments)
    assert code == 0, stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert "[1/4]" not in stdout and stdout.count("running") == 3
    assert read_table(output)["mean"]["scores"][0] == read_table(evaluated[0])["mean"]["scores"][0]


def test_a_run_scores_as_the_model_of_its_export_and_leaves_no_export(words, tmp_path):
    torch.manual_seed(0)
    save_run(tmp_path / "run", DENSE, SMALL)
    export = [sys.executable, "scripts/export.py", "--run", tmp_path / "run"]
    subprocess.run(
        [*export, "--output", tmp_path / "model"], cwd=ROOT, check=True, timeout=DEADLINE_S
    )
    output = tmp_path / "output"
    code, _, stderr = evaluate(
        "--model", tmp_path / "model", "--run", tmp_path / "run",
        "--suite", words / "suite.toml", "--output", output,
    )  # fmt: skip
    assert code == 0, stderr
    rows = read_table(output)
    assert len(rows) == 5
    for row in rows.values():
        assert row["scores"][0] == row["scores"][1]
        assert row["differences"] == [{"value": 0.0, "low": 0.0, "high": 0.0}]
    by_model = [sorted(folder.glob("small-*.json")) for folder in output.glob("results/*")]
    answers = [json.loads(path.read_text())["score"] for (path,) in by_model]
    assert answers[0] == answers[1]
    assert {path.name for path in output.iterdir()} == {
        "results", "evaluation.json", "evaluation.md",
    }  # fmt: skip


def test_a_task_without_its_data_stops_no_other_and_is_one_line(words, tmp_path):
    """arc_easy is on the hub, which is not reached."""
    suite = words / "with_hub.toml"
    suite.write_text(SUITE + '\n[[tasks]]\nname = "arc_easy"\nmetric = "acc"\n')
    code, _, stderr = evaluate("--model", words / "first", "--suite", suite, "--output", tmp_path)
    assert code == 1
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: first, arc_easy: ") and "HF_HOME" in line
    assert "Traceback" not in stderr
    rows = read_table(tmp_path)
    assert rows["arc_easy"]["scores"] == [None]
    assert rows["mean"]["metric"] == "of 4"
    assert "arc_easy" in (tmp_path / "evaluation.md").read_text().split("In no mean")[1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('name = "arc_esy"\nmetric = "acc"', "arc_esy is no task of lm-eval"),
        ('name = "ai2_arc"\nmetric = "acc"', "ai2_arc is no task of lm-eval"),
    ],
)
def test_a_task_that_there_is_none_of_is_refused_before_a_model_is_loaded(
    words, tmp_path, entry, message
):
    suite = tmp_path / "suite.toml"
    suite.write_text(f'harness = "lm-eval"\n[[tasks]]\n{entry}\n')
    code, stdout, stderr = evaluate("--model", words / "first", "--suite", suite)
    assert code == 2 and message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr and "tasks done" not in stdout


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('name = "small"\nmetric = "f1"', "metric f1 with filter none is none of its scores"),
        ('name = "chains"\nmetric = "exact_match"', "exact_match,first"),
        (
            'name = "chains"\nmetric = "exact_match"\nfilter = "first"\nnum_fewshot = 3',
            "num_fewshot (3) has no effect",
        ),
    ],
)
def test_what_a_task_does_not_answer_is_one_line(words, tmp_path, entry, message):
    suite = words / "wrong.toml"
    suite.write_text(f'harness = "lm-eval"\ntask_folders = ["tasks"]\n[[tasks]]\n{entry}\n')
    code, _, stderr = evaluate("--model", words / "first", "--suite", suite, "--output", tmp_path)
    assert code == 1 and message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
