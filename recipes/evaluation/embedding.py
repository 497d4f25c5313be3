"""Tasks of mteb: it loads the data and scores; we bring the vectors of texts.

English only and the test split, as mteb's own benchmark "MTEB(eng, v1)".
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.classification import ClassificationMetrics
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.sts import AbsTaskSTS, STSMetrics
from mteb.get_tasks import TASK_LIST

from recipes.evaluation.hidden_states import HiddenStateEncoder
from recipes.evaluation.results import Score, digest_folder
from recipes.evaluation.suite import Suite, Task

SPLIT = "test"


class EmbeddingHarness:
    """Runs the tasks of a suite on the vectors of HiddenStateEncoder."""

    def __init__(self, suite: Suite, *, device: str, batch_size: int) -> None:
        """`device` as torch names it; `batch_size` in texts."""
        self._suite = suite
        self._device = device
        self._batch_size = batch_size

    def check(self) -> None:
        """Raise ValueError for a task, subset or metric that mteb has not. Needs no network."""
        for i, task in enumerate(self._suite.tasks):
            try:
                build_task(task)
            except ValueError as error:
                raise ValueError(f"suite {self._suite.name}: tasks[{i}]: {error}") from None

    def identify(self, task: Task) -> str:
        """Of the task's copy of its data set, if it has one."""
        return digest_folder(Path(task.data)) if task.data else ""

    def load(self, folder: Path) -> "EmbeddingEvaluator":
        """Raises ValueError for a folder that transformers cannot load."""
        encoder = HiddenStateEncoder(folder, device=self._device, batch_size=self._batch_size)
        return EmbeddingEvaluator(encoder)


class EmbeddingEvaluator:
    """A model, loaded."""

    def __init__(self, encoder: HiddenStateEncoder) -> None:
        self._encoder = encoder

    def evaluate(self, task: Task) -> Score:
        """mteb's score, the mean over the task's subsets. The same on each call: mteb's tasks fix
        their seeds.

        Raises ValueError for data that are not the task's, and OSError, one line, for a data set
        that the Hugging Face hub does not give.
        """
        mteb_task = build_task(task)
        encoder: Any = self._encoder  # mteb's protocol asks for its own constructor
        metric = task.metric or mteb_task.metadata.main_score
        with _quiet_mteb():
            _load_data(mteb_task, task)
            result = mteb.evaluate(encoder, mteb_task, cache=None, co2_tracker=False)
        value = result.task_results[0].get_score(getter=lambda scores: scores[metric])
        return Score(value=float(value), metric=metric)


def build_task(task: Task) -> AbsTask:
    """mteb's task, its data not loaded. Raises ValueError for one that it has not."""
    names = [known.metadata.name for known in TASK_LIST]
    if task.name not in names:
        raise ValueError(
            f"{task.name} is no task of mteb {mteb.__version__}.{_suggest(task.name, names)}"
        )
    # An object of its own, but for metadata, which all of a class share.
    mteb_task = mteb.get_task(task.name)
    metadata = mteb_task.metadata
    if mteb_task.is_aggregate:
        raise ValueError(f"{task.name} is a group of tasks. List its tasks one by one.")
    if metadata.modalities != ["text"]:
        kinds = ", ".join(metadata.modalities)
        raise ValueError(f"{task.name} is about {kinds}. Name a task about text alone.")
    if SPLIT not in metadata.eval_splits:
        splits = ", ".join(metadata.eval_splits)
        raise ValueError(f"{task.name} is scored on {splits}, not on {SPLIT}. Leave it out.")
    _choose_subsets(mteb_task, task)
    metrics = _list_metrics(mteb_task)
    if task.metric is not None and metrics and task.metric not in metrics:
        hint = _suggest(task.metric, metrics)
        raise ValueError(f"{task.name}: metric ({task.metric}) is none of the task's.{hint}")
    if task.data is not None:
        dataset = {**metadata.dataset, "path": task.data}
        mteb_task.metadata = metadata.model_copy(update={"dataset": dataset})
    return mteb_task.filter_eval_splits([SPLIT])


