"""What a harness found, and where it is kept: one file a model and task. Free of torch."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from recipes.evaluation.suite import Task

_MAX_READABLE = 60
"""Letters of a title in a file's name, which may have 255 bytes."""

_MAX_READ_BYTES = 2**25
"""Of a file that is known by its content: tokenizers are smaller."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Items:
    """The documents of one task and their scores; a group of tasks has several."""

    scores: Sequence[float]
    """One a document. Their mean is the task's score."""

    digest: str
    """Of the documents, in order: only the same documents make pairs."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Score:
    """Of one model on one task of a suite."""

    value: float
    """As the harness gives it, from -1 to 1; 1 is the best."""

    metric: str
    num_fewshot: int | None = None
    """None where there is no such thing."""

    items: Mapping[str, Items] | None = None
    """Name of a task -> its documents; None where the score is no mean over documents."""

    is_weighted: bool = True
    """Whether the score of a group is the mean over all documents; else that of its tasks."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value that a percentage cannot show."""
        if not -1 <= self.value <= 1:  # of a model that gives all texts one vector it can be NaN
            raise ValueError(
                f"metric {self.metric} ({self.value:.4g}) must be a number from -1 to 1: the table "
                "has percentages, and their mean. Choose another metric."
            )


class Evaluator(Protocol):
    """A model, loaded."""

    def evaluate(self, task: Task) -> Score: ...


class Harness(Protocol):
    """What runs the tasks of a suite."""

    def check(self) -> None:
        """Raise ValueError for a task that there is none of, before a model is loaded."""

    def identify(self, task: Task) -> str:
        """A digest of the files of its own that the task has, which may change; "" for a task of
        the library."""

    def load(self, folder: Path) -> Evaluator:
        """Of a Hugging Face folder."""


class Store:
    """The results in a folder.

    A file's name holds a digest of the model's files and one of the question (the task's options
    and the versions of the libraries), so that a result is never taken for another's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, model: str, task: Task, question: Mapping[str, Any]) -> Score | None:
        """None: there is no such result. Raises ValueError for a file that cannot be read."""
        path = self._path(model, task, question)
        if not path.is_file():
            return None
        try:
            score = json.loads(path.read_text(encoding="utf-8"))["score"]
            items = score.pop("items")
            return Score(
                **score, items=items and {name: Items(**entry) for name, entry in items.items()}
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result ({error!r}). Remove it.") from error

    def save(self, model: str, task: Task, question: Mapping[str, Any], score: Score) -> None:
        """The file appears complete or not at all."""
        path = self._path(model, task, question)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"model": model, "question": dict(question), "score": asdict(score)}
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def _path(self, model: str, task: Task, question: Mapping[str, Any]) -> Path:
        return self._folder / model / f"{name_file(task.name, question)}.json"


def name_file(title: str, identity: Any) -> str:
    """A name without ending that no other pair of title and `identity` (as JSON) has: not where
    signs that files cannot have are replaced, nor where the case of letters does not count."""
    readable = re.sub(r"[^a-z0-9.]+", "_", title.lower())[:_MAX_READABLE].strip("._")
    return f"{readable}-{digest_json([title, identity])}"


def digest_folder(folder: Path) -> str:
    """Of its files' names, and of the content of small ones (a tokenizer, a configuration), size
    and time of others: reading all of a model would take minutes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_json([(str(f.relative_to(folder)), _identify(f)) for f in files])


def _identify(file: Path) -> Any:
    status = file.stat()
    if status.st_size > _MAX_READ_BYTES:
        return status.st_size, status.st_mtime_ns
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digest_json(value: Any) -> str:
    """Twelve hexadecimal digits."""
    return digest_text(json.dumps(value, sort_keys=True))[:12]


def digest_text(text: str) -> str:
    """Of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()
