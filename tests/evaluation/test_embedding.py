"""Official tasks of mteb on tiny local data score what is computed here by hand."""

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.evaluation.results import Score
from recipes.evaluation.suite import EMBEDDING, Suite, Task, load_suite
from tests.evaluation import mteb_data, reference
from tests.integration.stock_models import CONTEXT, FAMILIES, save_model

pytestmark = pytest.mark.slow  # importing mteb takes seconds


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """The hosts that a test looks up: none. Data sets are kept with the test."""
    import datasets
    import huggingface_hub

    hosts: list[Any] = []

    def look_up(host: Any, *_: Any, **__: Any) -> Any:
        hosts.append(host)
        raise socket.gaierror(f"{host} in a test")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    yield hosts
    assert not hosts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama") / "model", FAMILIES["llama"][0])


@pytest.fixture(scope="module")
def evaluator(model: Path) -> Any:
    return build(Task(name="STS12")).load(model)


def build(*tasks: Task) -> Any:
    from recipes.evaluation.embedding import EmbeddingHarness

    suite = Suite(name="own", title="own", harness=EMBEDDING, tasks=tasks)
    return EmbeddingHarness(suite, device="cpu", batch_size=4)


def embed(model: Path, texts: Any) -> np.ndarray:
    return reference.embed(model, texts, CONTEXT)


def test_classification_scores_the_share_of_right_labels(evaluator: Any, tmp_path: Path) -> None:
    """Each label has one text; of the 20 test rows 5 carry the label of another text."""
    texts = mteb_data.draw_texts(4, seed=1)
    train = [(text, label) for label, text in enumerate(texts)] * 8
    test = [(texts[i % 4], (i + (i < 5)) % 4) for i in range(20)]
    data = mteb_data.write_banking77(tmp_path / "data", train, test)
    task = Task(name="Banking77Classification", data=str(data))
    assert evaluator.evaluate(task) == Score(value=0.75, metric="accuracy")


def test_classification_scores_the_same_each_time(evaluator: Any, tmp_path: Path) -> None:
    """Labels have nothing to do with the texts: other training rows would give another score."""
    random = np.random.RandomState(2)
    rows = [(text, int(random.randint(3))) for text in mteb_data.draw_texts(120, seed=2)]
    data = mteb_data.write_banking77(tmp_path / "data", rows[:90], rows[90:])
    task = Task(name="Banking77Classification", data=str(data))
    first = evaluator.evaluate(task)
    np.random.rand(3)
    assert evaluator.evaluate(task) == first
    assert 0 < first.value < 1


def test_sts_scores_the_rank_correlation_of_cosines(
    evaluator: Any, model: Path, tmp_path: Path
) -> None:
    texts = mteb_data.draw_texts(40, seed=3)
    scores = [float(score) for score in np.random.RandomState(4).permutation(20) / 4]
    rows = [*zip(texts[:20], texts[20:], scores, strict=True)]
    data = mteb_data.write_stsbenchmark(tmp_path / "data", rows)
    found = evaluator.evaluate(Task(name="STSBenchmark", data=str(data)))
    cosines = reference.cosines(embed(model, texts[:20]), embed(model, texts[20:]))
    expected = reference.spearman(cosines, scores)
    assert (found.value, found.metric) == (pytest.approx(expected, abs=1e-12), "cosine_spearman")
    assert 0.02 < abs(expected) < 0.98


def test_one_subset_is_taken_from_a_table_of_all_languages(
    evaluator: Any, model: Path, tmp_path: Path
) -> None:
    """The English pairs are in the right order, the others in the opposite one."""
    texts = mteb_data.draw_texts(20, seed=4)
    pairs = [*zip(texts[:10], texts[10:], strict=True)]
    cosines = reference.cosines(embed(model, texts[:10]), embed(model, texts[10:]))
    rows = [
        (first, second, sign * cosine + 1, lang)
        for (first, second), cosine in zip(pairs, cosines, strict=True)
        for sign, lang in ((1, "en-en"), (-1, "es-es"), (-1, "en-de"))
    ]
    data = str(mteb_data.write_sts17(tmp_path / "data", rows))
    values = [
        evaluator.evaluate(Task(name="STS17", subset=subset, data=data)).value
        for subset in ("en-en", "es-es", None)
    ]
    assert values == pytest.approx([1, -1, 1])


