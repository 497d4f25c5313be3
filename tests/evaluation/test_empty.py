"""What has nothing to score is one line that says so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from recipes.evaluation.embedding import EmbeddingEvaluator
from recipes.evaluation.language import CheckedTaskManager
from recipes.evaluation.suite import Task
from tests.evaluation.local_tasks import write_tasks
from tests.evaluation.mteb_data import write_banking77, write_stsbenchmark

NOTHING = "no data|no rows"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> CheckedTaskManager:
    """`small` has documents; `no_rows` a file without any; `dropped` none that it keeps; `group`
    has small and dropped."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    tasks = folder / "tasks"
    small = yaml.safe_load((tasks / "small.yaml").read_text())
    (folder / "none.jsonl").write_text("")
    files = small["dataset_kwargs"]["data_files"] | {"test": str(folder / "none.jsonl")}
    no_rows = small | {"task": "no_rows", "dataset_kwargs": {"data_files": files}}
    (tasks / "no_rows.yaml").write_text(yaml.safe_dump(no_rows))
    (tasks / "own.py").write_text("def drop(rows):\n    return rows.select([])\n")
    dropped = yaml.safe_dump(small | {"task": "dropped"})
    (tasks / "dropped.yaml").write_text(f"{dropped}process_docs: !function own.drop\n")
    group = {"group": "group", "task": ["small", "dropped"]}
    (tasks / "group.yaml").write_text(yaml.safe_dump(group))
    return CheckedTaskManager(include_path=[str(tasks)])


@pytest.mark.parametrize("name", ["no_rows", "dropped", "group"])
def test_a_task_of_lm_eval_without_documents_is_named(
    manager: CheckedTaskManager, name: str
) -> None:
    with pytest.raises(ValueError) as raised:
        manager.load([name])
    assert str(raised.value) == (
        f"{name} has no documents to score. Correct the data set, or leave the task out."
    )


def test_a_task_of_lm_eval_with_documents_is_loaded(manager: CheckedTaskManager) -> None:
    assert [*manager.load(["small"])["tasks"]] == ["small"]


@pytest.mark.parametrize("error", [StopIteration(), IndexError("list index out of range")])
def test_only_what_says_that_there_is_nothing_is_taken_for_it(
    manager: CheckedTaskManager, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("lm_eval.tasks.TaskManager.load", fail)
    expected = ValueError if isinstance(error, StopIteration) else IndexError
    with pytest.raises(expected):
        manager.load(["small"])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("STSBenchmark", lambda folder: write_stsbenchmark(folder, []), "no data|no rows"),
        (
            "Banking77Classification",
            lambda f: write_banking77(f, [("a", "b")], []),
            "no rows|no data",
        ),
        ("Banking77Classification", lambda f: write_banking77(f, [], [("a", "b")]), "no rows"),
    ],
)
def test_a_data_set_of_mteb_without_rows_is_named(
    tmp_path: Path, name: str, write: Any, reason: str
) -> None:
    write(tmp_path)
    evaluator = EmbeddingEvaluator(SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{name}: data .*({reason})") as raised:
        evaluator.evaluate(Task(name=name, data=str(tmp_path)))
    assert "\n" not in str(raised.value)