def _choose_subsets(mteb_task: AbsTask, task: Task) -> None:
    subsets = mteb_task.metadata.hf_subsets
    if task.subset is not None:
        if task.subset not in subsets:
            hint = _suggest(task.subset, subsets)
            raise ValueError(f"{task.name}: subset ({task.subset}) is none of the task's.{hint}")
        mteb_task.filter_languages(None, hf_subsets=[task.subset])
        return
    try:
        mteb_task.filter_languages(["eng"], exclusive_language_filter=True)
    except ValueError:
        raise ValueError(
            f"{task.name} has no subset in English alone. Name one as subset: {', '.join(subsets)}."
        ) from None


def _list_metrics(mteb_task: AbsTask) -> list[str]:
    """Those of the task's kind; none where the kind does not tell."""
    if isinstance(mteb_task, AbsTaskClassification):
        return [*ClassificationMetrics.__annotations__]
    if isinstance(mteb_task, AbsTaskSTS):
        return [*STSMetrics.__annotations__]
    if isinstance(mteb_task, AbsTaskPairClassification):
        similarities = ("similarity", "cosine", "manhattan", "euclidean", "dot", "max")
        values = ("accuracy", "f1", "precision", "recall", "ap")
        return [f"{similarity}_{value}" for similarity in similarities for value in values]
    if isinstance(mteb_task, AbsTaskRetrieval):
        measures = ("ndcg", "map", "recall", "precision", "mrr", "hit_rate")
        return [f"{value}_at_{k}" for value in measures for k in mteb_task.k_values]
    return []


def _suggest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" There are {', '.join(known)}." if len(known) <= 50 else ""


def _load_data(mteb_task: AbsTask, task: Task) -> None:
    path = mteb_task.metadata.dataset["path"]
    if task.data is None:
        try:
            mteb_task.load_data()
        except OSError as error:  # ConnectionError and the hub's own errors are
            raise OSError(
                f"{task.name}: the Hugging Face hub does not give the data set {path} "
                f"({_first_line(error)}). Connect to it, or name the folder of a copy as the "
                "task's data."
            ) from error
        return
    try:
        mteb_task.load_data()
        _check_columns(mteb_task)
    except Exception as error:  # of a folder with other files, datasets and mteb raise any
        original = type(mteb_task).metadata.dataset["path"]
        raise ValueError(
            f"{task.name}: data ({path}) is no copy of the Hugging Face hub's data set {original}: "
            f"{_first_line(error.__cause__ or error)}. Download it there as it is."
        ) from error


def _check_columns(mteb_task: AbsTask) -> None:
    """Raise ValueError for a split or column that the evaluation misses only after encoding."""
    splits, columns = [SPLIT], list[Any]()
    if isinstance(mteb_task, AbsTaskClassification):
        splits.append(mteb_task.train_split)
        columns = [mteb_task.input_column_name, mteb_task.label_column_name]
    elif isinstance(mteb_task, AbsTaskSTS):
        columns = [*mteb_task.column_names, "score"]
    elif isinstance(mteb_task, AbsTaskPairClassification):
        columns = [
            mteb_task.input1_column_name, mteb_task.input2_column_name, mteb_task.label_column_name,
        ]  # fmt: skip
    dataset: Any = mteb_task.dataset
    for subset in mteb_task.hf_subsets:
        if subset != "default" and subset not in dataset:
            raise ValueError(f"it has no rows of {subset}")
        tables = dataset.get(subset, dataset)
        for split in splits:
            if split not in tables:
                raise ValueError(f"it has no split {split}")
            _check_rows(tables[split], split)
            for column in columns:
                if column not in tables[split].column_names:
                    raise ValueError(f"{split} has no column {column}")


def _check_rows(table: Any, split: str) -> None:
    """Of retrieval a split is several tables, by name."""
    if isinstance(table, Mapping):
        for name in ("corpus", "queries"):
            if name in table:
                _check_rows(table[name], f"{split}, {name},")
    elif len(table) == 0:
        raise ValueError(f"{split} has no rows")


def _first_line(error: BaseException) -> str:
    if isinstance(error, StopIteration):  # all that `datasets` says of a file without rows
        return "a table of it has no rows"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


@contextmanager
def _quiet_mteb() -> Iterator[None]:
    """Without what mteb says of each task: that a later version supersedes it."""
    logger = logging.getLogger("mteb")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="mteb", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
