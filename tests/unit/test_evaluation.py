"""What a user writes to have models evaluated: suite files and the command's options."""

import shutil
from dataclasses import replace

import pytest

from recipes.evaluation.command import parse_request
from recipes.evaluation.request import EvaluateRequest, Subject
from recipes.evaluation.suite import FOLDER, load_suite


def test_the_suites_of_this_package_are_valid():
    for path in FOLDER.glob("*.toml"):
        assert load_suite(path.stem).tasks


TASK = '[[tasks]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("harness = ", "suite.toml"),
        ('harness = "lm-eval"', "at least one [[tasks]] table"),
        ('harness = "helm"\n' + TASK, 'harness (helm) must be "lm-eval" or "mteb"'),
        ('harnes = "mteb"\n' + TASK, "harnes is no option. Did you mean harness?"),
        ('harness = "mteb"\ntitle = 3\n' + TASK, "title (3) must be a string"),
        ('harness = "mteb"\nnotes = [3]\n' + TASK, "notes ([3]) must be a list of strings"),
        ('harness = "mteb"\n[[tasks]]\nlabel = "x"', "must be a table with a name"),
        ('harness = "mteb"\n' + TASK + "num_fewshot = 1", "num_fewshot has no effect with mteb"),
        ('harness = "lm-eval"\n' + TASK, "metric must be given"),
        ('harness = "lm-eval"\n' + TASK + 'metric = "acc"\nnum_fewshot = true', "a whole number"),
        ('harness = "lm-eval"\n' + TASK + 'metric = "acc"\nnum_fewshot = -1', "at least 0"),
        ('harness = "lm-eval"\n' + TASK + 'metric = "acc"\nsubset = "en"', "subset has no effect"),
        ('harness = "mteb"\n' + TASK + 'shots = 3', "shots is no option"),
        ('harness = "mteb"\n' + TASK + 'label = " "', "(a): label must not be empty"),
        ('harness = "mteb"\n[[tasks]]\nname = ""', "name must not be empty"),
        ('harness = "mteb"\ntasks = []', "at least one [[tasks]] table"),
        ('harness = "mteb"\n' + TASK + TASK, '2 tasks are called "a"'),
        ('harness = "mteb"\n' + TASK + 'data = "nowhere"', "is no folder"),
        ('harness = "lm-eval"\ntask_folders = ["nowhere"]\n' + TASK + 'metric = "acc"', "folder"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_suite_is_one_line(tmp_path, text, message):
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_suite(str(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_models_and_runs_keep_the_order_they_are_given_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        (tmp_path / name).mkdir()
    request = parse_request(
        ["--run", "a", "b", "--model", "c", "--run", "d", "--suite", "paper", "--step", "7"]
    )
    assert [(str(s.folder), s.is_run) for s in request.subjects] == [
        ("a", True), ("b", True), ("c", False), ("d", True),
    ]  # fmt: skip
    assert request.step == 7 and str(request.output) == "outputs/evaluation/paper"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": []}, "--run or --model must be given"),
        ({"step": 3}, "--step (3) has no effect with --model"),
        ({"batch_size": 0}, "--batch-size (0) must be at least 1"),
        ({"suite": "papr"}, "--suite (papr) must be one of"),
        ({"subjects": [Subject(folder="nowhere", is_run=False)]}, "is not a folder"),
        ({"subjects": [Subject(folder="nowhere", is_run=True)]}, "is not a run directory"),
        ({"subjects": [Subject(folder="mute", is_run=False)]}, "mute) has no tokenizer (tok"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_without_torch(tmp_path, changes, message):
    (tmp_path / "suite.toml").write_text('harness = "mteb"\n' + TASK)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    (tmp_path / "one" / "model.safetensors").touch()
    shutil.copytree(tmp_path / "one", tmp_path / "mute")
    (tmp_path / "one" / "tokenizer.json").touch()
    request = EvaluateRequest(
        subjects=[Subject(folder=tmp_path / "one", is_run=False)],
        suite=str(tmp_path / "suite.toml"),
        output=tmp_path / "out",
    )
    assert request.load_suite().harness == "mteb"
    if "subjects" in changes:
        changes["subjects"] = [
            replace(subject, folder=tmp_path / subject.folder) for subject in changes["subjects"]
        ]
    with pytest.raises(ValueError) as caught:
        replace(request, **changes).load_suite()
    assert message in str(caught.value) and "\n" not in str(caught.value)
