"""Differences, their intervals and means, as the table of an evaluation states them."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from recipes.evaluation.compare import compare_over_tasks, compare_scores
from recipes.evaluation.results import Score
from recipes.evaluation.suite import Suite, Task
from recipes.evaluation.table import build_table
from tests.unit.evaluation_scores import score


def all_resamples(values):
    """Every way to draw n of n values with replacement, equally likely, and its mean."""
    return np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=len(values))])


def exact_interval(means):
    """The exact quantiles. Of 10 000 draws they are the same where they do not change when the
    probability moves by four of its standard errors, sqrt(0.025 * 0.975 / 10 000) = 0.0016."""
    means = np.round(means, 12)
    low, exact, high = (
        np.quantile(means, [0.025 + shift, 0.975 + shift], method="inverted_cdf")
        for shift in (-0.0065, 0.0, 0.0065)
    )
    assert np.array_equal(low, exact) and np.array_equal(high, exact)
    return pytest.approx(exact, abs=1e-11)


def test_interval_is_that_of_all_resamples_of_paired_documents():
    ours, theirs = [0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 1, 1]
    found = compare_scores([score(ours)], [score(theirs)])
    assert found.value == pytest.approx(3 / 6 - 5 / 6)
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert [found.low, found.high] == exact_interval(all_resamples(pairs))


@pytest.mark.parametrize("is_weighted", [True, False])
def test_each_task_of_a_group_is_resampled_by_itself(is_weighted):
    ours, theirs = ([1, 1], [1, 0, 1, 0]), ([0, 1], [0, 0, 1, 1])
    found = compare_scores(
        [score(*ours, is_weighted=is_weighted)], [score(*theirs, is_weighted=is_weighted)]
    )
    first, second = (
        all_resamples([a - b for a, b in zip(x, y, strict=True)])
        for x, y in zip(ours, theirs, strict=True)
    )
    weights = (2 / 6, 4 / 6) if is_weighted else (1 / 2, 1 / 2)
    both = (weights[0] * first[:, None] + weights[1] * second[None, :]).ravel()
    assert [found.low, found.high] == exact_interval(both)


def test_interval_of_a_mean_resamples_the_tasks_by_themselves():
    ours, theirs = ([1, 1], [1, 0, 1, 0]), ([0, 1], [0, 0, 1, 1])
    found = compare_scores([score(x) for x in ours], [score(x) for x in theirs])
    first, second = (
        all_resamples([a - b for a, b in zip(x, y, strict=True)])
        for x, y in zip(ours, theirs, strict=True)
    )
    assert found.value == pytest.approx(0.25)
    both = (first[:, None] / 2 + second[None, :] / 2).ravel()
    assert [found.low, found.high] == exact_interval(both)


def test_tasks_whose_documents_score_alike_are_not_resampled_alike():
    ours, theirs = [1, 1, 0, 0, 1], [0, 1, 0, 0, 0]
    one = all_resamples([1, 0, 0, 0, 1])
    both = (one[:, None] / 2 + one[None, :] / 2).ravel()
    for found in (
        compare_scores([score(ours)] * 2, [score(theirs)] * 2),
        compare_scores([score(ours, ours)], [score(theirs, theirs)]),
    ):
        assert [found.low, found.high] == exact_interval(both)


@pytest.mark.parametrize(
    "other",
    [
        score([1, 0, 1], digest="other"),
        replace(score([1, 0, 1]), items=None),
        score([1, 0, 1], [1]),
        score([1, 0, 1], is_weighted=False),
    ],
)
def test_documents_that_make_no_pairs_have_no_interval(other):
    found = compare_scores([score([0, 0, 1])], [other])
    assert found.value == pytest.approx(1 / 3 - other.value) and found.low is found.high is None


def test_interval_over_tasks_resamples_tasks():
    def plain(*values):
        return [Score(value=value, metric="main") for value in values]

    found = compare_over_tasks(plain(0.5, 0.9, 0.3, 0.2, 0.75), plain(0.375, 0.4, 0.3, 0.075, 0.25))
    assert found.value == pytest.approx((0.125 + 0.5 + 0.0 + 0.125 + 0.5) / 5)
    means = all_resamples([0.125, 0.5, 0.0, 0.125, 0.5])
    assert [found.low, found.high] == exact_interval(means)
    assert compare_over_tasks(plain(0.5), plain(0.25)).low is None


@pytest.mark.parametrize("value", [float("nan"), 12.5, -1.5])
def test_a_score_that_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match=r"metric acc .* must be a number from -1 to 1"):
        score([1.0], value=value)


def test_means_are_over_the_tasks_that_every_model_has():
    tasks = [Task(name="a", group="g"), Task(name="b", group="g"), Task(name="c", group="h")]
    suite = Suite(name="s", title="S", harness="lm-eval", tasks=tasks)
    scores = {
        "x": {"a": score([1, 0]), "b": score([1, 1]), "c": score([0, 1, 1, 1])},
        "y": {"a": score([1, 1]), "c": score([1, 1, 1, 0])},
    }
    table = build_table(suite, ["x", "y"], scores)
    rows = {row.title: row for row in table.rows}
    assert rows["b"].scores == [1.0, None] and rows["b"].differences == [None]
    assert rows["mean of g"].scores == [0.5, 1.0] and rows["mean of h"].scores == [0.75, 0.75]
    assert rows["mean"].scores == [0.625, 0.875] and rows["mean"].metric == "of 2"
    assert table.missing == ["b"]
    text = table.to_markdown()
    assert "y: above x on 1 of 2 tasks." in text
    assert "In no mean, as a model has no score of it: b." in text
    json.dumps(table.to_json())


def test_a_title_with_a_bar_stays_in_its_cell():
    task = Task(name="a", label="x|y")
    suite = Suite(name="s", title="S", harness="lm-eval", tasks=[task])
    lines = (
        build_table(suite, ["m"], {"m": {"x|y": score([1, 0, 0, 1])}}).to_markdown().splitlines()
    )
    assert lines[2:5] == [
        "| benchmark | shots | metric | documents |     m |",
        "| --------- | ----: | -----: | --------: | ----: |",
        "| x\\|y      |     2 |    acc |         4 | 50.00 |",
    ]
