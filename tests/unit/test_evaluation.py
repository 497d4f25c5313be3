"""recipes/evaluation, all that needs neither lm-eval nor mteb."""

import itertools
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recipes.evaluation.command import parse_request
from recipes.evaluation.compare import compare_over_tasks, compare_scores
from recipes.evaluation.models import find_models
from recipes.evaluation.request import EvaluateRequest, Subject
from recipes.evaluation.results import Items, Score, Store
from recipes.evaluation.runner import Runner, open_harness
from recipes.evaluation.suite import FOLDER, Suite, Task, load_suite
from recipes.evaluation.table import build_table


def score(*lists, value=None, is_weighted=True, digest="same"):
    """Of a group with a task for each list of right and wrong."""
    items = {str(i): Items(scores=scores, digest=digest) for i, scores in enumerate(lists)}
    means = [sum(scores) / len(scores) for scores in lists]
    mean = sum(means) / len(means)
    if is_weighted:
        mean = sum(map(sum, lists)) / sum(map(len, lists))
    return Score(
        value=mean if value is None else value, metric="acc", num_fewshot=2, items=items,
        is_weighted=is_weighted,
    )  # fmt: skip


def all_resamples(values):
    """Every way to draw n of n values with replacement, equally likely, and its mean."""
    return np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=len(values))])


def exact_interval(means):
    """The exact quantiles. Of 10 000 draws they are the same where they do not change when the
    probability moves by four of its standard errors, sqrt(0.025 * 0.975 / 10 000) = 0.0016."""
    means = np.round(means, 12)
    low, exact, high = (
        np.quantile(means, [0.025 + shift, 0.975 + shift], method="inverted_cdf")
        for shift in (-0.0065, 0.0, 0.0065)
    )
    assert np.array_equal(low, exact) and np.array_equal(high, exact)
    return pytest.approx(exact, abs=1e-11)


def test_interval_is_that_of_all_resamples_of_paired_documents():
    ours, theirs = [0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 1, 1]
    found = compare_scores([score(ours)], [score(theirs)])
    assert found.value == pytest.approx(3 / 6 - 5 / 6)
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert [found.low, found.high] == exact_interval(all_resamples(pairs))


@pytest.mark.parametrize("is_weighted", [True, False])
def test_each_task_of_a_group_is_resampled_by_itself(is_weighted):
    ours, theirs = ([1, 1], [1, 0, 1, 0]), ([0, 1], [0, 0, 1, 1])
    found = compare_scores(
        [score(*ours, is_weighted=is_weighted)], [score(*theirs, is_weighted=is_weighted)]
    )
    first, second = (
        all_resamples([a - b for a, b in zip(x, y, strict=True)])
        for x, y in zip(ours, theirs, strict=True)
    )
    weights = (2 / 6, 4 / 6) if is_weighted else (1 / 2, 1 / 2)
    both = (weights[0] * first[:, None] + weights[1] * second[None, :]).ravel()
    assert [found.low, found.high] == exact_interval(both)


def test_interval_of_a_mean_resamples_the_tasks_by_themselves():
    ours, theirs = ([1, 1], [1, 0, 1, 0]), ([0, 1], [0, 0, 1, 1])
    found = compare_scores([score(x) for x in ours], [score(x) for x in theirs])
    first, second = (
        all_resamples([a - b for a, b in zip(x, y, strict=True)])
        for x, y in zip(ours, theirs, strict=True)
    )
    assert found.value == pytest.approx(0.25)
    both = (first[:, None] / 2 + second[None, :] / 2).ravel()
    assert [found.low, found.high] == exact_interval(both)


def test_tasks_whose_documents_score_alike_are_not_resampled_alike():
    ours, theirs = [1, 1, 0, 0, 1], [0, 1, 0, 0, 0]
    one = all_resamples([1, 0, 0, 0, 1])
    both = (one[:, None] / 2 + one[None, :] / 2).ravel()
    for found in (
        compare_scores([score(ours)] * 2, [score(theirs)] * 2),
        compare_scores([score(ours, ours)], [score(theirs, theirs)]),
    ):
        assert [found.low, found.high] == exact_interval(both)