def test_pair_classification_scores_the_average_precision(
    evaluator: Any, model: Path, tmp_path: Path
) -> None:
    texts = mteb_data.draw_texts(40, seed=5)
    labels = [int(label) for label in np.random.RandomState(5).randint(2, size=20)]
    rows = [*zip(texts[:20], texts[20:], labels, strict=True)]
    data = str(mteb_data.write_twittersemeval2015(tmp_path / "data", rows))
    first_ND, second_ND = embed(model, texts[:20]), embed(model, texts[20:])
    by_cosine = reference.average_precision(reference.cosines(first_ND, second_ND), labels)
    distances = [-float(abs(a - b).sum()) for a, b in zip(first_ND, second_ND, strict=True)]
    by_manhattan = reference.average_precision(distances, labels)
    # Dot products and Euclidean distances of vectors of length 1 rank as cosines do.
    best = max(by_cosine, by_manhattan)
    found = evaluator.evaluate(Task(name="TwitterSemEval2015", data=data))
    assert (found.value, found.metric) == (pytest.approx(best, abs=1e-12), "max_ap")
    found = evaluator.evaluate(Task(name="TwitterSemEval2015", data=data, metric="cosine_ap"))
    assert (found.value, found.metric) == (pytest.approx(by_cosine, abs=1e-12), "cosine_ap")
    assert by_cosine != by_manhattan and best < 0.98


def test_reranking_scores_the_mean_average_precision(
    evaluator: Any, model: Path, tmp_path: Path
) -> None:
    texts = mteb_data.draw_texts(44, seed=6)
    queries, precisions = [], []
    for i, query in enumerate(texts[:4]):
        candidates = texts[4 + 10 * i : 14 + 10 * i]
        # Relevant are as many as the query's number, and one; to the first, its own text.
        labels = [int(j <= i) for j in range(10)]
        candidates[0] = query if i == 0 else candidates[0]
        queries.append((query, dict(zip(candidates, labels, strict=True))))
        vectors_ND = embed(model, [query, *candidates])
        cosines = [float(vectors_ND[0] @ vector_D) for vector_D in vectors_ND[1:]]
        precisions.append(reference.average_precision(cosines, labels))
    assert precisions[0] == 1 and sum(precisions) < 3.9
    data = mteb_data.write_askubuntu(tmp_path / "data", queries)
    found = evaluator.evaluate(Task(name="AskUbuntuDupQuestions", data=str(data)))
    # mteb rounds to five digits.
    expected = pytest.approx(sum(precisions) / 4, abs=5e-6)
    assert (found.value, found.metric) == (expected, "map_at_1000")


def test_text_without_tokens_scores(evaluator: Any, tmp_path: Path) -> None:
    """It gives a number, and is like no other text."""
    texts = mteb_data.draw_texts(3, seed=7)
    data = mteb_data.write_askubuntu(tmp_path / "data", [("", {texts[0]: 1, texts[1]: 1, "": 1})])
    found = evaluator.evaluate(Task(name="AskUbuntuDupQuestions", data=str(data)))
    assert found.value == 1
    rows = [("", texts[0], 0.0), (texts[1], texts[1], 5.0)]
    data = mteb_data.write_stsbenchmark(tmp_path / "sts", rows)
    assert evaluator.evaluate(Task(name="STSBenchmark", data=str(data))).value == pytest.approx(1)


def test_local_data_leave_mtebs_tasks_as_they_are(evaluator: Any, tmp_path: Path) -> None:
    import mteb

    rows = [("to", "be", 1.0), ("or", "not", 2.0), ("that", "is", 3.0)]
    data = str(mteb_data.write_stsbenchmark(tmp_path / "data", rows))
    before = mteb.get_task("STSBenchmark").metadata.model_copy(deep=True)
    evaluator.evaluate(Task(name="STSBenchmark", data=data))
    assert mteb.get_task("STSBenchmark").metadata == before
    assert before.dataset["path"] == "mteb/stsbenchmark-sts"


