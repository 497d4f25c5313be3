"""The unigram baseline, against a count by hand of the labels that training hands out."""

import math
from collections import Counter

import numpy as np
import pytest

from recipes.data import unigram
from recipes.data.unigram import UnigramBaseline


def naive_cross_entropy(labels: list[int]) -> float:
    counts = Counter(labels)
    return sum(n * -math.log(n / len(labels)) for n in counts.values()) / len(labels)


@pytest.mark.parametrize("num_batches", [21, 22, 40])
def test_it_is_that_of_the_first_labels_alone(monkeypatch, num_batches: int) -> None:
    monkeypatch.setattr(unigram, "SAMPLE_LABELS", 1_000)
    generator = np.random.default_rng(0)
    batches_NBL = generator.integers(0, 9, (num_batches, 4, 12)) ** 2  # 0 to 64, most of them never
    baseline = UnigramBaseline(num_ids=65)
    for labels_BL in batches_NBL:
        baseline.add(labels_BL)
    expected = naive_cross_entropy(batches_NBL.flatten().tolist()[:1_000])
    assert baseline.cross_entropy() == pytest.approx(expected, abs=1e-12)


def test_too_few_labels_give_none(monkeypatch) -> None:
    monkeypatch.setattr(unigram, "SAMPLE_LABELS", 1_000)
    baseline = UnigramBaseline(num_ids=4)
    baseline.add(np.zeros((9, 111), np.int64))
    assert baseline.cross_entropy() is None
    baseline.add(np.zeros((1, 1), np.int64))
    assert baseline.cross_entropy() == 0.0


def test_reading_more_costs_nothing() -> None:
    baseline = UnigramBaseline(num_ids=4)
    baseline.add(np.zeros((1, unigram.SAMPLE_LABELS), np.int64))
    baseline.add(np.full((1, 1), 99))  # beyond the ids: would raise, were it counted
    assert baseline.cross_entropy() == 0.0
