"""Tasks of lm-evaluation-harness. It asks and scores; here its answer is looked up."""

import json
import logging
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from recipes.evaluation.results import Items, Score, digest_folder, digest_text
from recipes.evaluation.suite import Suite, Task

_NO_FILTER = "none"

_ROUNDING = 1e-9
"""Between two float64 means of at most millions of numbers up to 1."""


class LanguageHarness:
    """lm-eval on one device. Greedy, without sampling of questions: a second run gives the same."""

    def __init__(self, suite: Suite, *, device: str, batch_size: int) -> None:
        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        self._suite = suite
        self._device = device
        self._batch_size = batch_size
        self._manager = CheckedTaskManager(include_path=[*map(str, suite.task_folders)])

    def check(self) -> None:
        """Raise ValueError for a task that lm-eval has not."""
        known = [*self._manager.all_subtasks, *self._manager.all_groups]
        for task in self._suite.tasks:
            if task.name not in known:
                close = get_close_matches(task.name, known, n=3)
                hint = f"Did you mean {', '.join(close)}?" if close else "Correct the name."
                raise ValueError(
                    f"suite {self._suite.name}: {task.name} is no task of lm-eval, nor of "
                    f"task_folders. {hint}"
                )

    def identify(self, task: Task) -> str:
        """Of the folder of the task's YAML, if that is one of the suite's."""
        path = self._manager.task_index[task.name].yaml_path
        own = [f for f in self._suite.task_folders if path and path.is_relative_to(f)]
        return digest_folder(own[0]) if own else ""

    def load(self, folder: Path) -> "LanguageEvaluator":
        """Raises what transformers raises for a folder that is no model."""
        lm = HFLM(pretrained=str(folder), device=self._device, batch_size=self._batch_size)
        return LanguageEvaluator(lm, self._manager)


class CheckedTaskManager(TaskManager):
    """lm-eval's, which says of a task without documents that it has none."""

    def load(self, task_list: Any) -> Any:
        """Raises ValueError for a task, or a task of a group, without documents to score."""
        try:
            loaded = super().load(task_list)
            empty = [name for name, task in loaded["tasks"].items() if not len(task.eval_docs)]
        except Exception as error:  # lm-eval takes the first document, and its library reads it
            if not isinstance(error, StopIteration) and not any(s in str(error) for s in _NO_DATA):
                raise
            empty = [str(name) for name in task_list]
        if empty:
            raise ValueError(
                f"{', '.join(empty)} has no documents to score. Correct the data set, or leave the "
                "task out."
            )
        return loaded


_NO_DATA = ("out of bounds for size 0", "corresponds to no data")
"""What `datasets` says of a table without rows."""


class LanguageEvaluator:
    """lm: any model of lm-eval."""

    def __init__(self, lm: Any, manager: TaskManager) -> None:
        self._lm = lm
        self._manager = manager

    def evaluate(self, task: Task) -> Score:
        """Raises ValueError for a metric that the task has not."""
        found = simple_evaluate(
            model=self._lm,
            tasks=[task.name],
            num_fewshot=task.num_fewshot,
            task_manager=self._manager,
            bootstrap_iters=0,
        )
        assert found is not None  # None on ranks other than 0
        return read_score(task, found)


def read_score(task: Task, found: Mapping[str, Any]) -> Score:
    """lm-eval's score of `task` in the results of `simple_evaluate`, and its documents'.

    Raises ValueError if it has no such score, or did not ask as the suite says.
    """
    metric, kind = task.metric, task.filter or _NO_FILTER
    name = task.name
    values = found["results"][name] | found.get("groups", {}).get(name, {})
    if f"{metric},{kind}" not in values:
        known = sorted(key for key in values if "," in key and "_stderr" not in key)
        raise ValueError(
            f"{name}: metric {metric} with filter {kind} is none of its scores "
            f"({'; '.join(known)}). Correct metric or filter."
        )
    leaves = {leaf: found["n-shot"][leaf] for leaf in found["samples"]}
    if task.num_fewshot is not None and set(leaves.values()) != {task.num_fewshot}:
        own = ", ".join(f"{leaf} {num}" for leaf, num in sorted(leaves.items())[:3])
        raise ValueError(
            f"{name}: num_fewshot ({task.num_fewshot}) has no effect on it ({own}). Leave it out."
        )
    value = float(values[f"{metric},{kind}"])
    items = _read_items(found["samples"], str(metric), kind)
    is_weighted = _is_mean(value, items, is_weighted=True)
    has_items = is_weighted or _is_mean(value, items, is_weighted=False)
    shots = set(leaves.values())
    return Score(
        value=value,
        metric=str(metric),
        num_fewshot=shots.pop() if len(shots) == 1 else None,
        items=items if has_items else None,
        is_weighted=is_weighted,
    )


def _read_items(samples: Mapping[str, Any], metric: str, kind: str) -> dict[str, Items]:
    """lm-eval lists a document once for each filter."""
    items = {}
    for leaf, listed in samples.items():
        mine = sorted(
            (sample for sample in listed if sample["filter"] == kind and metric in sample),
            key=lambda sample: sample["doc_id"],
        )
        documents = [(sample["doc_hash"], sample["target_hash"]) for sample in mine]
        # A metric that is no mean over documents may have any kind of value.
        scores = [float(s[metric]) for s in mine if isinstance(s[metric], int | float)]
        if len(scores) == len(mine) > 0:
            items[leaf] = Items(scores=scores, digest=digest_text(json.dumps(documents)))
    return items


def _is_mean(value: float, items: Mapping[str, Items], *, is_weighted: bool) -> bool:
    if not items:
        return False
    means = [fmean(entry.scores) for entry in items.values()]
    weights = [len(entry.scores) if is_weighted else 1 for entry in items.values()]
    return math.isclose(value, fmean(means, weights), rel_tol=0.0, abs_tol=_ROUNDING)