def test_paper_suite_is_that_part_of_mtebs_own_benchmark() -> None:
    import mteb

    from recipes.evaluation.embedding import EmbeddingHarness, build_task

    suite = load_suite("mteb")
    EmbeddingHarness(suite, device="cpu", batch_size=1).check()
    assert Counter(task.group for task in suite.tasks) == {
        "Classification": 10, "STS": 9, "Retrieval and duplicate detection": 6,
    }  # fmt: skip
    official = {task.metadata.name: task for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}
    for task in suite.tasks:
        ours, theirs = build_task(task), official[task.name]
        assert ours.hf_subsets == theirs.hf_subsets, task.name
        assert [*ours.eval_splits] == [*theirs.eval_splits] == ["test"], task.name
        assert ours.metadata == theirs.metadata, task.name
    found = {
        (task.group, build_task(task).metadata.main_score, build_task(task).metadata.type)
        for task in suite.tasks
    }
    duplicates = "Retrieval and duplicate detection"
    assert found == {
        ("Classification", "accuracy", "Classification"), ("STS", "cosine_spearman", "STS"),
        (duplicates, "map_at_1000", "Reranking"), (duplicates, "max_ap", "PairClassification"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "Banking77"}, r"Banking77 is no task of mteb \S+\. Did you mean [^\n]*"
                                r"Banking77Classification"),
        ({"name": "AmazonCounterfactualClassification", "subset": "eng"},
         r"subset \(eng\) is none of the task's\. Did you mean en\b"),
        ({"name": "STS17", "subset": "xx"},
         r"subset \(xx\) is none of the task's\. There are ko-ko, "),
        ({"name": "GermanSTSBenchmark"}, r"has no subset in English alone\. Name one as subset: "),
        ({"name": "MSMARCO", "metric": "ndcg_at_10"}, r"is scored on train, dev|is scored on dev"),
        ({"name": "CQADupstackRetrieval"}, "is a group of tasks"),
        ({"name": "CIFAR10"}, r"is about image\. Name a task about text alone"),
        ({"name": "STS12", "metric": "spearmann"},
         r"metric \(spearmann\) is none of the task's\. Did you mean spearman\b"),
        ({"name": "SciDocsRR", "metric": "map"}, r"metric \(map\) is none of the task's\."),
    ],
)  # fmt: skip
def test_mistake_in_a_suite_is_one_line_with_its_remedy(task: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^suite own: tasks\[1\]: [^\n]*{message}[^\n]*$"):
        build(Task(name="STS12"), Task(**task)).check()


def test_folder_without_the_data_is_named_in_one_line(evaluator: Any, tmp_path: Path) -> None:
    rows = [("to", "be", 1.0)]
    sts = mteb_data.write_stsbenchmark(tmp_path / "sts", rows)
    sts17 = mteb_data.write_sts17(tmp_path / "sts17", [(*rows[0], "es-es")])
    empty = tmp_path / "empty"
    empty.mkdir()
    untrained = mteb_data.write_banking77(tmp_path / "untrained", [], [("to", 0)])
    (untrained / "train.jsonl").unlink()
    for name, folder, reason in (
        ("STS12", empty, "doesn't contain any data files"),
        ("Banking77Classification", untrained, "it has no split train"),
        ("SICK-R", mteb_data.write_twittersemeval2015(tmp_path / "pair", [("to", "be", 1)]),
         "test has no column sentence1"),
        ("TwitterSemEval2015", sts, "sent1"),
        ("AskUbuntuDupQuestions", sts, "query-id"),
        ("STS17", sts17, "it has no rows of en-en"),
        ("STS17", sts, "lang"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as error:
            evaluator.evaluate(Task(name=name, data=str(folder)))
        message = str(error.value)
        assert message.startswith(f"{name}: data ({folder}) is no copy of"), message
        assert reason in message and message.endswith("Download it there as it is."), message
        assert "\n" not in message


def test_hub_out_of_reach_is_one_line_with_its_remedy(evaluator: Any) -> None:
    for name, path in (("STS12", "mteb/sts12-sts"), ("SciDocsRR", "mteb/SciDocsRR")):
        with pytest.raises(
            OSError, match=f"^{name}: [^\n]*{path}[^\n]*Connect to it, or name the folder[^\n]*$"
        ):
            evaluator.evaluate(Task(name=name))
