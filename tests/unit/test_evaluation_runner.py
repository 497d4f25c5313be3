"""What an evaluation runs, what it keeps, and what it does not run again."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.evaluation import results
from recipes.evaluation.models import find_models
from recipes.evaluation.request import EvaluateRequest, Subject
from recipes.evaluation.results import Store
from recipes.evaluation.runner import Runner, open_harness
from recipes.evaluation.suite import Suite, Task
from tests.unit.evaluation_scores import score


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


def _edit_model(folder, harness):
    """At the same size and time."""
    path = folder / "one" / "config.json"
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _touch(path):
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1_000_000))


def _touch_weights(folder, harness):
    _touch(folder / "one" / "model.safetensors")


def _change_files(folder, harness):
    harness.files = "other"


@pytest.mark.parametrize("change", [_edit_model, _touch_weights, _change_files])
def test_a_result_is_not_taken_for_that_of_another_model_or_task(
    tmp_path, models, monkeypatch, change
):
    monkeypatch.setattr(results, "_MAX_READ_BYTES", 100)
    (tmp_path / "one" / "model.safetensors").write_bytes(bytes(101))
    models = find_models([Subject(folder=tmp_path / "one", is_run=False)], None)
    Runner(SUITE, tmp_path / "out", StandIn()).run(models[:1])
    harness = StandIn()
    _touch(tmp_path / "one" / "config.json")  # by its content it is the same
    assert find_models([Subject(folder=tmp_path / "one", is_run=False)], None) == models
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


def fail_at(suite, models, output, title):
    """A runner whose task of that title fails; what it ran before is kept."""

    class Harness(StandIn):
        def evaluate(self, task):
            if task.title == title:
                raise RuntimeError(title)
            return super().evaluate(task)

    runner = Runner(suite, output, Harness())
    runner.run(models)
    return runner


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # Of one name, by their labels.
        (Task(name="t", label="one shot", num_fewshot=1), Task(name="t", label="none")),
        # By signs that files cannot have, and by case.
        (Task(name="a/b"), Task(name="a_b")),
        (Task(name="t", label="a b"), Task(name="t", label="a/b")),
        (Task(name="T"), Task(name="t")),
        (Task(name="t", label="x" * 300), Task(name="t", label="x" * 299)),
    ],
)
def test_a_success_leaves_the_log_of_another_task_that_failed(tmp_path, models, first, second):
    suite = replace(SUITE, tasks=[first, second])
    runner = fail_at(suite, models[:1], tmp_path / "out", first.title)
    (line,) = runner.failures
    assert first.title in Path(line.rpartition(": ")[2]).read_text()
    # The one that is left succeeds, and with it goes its log alone.
    Runner(suite, tmp_path / "out", StandIn()).run(models[:1])
    assert not [*tmp_path.glob("out/failed/*")]


def test_files_of_tasks_differ_where_the_case_of_letters_does_not_count(tmp_path, models):
    suite = replace(SUITE, tasks=[Task(name=name) for name in ("T", "t", "t/", "t_")])
    Runner(suite, tmp_path / "out", StandIn(failing=("t", "t/"))).run(models[:1])
    for folder, num in (("results", 2), ("failed", 2)):
        files = [path for path in (tmp_path / "out" / folder).rglob("*") if path.is_file()]
        assert len({path.name.lower() for path in files}) == num


def test_models_called_alike_but_for_a_sign_have_files_of_their_own(tmp_path):
    """The same files in both: one loads, the other does not."""
    for name in ("b c", "b_c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    models = find_models(
        [Subject(folder=tmp_path / name, is_run=False) for name in ("b c", "b_c")], None
    )

    class Harness(StandIn):
        def load(self, folder):
            if folder.name == "b c":
                raise OSError("no weights")
            return super().load(folder)

    runner = Runner(SUITE, tmp_path / "out", Harness())
    assert [len(found) for found in runner.run(models).values()] == [0, 3]
    (line,) = runner.failures
    assert Path(line.rpartition(": ")[2]).is_file()


def test_results_of_a_model_alone_are_found_beside_one_of_the_same_name(tmp_path):
    """Its label is longer there."""
    subjects = []
    for name in ("first/model", "second/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(f'{{"name": "{name}"}}')
        subjects.append(Subject(folder=tmp_path / name, is_run=False))
    Runner(SUITE, tmp_path / "out", StandIn()).run(find_models(subjects[:1], None))
    harness = StandIn()
    Runner(SUITE, tmp_path / "out", harness).run(find_models(subjects, None))
    assert harness.calls == ["model", "a", "b", "c"]
