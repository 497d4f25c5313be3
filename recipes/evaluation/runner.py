"""Every model on every task that has no result yet. What fails never stops the others."""

import time
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from recipes.characters import escape
from recipes.evaluation.models import Model
from recipes.evaluation.request import EvaluateRequest
from recipes.evaluation.results import Evaluator, Harness, Score, Store, name_file
from recipes.evaluation.suite import EMBEDDING, LANGUAGE, Suite, Task

_LIBRARIES = {
    LANGUAGE: ("lm_eval", "transformers", "torch"),
    EMBEDDING: ("mteb", "nitp-torchtitan", "transformers", "torch"),  # the vectors are ours
}

RESULTS, FAILED = "results", "failed"
"""Folders in the output."""

Scores = dict[str, dict[str, Score]]
"""Label of a model -> title of a task -> score; without what failed."""


def open_harness(suite: Suite, request: EvaluateRequest) -> Harness:
    """Takes seconds: the library is imported here."""
    device = _choose_device(request.device)
    if suite.harness == LANGUAGE:
        from recipes.evaluation.language import LanguageHarness

        return LanguageHarness(suite, device=device, batch_size=request.batch_size)
    from recipes.evaluation.embedding import EmbeddingHarness

    return EmbeddingHarness(suite, device=device, batch_size=request.batch_size)


def _choose_device(name: str | None) -> str:
    """Raises ValueError for a device that is not here: lm-eval would take another in silence."""
    num_gpus = torch.cuda.device_count()
    gpus = ["cuda", *(f"cuda:{i}" for i in range(num_gpus))] if num_gpus else []
    known = [*gpus, "cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if name is not None and name not in known:
        raise ValueError(f"--device ({name}) must be one of those here: {', '.join(known)}.")
    return name or known[0]


class Runner:
    """`output` is this process's own while it runs."""

    def __init__(self, suite: Suite, output: Path, harness: Harness) -> None:
        self._suite = suite
        self._output = output
        self._harness = harness
        self._store = Store(output / RESULTS)
        self.failures: list[str] = []
        """One line each."""

    def run(self, models: Sequence[Model]) -> Scores:
        """Raises ValueError for a result that cannot be read."""
        scores: Scores = {}
        for model in models:
            scores[model.label] = found = self._load(model)
            print(f"{model.label}: {len(found)} of {len(self._suite.tasks)} tasks done", flush=True)
            if len(found) < len(self._suite.tasks):
                try:
                    self._run_rest(model, found)
                except Exception as error:  # its export, or whatever its files hold
                    self._note_failure(model, None, error)
                else:
                    self._log(model, None).unlink(missing_ok=True)
        return scores

    def _load(self, model: Model) -> dict[str, Score]:
        scores = {}
        for task in self._suite.tasks:
            score = self._store.load(model.key, task, self._question(task))
            if score is not None:
                scores[task.title] = score
                self._log(model, task).unlink(missing_ok=True)
        return scores

    def _run_rest(self, model: Model, found: dict[str, Score]) -> None:
        with model.open(self._output) as folder:
            evaluator = self._harness.load(folder)
            for i, task in enumerate(self._suite.tasks):
                if task.title in found:
                    continue
                head = f"[{i + 1}/{len(self._suite.tasks)}] {model.label}, {task.title}"
                print(f"{head}: running", flush=True)
                began = time.monotonic()
                score = self._evaluate(evaluator, task, model)
                if score is not None:
                    self._store.save(model.key, task, self._question(task), score)
                    self._log(model, task).unlink(missing_ok=True)
                    found[task.title] = score
                    took_s = time.monotonic() - began
                    print(f"{head}: {100 * score.value:.2f}, {took_s:.0f} s", flush=True)

    def _evaluate(self, evaluator: Evaluator, task: Task, model: Model) -> Score | None:
        """None: it failed. The libraries, and whatever data they read, raise what they like."""
        try:
            return evaluator.evaluate(task)
        except Exception as error:
            self._note_failure(model, task, error)
            return None

    def _note_failure(self, model: Model, task: Task | None, error: Exception) -> None:
        log = self._log(model, task)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        what = model.label if task is None else f"{model.label}, {task.title}"
        self.failures.append(escape(f"{what}: {_describe(error)} Everything it said: {log}"))
        print(f"failed: {self.failures[-1]}", flush=True)

    def _log(self, model: Model, task: Task | None) -> Path:
        """Of a failure of the task, or of the model alone; it goes when the same succeeds. Tasks of
        a suite differ in their titles: one name may be asked in several ways."""
        name = model.label if task is None else f"{model.label} {task.title}"
        identity = [model.key, model.label, None if task is None else task.title]
        return self._output / FAILED / f"{name_file(name, identity)}.log"

    def _question(self, task: Task) -> Mapping[str, Any]:
        """What a score depends on, but for the model, the hub's data, and the rounding of the
        device."""
        libraries = {name: version(name) for name in _LIBRARIES[self._suite.harness]}
        asked = {
            "name": task.name, "metric": task.metric, "num_fewshot": task.num_fewshot,
            "filter": task.filter, "subset": task.subset, "data": task.data,
        }  # fmt: skip
        files = self._harness.identify(task)
        return {
            "harness": self._suite.harness, "task": asked, "files": files, "libraries": libraries,
        }  # fmt: skip


_NO_NETWORK = (
    "offline", "couldn't reach", "couldn't be reached", "connection", "cannot find the requested",
    "max retries", "name resolution", "localentrynotfound", "couldn't connect",
)  # fmt: skip
"""What libraries write of data that could not be fetched, in lower case."""


def _describe(error: Exception) -> str:
    first = " ".join(str(error).split())[:300].rstrip(". ")
    text = f"{type(error).__name__}: {first}." if first else f"{type(error).__name__}."
    chain = f"{type(error).__name__} {error} {error.__cause__!r} {error.__context__!r}".lower()
    if any(sign in chain for sign in _NO_NETWORK):
        text += (
            " Its data set comes from the Hugging Face hub: run where that can be reached, or "
            "download it there and bring the folder HF_HOME here."
        )
    return text
