"""The scores of all models, task by task, and their means: Markdown and JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.evaluation.compare import (
    Difference,
    compare_over_tasks,
    compare_scores,
)
from recipes.evaluation.results import Score
from recipes.evaluation.suite import EMBEDDING, Suite, Task
from recipes.markdown import align_table, escape

FILES = ("evaluation.md", "evaluation.json")

_LIBRARIES = ("nitp-torchtitan", "torch", "transformers")


@dataclass(kw_only=True, slots=True, frozen=True)
class Row:
    """A task, or the mean of several."""

    title: str
    num_fewshot: int | None
    metric: str
    num_documents: int | None
    scores: Sequence[float | None]
    """One a model, in [-1, 1]; None where it failed."""

    differences: Sequence[Difference | None]
    """Of each model but the first, to the first."""

    is_mean: bool = False


@dataclass(kw_only=True, slots=True, frozen=True)
class Table:
    """What an evaluation found."""

    suite: Suite
    labels: Sequence[str]
    rows: Sequence[Row]
    missing: Sequence[str]
    """Titles of tasks that some model has no score of, which are in no mean."""

    def to_markdown(self) -> str:
        labels = [escape(label) for label in self.labels]
        others = [f"{label} - {labels[0]} [95 %]" for label in labels[1:]]
        header = ["benchmark", "shots", "metric", "documents", *labels, *others]
        lines = align_table(header, [self._format(row) for row in self.rows])
        notes = [f"* {escape(note)}" for note in self._notes()]
        return "\n".join([f"# {escape(self.suite.title)}", "", *lines, "", *notes, ""])

    def to_json(self) -> dict[str, Any]:
        """Scores as the harness gives them, not in percent."""
        versions = {name: version(name) for name in (*_LIBRARIES, self.suite.harness)}
        return {
            "suite": self.suite.title,
            "harness": self.suite.harness,
            "versions": versions,
            "models": list(self.labels),
            "rows": [asdict(row) for row in self.rows],
            "missing": list(self.missing),
            "notes": self._notes(),
        }

    def write(self, folder: Path) -> None:
        """evaluation.md and evaluation.json."""
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        for name, text in zip(FILES, (self.to_markdown(), content), strict=True):
            (folder / name).write_text(text, encoding="utf-8")

    def _format(self, row: Row) -> list[str]:
        shots = "" if row.num_fewshot is None else str(row.num_fewshot)
        documents = "" if row.num_documents is None else f"{row.num_documents:,}"
        scores = ["-" if score is None else f"{100 * score:.2f}" for score in row.scores]
        differences = ["-" if d is None else _show_difference(d) for d in row.differences]
        title = f"**{escape(row.title)}**" if row.is_mean else escape(row.title)
        return [title, shots, row.metric, documents, *scores, *differences]

    def _notes(self) -> list[str]:
        notes = [f"Scores in percent, by {self.suite.harness}."]
        if self.labels[1:]:
            over = "tasks" if self.suite.harness == EMBEDDING else "documents"
            notes.append(
                f"Intervals: paired bootstrap over {over}; they do not cover another training run."
            )
            notes += [self._count_higher(i) for i in range(1, len(self.labels))]
        if self.missing:
            notes.append(f"In no mean, as a model has no score of it: {', '.join(self.missing)}.")
        return [*notes, *self.suite.notes]

    def _count_higher(self, index: int) -> str:
        pairs = [(row.scores[index], row.scores[0]) for row in self.rows if not row.is_mean]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        num = sum(a > b for a, b in both)
        return f"{self.labels[index]}: above {self.labels[0]} on {num} of {len(both)} tasks."


def build_table(
    suite: Suite, labels: Sequence[str], scores: Mapping[str, Mapping[str, Score]]
) -> Table:
    """scores: label -> title of a task -> score."""
    found = {t.title: [scores[label].get(t.title) for label in labels] for t in suite.tasks}
    complete = [task for task in suite.tasks if None not in found[task.title]]
    rows = [_build_task(task, found[task.title]) for task in suite.tasks]
    for group in dict.fromkeys(task.group for task in suite.tasks if task.group):
        members = [task for task in complete if task.group == group]
        rows += _build_mean(f"mean of {group}", members, found, suite)
    rows += _build_mean("mean", complete, found, suite)
    return Table(
        suite=suite,
        labels=labels,
        rows=rows,
        missing=[task.title for task in suite.tasks if task not in complete],
    )


def _build_task(task: Task, scores: Sequence[Score | None]) -> Row:
    known = next((score for score in scores if score is not None), None)
    items = known.items if known else None
    first = scores[0]
    return Row(
        title=task.title,
        num_fewshot=known.num_fewshot if known else task.num_fewshot,
        metric=known.metric if known else task.metric or "",
        num_documents=sum(len(entry.scores) for entry in items.values()) if items else None,
        scores=[None if score is None else score.value for score in scores],
        differences=[
            compare_scores([score], [first]) if score is not None and first is not None else None
            for score in scores[1:]
        ],
    )


def _build_mean(
    title: str, tasks: Sequence[Task], found: Mapping[str, Sequence[Score | None]], suite: Suite
) -> list[Row]:
    """None for no task."""
    if not tasks:
        return []
    by_model: list[list[Score]] = [
        [score for score in column if score is not None]
        for column in zip(*(found[task.title] for task in tasks), strict=True)
    ]
    compare = compare_over_tasks if suite.harness == EMBEDDING else compare_scores
    return [
        Row(
            title=title,
            num_fewshot=None,
            metric=f"of {len(tasks)}",
            num_documents=None,
            scores=[fmean(score.value for score in column) for column in by_model],
            differences=[compare(column, by_model[0]) for column in by_model[1:]],
            is_mean=True,
        )
    ]


def _show_difference(difference: Difference) -> str:
    text = f"{100 * difference.value:+.2f}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
