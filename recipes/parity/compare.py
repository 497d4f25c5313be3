"""How far a run is from its reference: the largest relative error of each kind."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from recipes.parity.tolerance import Tolerance
from recipes.parity.world import Result, relative_difference

LOSSES = ("loss_metrics/global_avg_loss", "loss_metrics/ntp_loss", "loss_metrics/nitp_loss")
METRICS = (
    "nitp/cosine",
    "nitp/valid_fraction",
    "nitp/weight",
    "nitp/grad_ratio",
    "nitp/projector_grad_norm",
    "grad_norm",
    "n_tokens_seen",
)
VALIDATION = ("validation_metrics/loss", "validation_metrics/nitp_loss")
GEOMETRY = ("effective_rank", "average_cosine", "constant_loss", "skill")
"""Endings of what is measured of the states, in training and validation."""
NOT_EVERYWHERE = {"nitp/grad_ratio"}
"""Not logged under tensor parallelism."""


class Error(NamedTuple):
    value: float
    where: str
    """Which figure or tensor has it."""


@dataclass(frozen=True)
class Comparison:
    """The largest errors; None where the reference has nothing to compare with."""

    loss: Error | None
    """Of total, NTP and NITP loss, over all steps."""

    metric: Error | None
    """Of the other logged means, over all steps."""

    validation: Error | None
    geometry: Error | None
    """Of what is measured of the states, over all steps and validation."""

    gradient: Error | None
    """Of the first step's gradients."""

    state: Error | None
    """Of parameters, buffers and optimizer state after the last step."""

    def values(self) -> dict[str, float]:
        """The largest errors by kind."""
        return {f.name: getattr(self, f.name).value for f in fields(self) if getattr(self, f.name)}

    def find_excess(self, tolerance: Tolerance) -> str:
        """What exceeds the tolerance, or nothing."""
        excess = []
        for field in fields(self):
            error: Error | None = getattr(self, field.name)
            limit = tolerance.tensor if field.name in ("gradient", "state") else tolerance.loss
            if field.name in ("metric", "geometry") and tolerance.metric is not None:
                limit = tolerance.metric
            if error is not None and not error.value <= limit:
                excess.append(f"{field.name} {error.value:.1e} ({error.where})")
        return ", ".join(excess)


def compare(result: Result, reference: Result) -> Comparison:
    records = [*result.metrics, result.validation]
    references = [*reference.metrics, reference.validation]
    measured = sorted({name for each in references for name in each if name.endswith(GEOMETRY)})
    return Comparison(
        loss=largest(_figure_errors(result.metrics, reference.metrics, LOSSES)),
        metric=largest(_figure_errors(result.metrics, reference.metrics, METRICS)),
        validation=largest(_figure_errors([result.validation], [reference.validation], VALIDATION)),
        geometry=largest(_figure_errors(records, references, tuple(measured))),
        gradient=largest(_tensor_errors(result.grads, reference.grads)),
        state=largest(_tensor_errors(result.state, reference.state)),
    )


def largest(errors: Iterable[Error | None]) -> Error | None:
    """The largest of those there are; not a number is the worst of all."""
    key = lambda error: math.inf if math.isnan(error.value) else error.value  # noqa: E731
    return max((error for error in errors if error is not None), key=key, default=None)


Records = list[dict[str, float]]


def _figure_errors(
    records: Records, references: Records, names: tuple[str, ...]
) -> Iterator[Error]:
    for step, (ours, theirs) in enumerate(zip(records, references, strict=True), start=1):
        for name in names:
            if name not in theirs or (name not in ours and name in NOT_EVERYWHERE):
                continue
            # The cosine is 1 - L_NITP and starts near 0: its error is that of the loss, absolute.
            # So is skill, which is 1 - L_NITP / constant loss.
            scale = 1.0 if name.endswith(("nitp/cosine", "skill")) else abs(theirs[name])
            difference = abs(ours.get(name, math.nan) - theirs[name])
            yield Error(difference / scale if difference else 0.0, f"{name} at step {step}")


def _tensor_errors(
    tensors: dict[str, torch.Tensor], references: dict[str, torch.Tensor]
) -> Iterator[Error]:
    for name in tensors.keys() | references.keys():
        if name in tensors and name in references:
            yield Error(relative_difference(tensors[name], references[name]), name)
        else:
            yield Error(math.nan, f"{name} is on one side only")
