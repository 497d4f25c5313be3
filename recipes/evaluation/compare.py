"""Means over tasks, and paired differences with intervals. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from recipes.evaluation.results import Score

NUM_RESAMPLES = 10_000
SEED = 0


@dataclass(kw_only=True, slots=True, frozen=True)
class Difference:
    """A model's score less the first model's."""

    value: float
    low: float | None = None
    """End of the 95 % interval; None where documents make no pairs."""

    high: float | None = None


def compare_scores(scores: Sequence[Score], baselines: Sequence[Score]) -> Difference:
    """Difference of the means over tasks. One task: the difference of its scores.

    The interval is a paired bootstrap over documents: each resample draws as many documents of
    each task, and of each task of a group, as it has, the same for both models; 2.5 and 97.5 %
    quantiles of `NUM_RESAMPLES`, by a fixed seed. It says how far other questions of the same kind
    could move the figure, not how far another training run would.
    """
    value = fmean(score.value for score in scores) - fmean(score.value for score in baselines)
    draws = [_resample(a, b, i) for i, (a, b) in enumerate(zip(scores, baselines, strict=True))]
    known = [draw for draw in draws if draw is not None]
    if len(known) < len(draws):
        return Difference(value=value)
    low, high = np.quantile(np.mean(known, axis=0), [0.025, 0.975])
    return Difference(value=value, low=float(low), high=float(high))


def compare_over_tasks(scores: Sequence[Score], baselines: Sequence[Score]) -> Difference:
    """The same with an interval over tasks, for scores that are no means over documents: each
    resample draws as many tasks as there are. None for fewer than two tasks."""
    pairs = zip(scores, baselines, strict=True)
    differences = np.array([a.value - b.value for a, b in pairs])
    value = float(differences.mean())
    if len(differences) < 2:
        return Difference(value=value)
    low, high = np.quantile(_mean_of_resamples(differences, SEED), [0.025, 0.975])
    return Difference(value=value, low=float(low), high=float(high))


def _resample(score: Score, baseline: Score, number: int) -> NDArray[np.float64] | None:
    """Differences of the resampled scores, [NUM_RESAMPLES]; None unless the documents make
    pairs."""
    if score.items is None or baseline.items is None or not _are_pairs(score, baseline):
        return None
    means, weights = [], []
    for leaf_number, (leaf, items) in enumerate(sorted(score.items.items())):
        pairs = zip(items.scores, baseline.items[leaf].scores, strict=True)
        differences = np.array([a - b for a, b in pairs])
        means.append(_mean_of_resamples(differences, SEED, number, leaf_number))
        weights.append(len(differences) if score.is_weighted else 1)
    return np.average(means, axis=0, weights=weights)


def _are_pairs(score: Score, baseline: Score) -> bool:
    return score.is_weighted == baseline.is_weighted and _documents(score) == _documents(baseline)


def _documents(score: Score) -> dict[str, str]:
    return {leaf: items.digest for leaf, items in (score.items or {}).items()}


def _mean_of_resamples(values: NDArray[np.float64], *seed: int) -> NDArray[np.float64]:
    """Drawing n of n values with replacement is drawing how often each distinct value comes: few,
    where answers are right or wrong."""
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(values), counts / len(values), size=NUM_RESAMPLES)
    return drawn @ distinct / len(values)
