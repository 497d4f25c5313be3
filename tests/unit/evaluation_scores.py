"""Scores of the tests of recipes/evaluation."""

from recipes.evaluation.results import Items, Score


def score(*lists, value=None, is_weighted=True, digest="same"):
    """Of a group with a task for each list of right and wrong."""
    items = {str(i): Items(scores=scores, digest=digest) for i, scores in enumerate(lists)}
    means = [sum(scores) / len(scores) for scores in lists]
    mean = sum(means) / len(means)
    if is_weighted:
        mean = sum(map(sum, lists)) / sum(map(len, lists))
    return Score(
        value=mean if value is None else value, metric="acc", num_fewshot=2, items=items,
        is_weighted=is_weighted,
    )  # fmt: skip
