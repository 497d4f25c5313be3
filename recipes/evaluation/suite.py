"""Which tasks to run. A suite is a TOML file; the paper's are in suites/. Free of torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from recipes.characters import find_fault
from recipes.config.toml_file import read_toml
from recipes.config.values import show_value, walk

FOLDER = Path(__file__).parent / "suites"

LANGUAGE, EMBEDDING = "lm-eval", "mteb"


@dataclass(kw_only=True, slots=True, frozen=True)
class Task:
    """A `[[tasks]]` table."""

    name: str
    """As the harness calls it: a task or a group of tasks."""

    label: str | None = None
    """What the table calls it, by default its name."""

    group: str | None = None
    """Tasks of the same group have a mean of their own."""

    num_fewshot: int | None = None
    """lm-eval: examples with their answers before each question. By default the task's own."""

    metric: str | None = None
    """The score. lm-eval: required, such as acc or exact_match. mteb: by default the task's main
    score."""

    filter: str | None = None
    """lm-eval: which of the task's filters of the answer is scored, by default none."""

    subset: str | None = None
    """mteb: the one subset (a language) to evaluate. By default all that are English."""

    data: str | None = None
    """mteb: a folder with a copy of the task's data set, in place of the Hugging Face hub's.
    Relative to the suite's file."""

    @property
    def title(self) -> str:
        return self.label or self.name


@dataclass(kw_only=True, slots=True, frozen=True)
class Suite:
    """A suite's file."""

    name: str
    """The file's, without ending."""

    title: str
    harness: str
    """lm-eval or mteb."""

    tasks: Sequence[Task]
    task_folders: Sequence[Path] = ()
    """lm-eval: folders with task YAMLs of one's own, absolute."""

    notes: Sequence[str] = ()
    """Printed below the table."""


_ONLY_OF = {
    LANGUAGE: ("num_fewshot", "filter"),
    EMBEDDING: ("subset", "data"),
}
"""Keys of a task that the other harness does not know."""


def find_suite(name: str) -> Path:
    """The file of a suite of this package, or `name` itself. Raises ValueError."""
    own = FOLDER / f"{name}.toml"
    if own.is_file():
        return own
    path = Path(name)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ValueError(f"--suite ({name}) must be one of {names}, or a TOML file.")
    return path


def load_suite(name: str) -> Suite:
    """Raises ValueError, one line, for what is no suite."""
    path = find_suite(name)
    content = read_toml(path)
    for text in walk(content):
        if isinstance(text, str) and (fault := find_fault(text)):
            raise ValueError(f"{path}: {show_value(text)} {fault}. Remove it.")
    tables = content.pop("tasks", None)
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"{path} must have at least one [[tasks]] table.")
    _check_keys(str(path), content, ("title", "harness", "task_folders", "notes"))
    harness = content.get("harness")
    if harness not in _ONLY_OF:
        raise ValueError(f'{path}: harness ({harness}) must be "{LANGUAGE}" or "{EMBEDDING}".')
    tasks = [_read_task(f"{path}: tasks[{i}]", table, harness) for i, table in enumerate(tables)]
    for title, count in Counter(task.title for task in tasks).items():
        if count > 1:
            raise ValueError(
                f'{path}: {count} tasks are called "{title}". Give each its own label.'
            )
    return Suite(
        name=path.stem,
        title=_get(path, content, "title", str, path.stem),
        harness=harness,
        tasks=[_anchor(task, path.parent) for task in tasks],
        task_folders=[
            _find_folder(f"{path}: task_folders", path.parent / Path(folder).expanduser())
            for folder in _get(path, content, "task_folders", list, [])
        ],
        notes=_get(path, content, "notes", list, []),
    )


def _get(path: Path, content: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = content.get(key, default)
    of_strings = kind is not list or all(isinstance(item, str) for item in value)
    if not isinstance(value, kind) or not of_strings:
        expected = "a list of strings" if kind is list else "a string"
        raise ValueError(f"{path}: {key} ({value}) must be {expected}.")
    return value


def _read_task(where: str, table: Any, harness: str) -> Task:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ValueError(f"{where} must be a table with a name.")
    where = f"{where} ({table['name']})"
    _check_keys(where, table, [field.name for field in fields(Task)])
    for key, value in table.items():
        if not isinstance(value, int if key == "num_fewshot" else str) or isinstance(value, bool):
            kind = "a whole number" if key == "num_fewshot" else "a string"
            raise ValueError(f"{where}: {key} ({value}) must be {kind}.")
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{where}: {key} must not be empty. Leave it out, or give it.")
    for other, keys in _ONLY_OF.items():
        if other != harness and (wrong := sorted(set(keys) & set(table))):
            raise ValueError(f"{where}: {wrong[0]} has no effect with {harness}. Leave it out.")
    if table.get("num_fewshot", 0) < 0:
        raise ValueError(f"{where}: num_fewshot ({table['num_fewshot']}) must be at least 0.")
    if harness == LANGUAGE and "metric" not in table:
        raise ValueError(f"{where}: metric must be given, such as acc or exact_match.")
    return Task(**table)


def _anchor(task: Task, folder: Path) -> Task:
    if task.data is None:
        return task
    path = _find_folder(f"{task.name}: data", folder / Path(task.data).expanduser())
    return Task(**{f.name: getattr(task, f.name) for f in fields(Task)} | {"data": str(path)})


def _find_folder(where: str, path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{where} ({path}) is no folder.")
    return path.resolve()


def _check_keys(where: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" There are {', '.join(known)}."
            raise ValueError(f"{where}: {key} is no option.{hint}")