@pytest.mark.parametrize(
    "other",
    [
        score([1, 0, 1], digest="other"),
        replace(score([1, 0, 1]), items=None),
        score([1, 0, 1], [1]),
        score([1, 0, 1], is_weighted=False),
    ],
)
def test_documents_that_make_no_pairs_have_no_interval(other):
    found = compare_scores([score([0, 0, 1])], [other])
    assert found.value == pytest.approx(1 / 3 - other.value) and found.low is found.high is None


def test_interval_over_tasks_resamples_tasks():
    def plain(*values):
        return [Score(value=value, metric="main") for value in values]

    found = compare_over_tasks(plain(0.5, 0.9, 0.3, 0.2, 0.75), plain(0.375, 0.4, 0.3, 0.075, 0.25))
    assert found.value == pytest.approx((0.125 + 0.5 + 0.0 + 0.125 + 0.5) / 5)
    means = all_resamples([0.125, 0.5, 0.0, 0.125, 0.5])
    assert [found.low, found.high] == exact_interval(means)
    assert compare_over_tasks(plain(0.5), plain(0.25)).low is None


@pytest.mark.parametrize("value", [float("nan"), 12.5, -1.5])
def test_a_score_that_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match=r"metric acc .* must be a number from -1 to 1"):
        score([1.0], value=value)


class StandIn:
    """A harness whose every call is noted, and which fails or is interrupted where asked."""

    def __init__(self, failing=(), interrupted_at=None):
        self.calls, self.failing, self.interrupted_at = [], failing, interrupted_at
        self.files = ""

    def check(self):
        pass

    def identify(self, task):
        return self.files

    def load(self, folder):
        self.calls.append(folder.name)
        return self

    def evaluate(self, task):
        if len(self.calls) == self.interrupted_at:
            raise KeyboardInterrupt
        self.calls.append(task.name)
        if task.name in self.failing:
            raise RuntimeError("No such\nthing")
        return score([1, 0, 1])


SUITE = Suite(
    name="s", title="S", harness="mteb", tasks=[Task(name=name, group="g") for name in "abc"]
)


@pytest.fixture
def models(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    return find_models([Subject(folder=tmp_path / n, is_run=False) for n in ("one", "two")], None)


def test_an_interrupted_evaluation_does_no_task_twice(tmp_path, models):
    first = StandIn(interrupted_at=6)
    with pytest.raises(KeyboardInterrupt):
        Runner(SUITE, tmp_path / "out", first).run(models)
    second = StandIn()
    scores = Runner(SUITE, tmp_path / "out", second).run(models)
    assert first.calls == ["one", "a", "b", "c", "two", "a"]
    assert second.calls == ["two", "b", "c"]
    assert scores == {m.label: {name: score([1, 0, 1]) for name in "abc"} for m in models}


def test_a_task_that_fails_stops_no_other_and_is_tried_again(tmp_path, models):
    runner = Runner(SUITE, tmp_path / "out", StandIn(failing=("b",)))
    scores = runner.run(models[:1])
    assert [*scores["one"]] == ["a", "c"]
    (line,) = runner.failures
    assert line.startswith("one, b: RuntimeError: No such thing. Everything it said: ")
    log = Path(line.rpartition(": ")[2])
    assert "RuntimeError" in log.read_text()
    again = StandIn()
    Runner(SUITE, tmp_path / "out", again).run(models[:1])
    assert again.calls == ["one", "b"] and not log.exists()


def test_a_model_that_cannot_be_loaded_stops_no_other(tmp_path, models):
    class Harness(StandIn):
        def load(self, folder):
            if folder.name == "one":
                raise OSError("no weights")
            return super().load(folder)

    runner = Runner(SUITE, tmp_path / "out", Harness())
    assert {label: [*found] for label, found in runner.run(models).items()} == {
        "one": [], "two": ["a", "b", "c"],
    }  # fmt: skip
    assert runner.failures[0].startswith("one: OSError: no weights. ")
    (log,) = tmp_path.glob("out/failed/*")
    Runner(SUITE, tmp_path / "out", StandIn()).run(models)
    assert not log.exists()


def test_a_device_that_is_not_here_is_refused(tmp_path):
    request = EvaluateRequest(subjects=[], suite="s", output=tmp_path, device="cuda:99")
    with pytest.raises(ValueError, match=r"--device \(cuda:99\) must be one of those here: "):
        open_harness(SUITE, request)


def _touch_model(folder, harness):
    path = folder / "one" / "config.json"
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1_000_000))


