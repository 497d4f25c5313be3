"""What to evaluate: Hugging Face folders, and checkpoints of runs, exported when needed."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recipes.export.run import (  # first: torchtitan resolves its device once
    identify_export,
    prepare_export,
)

# isort: split

from recipes.evaluation.request import Subject
from recipes.evaluation.results import digest_folder, digest_json, name_file
from recipes.export.checkpoint import find_checkpoint
from recipes.export.request import ExportRequest, load_run_settings


@dataclass(kw_only=True, slots=True, frozen=True)
class Model:
    """A column of the table."""

    label: str
    source: Path
    """The Hugging Face folder, or the folder of the checkpoint."""

    digest: str
    """Of what is evaluated: the source's files, or what a run's export is made from."""

    step: int | None = None
    """Of a run."""

    run: Path | None = None

    @property
    def key(self) -> str:
        """The name of its folder of results: the same whatever other models are evaluated."""
        folder = (self.run or self.source).resolve().name
        return name_file(folder if self.step is None else f"{folder} {self.step}", self.digest)

    @contextmanager
    def open(self, scratch: Path) -> Iterator[Path]:
        """Its Hugging Face folder; a run's is written below `scratch`, and removed in the end.

        Raises ValueError and OSError as an export does.
        """
        if self.run is None:
            yield self.source
            return
        with tempfile.TemporaryDirectory(dir=scratch, prefix="export-") as folder:
            request = _request_export(self.run, self.step, Path(folder, "model"))
            prepare_export(request, load_run_settings(self.run))()
            yield request.output


def find_models(subjects: Sequence[Subject], step: int | None) -> list[Model]:
    """In the order given. Raises ValueError for a run without such a checkpoint."""
    models = []
    for subject, label in zip(subjects, _label(subjects), strict=True):
        if not subject.is_run:
            digest = digest_folder(subject.folder)
            models.append(Model(label=label, source=subject.folder, digest=digest))
            continue
        settings = load_run_settings(subject.folder)
        checkpoint = find_checkpoint(subject.folder / settings.values["checkpoint"]["folder"], step)
        request = _request_export(subject.folder, checkpoint.step, Path())
        models.append(
            Model(
                label=f"{label}/step-{checkpoint.step}",
                source=checkpoint.folder,
                digest=digest_json(identify_export(request, settings)),
                step=checkpoint.step,
                run=subject.folder,
            )
        )
    return models


def _request_export(run: Path, step: int | None, output: Path) -> ExportRequest:
    return ExportRequest(run=run, output=output, step=step, verify="keys")


def _label(subjects: Sequence[Subject]) -> list[str]:
    """As much of the end of each path as tells it from the others."""
    paths = [subject.folder.resolve() for subject in subjects]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        labels = [os.sep.join(path.parts[-length:]) for path in paths]
        if max(Counter(labels).values()) == 1:
            return labels
    repeated = next(path for path, count in Counter(paths).items() if count > 1)
    raise ValueError(f"{repeated} is given twice. Name each model once.")