def _change_files(folder, harness):
    harness.files = "other"


@pytest.mark.parametrize("change", [_touch_model, _change_files])
def test_a_result_is_not_taken_for_that_of_another_model_or_task(tmp_path, models, change):
    Runner(SUITE, tmp_path / "out", StandIn()).run(models[:1])
    harness = StandIn()
    change(tmp_path, harness)
    Runner(SUITE, tmp_path / "out", harness).run(
        find_models([Subject(folder=tmp_path / "one", is_run=False)], None)
    )
    assert harness.calls == ["one", "a", "b", "c"]


@pytest.mark.parametrize("key", ["num_fewshot", "metric", "filter", "subset", "data"])
def test_a_result_is_not_taken_for_the_answer_to_another_question(tmp_path, models, key):
    Runner(SUITE, tmp_path / "out", StandIn()).run(models[:1])
    harness = StandIn()
    first, *rest = SUITE.tasks
    changed = replace(first, **{key: 3 if key == "num_fewshot" else "x"})
    suite = replace(SUITE, tasks=[changed, *rest])
    Runner(suite, tmp_path / "out", harness).run(models[:1])
    assert harness.calls == ["one", "a"]


def test_a_result_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path):
    store, task = Store(tmp_path), Task(name="a")
    kept = replace(score([0.1, 1.0], [1 / 3]), is_weighted=False)
    store.save("m", task, {"q": 1}, kept)
    assert store.load("m", task, {"q": 1}) == kept
    assert store.load("m", task, {"q": 2}) is None and store.load("n", task, {"q": 1}) is None
    (path,) = tmp_path.glob("m/*")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="is no result .* Remove it"):
        store.load("m", task, {"q": 1})


def test_models_are_called_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    subjects = []
    for name in ("x/step-1", "x/step-2", "y/step-1"):
        (tmp_path / name).mkdir(parents=True)
        subjects.append(Subject(folder=tmp_path / name, is_run=False))
    assert [m.label for m in find_models(subjects[:2], None)] == ["step-1", "step-2"]
    assert [m.label for m in find_models(subjects, None)] == ["x/step-1", "x/step-2", "y/step-1"]
    with pytest.raises(ValueError, match="is given twice"):
        find_models([subjects[0], subjects[0]], None)


def test_means_are_over_the_tasks_that_every_model_has():
    tasks = [Task(name="a", group="g"), Task(name="b", group="g"), Task(name="c", group="h")]
    suite = Suite(name="s", title="S", harness="lm-eval", tasks=tasks)
    scores = {
        "x": {"a": score([1, 0]), "b": score([1, 1]), "c": score([0, 1, 1, 1])},
        "y": {"a": score([1, 1]), "c": score([1, 1, 1, 0])},
    }
    table = build_table(suite, ["x", "y"], scores)
    rows = {row.title: row for row in table.rows}
    assert rows["b"].scores == [1.0, None] and rows["b"].differences == [None]
    assert rows["mean of g"].scores == [0.5, 1.0] and rows["mean of h"].scores == [0.75, 0.75]
    assert rows["mean"].scores == [0.625, 0.875] and rows["mean"].metric == "of 2"
    assert table.missing == ["b"]
    text = table.to_markdown()
    assert "y: above x on 1 of 2 tasks." in text
    assert "In no mean, as a model has no score of it: b." in text
    json.dumps(table.to_json())


def test_a_title_with_a_bar_stays_in_its_cell():
    task = Task(name="a", label="x|y")
    suite = Suite(name="s", title="S", harness="lm-eval", tasks=[task])
    lines = (
        build_table(suite, ["m"], {"m": {"x|y": score([1, 0, 0, 1])}}).to_markdown().splitlines()
    )
    assert lines[2:5] == [
        "| benchmark | shots | metric | documents |     m |",
        "| --------- | ----: | -----: | --------: | ----: |",
        "| x\\|y      |     2 |    acc |         4 | 50.00 |",
    ]


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


def test_models_and_runs_keep_the_order_they_are_given_in():
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
    ],
)
def test_a_request_that_makes_no_sense_is_refused_without_torch(tmp_path, models, changes, message):
    (tmp_path / "suite.toml").write_text('harness = "mteb"\n' + TASK)
    (tmp_path / "one" / "model.safetensors").touch()
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
