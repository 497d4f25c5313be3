"""suites/paper.toml asks for scores that lm-eval has, and our own tasks put questions as they say.

Offline: lm-eval's task files are read, no data set is; our tasks run on rows of the same columns.
"""

import csv
import json

import datasets
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from recipes.evaluation.suite import load_suite

pytestmark = pytest.mark.slow  # the index of lm-eval's tasks takes 5 s

SUITE = load_suite("paper")
[TASKS] = SUITE.task_folders

XIEZHI = [
    {
        "question": "一年有几个月？_____",
        "options": "七个\n十个\n十二个\n三十个",
        "answer": "十二个",
        "labels": ["天文学", "理学"],
    },
    {
        "question": "水的化学式是_____",
        "options": "H2O\nCO2\nO2\nN2",
        "answer": "H2O",
        "labels": ["化学"],
    },
]
XIEZHI_EXAMPLE = {
    "question": "中国的首都是_____",
    "options": "上海\n北京\n广州\n西安",
    "answer": "北京",
    "labels": ["地理学"],
}
C3 = [
    {
        "id": 0,
        "context": ["男：你几点起床？", "女：七点。"],
        "question": "女的几点起床？",
        "choice": ["六点", "七点", "七点半"],
        "answer": "七点",
    },
    {
        "id": 1,
        "context": ["小明喜欢下棋。"],
        "question": "小明喜欢什么？",
        "choice": ["下棋", "唱歌"],
        "answer": "下棋",
    },
]
C3_EXAMPLE = {
    "id": 2,
    "context": ["今天下雨。"],
    "question": "今天天气怎么样？",
    "choice": ["晴天", "下雨", "下雪", "刮风"],
    "answer": "下雨",
}
COPA = [
    {
        "id": 501,
        "premise": "The lamp went dark.",
        "choice1": "I pulled the plug.",
        "choice2": "I opened the window.",
        "question": "cause",
        "label": 0,
        "mirrored": False,
    },
    {
        "id": 502,
        "premise": "The child's cup fell over.",
        "choice1": "The table dried.",
        "choice2": "The table got wet.",
        "question": "effect",
        "label": 1,
        "mirrored": False,
    },
]
COPA_EXAMPLE = {
    "id": 1001,
    "premise": "The snow melted.",
    "choice1": "The moon rose.",
    "choice2": "The air grew warm.",
    "question": "cause",
    "label": 1,
    "mirrored": True,
}


def test_the_suite_has_the_paper_s_benchmarks_but_lcbench():
    english = {"MMLU", "MMLU-Pro", "LAMBADA", "BBH", "ARC-C", "CommonsenseQA", "Balanced COPA"}
    others = {"C-Eval", "Xiezhi", "C3", "AGIEval", "GSM8k"}
    assert {task.title for task in SUITE.tasks} == english | others
    assert any("LCBench" in note for note in SUITE.notes)


@pytest.fixture(scope="module")
def index():
    return TaskManager(include_path=str(TASKS)).task_index


def _members(name, index):
    """Configurations of the groups and of the tasks that a name stands for."""
    entry = index[name]
    if entry.kind.name == "TAG":
        children, groups = entry.tags, []
    elif entry.kind.name == "GROUP":
        children, groups = entry.cfg["task"], [entry.cfg]
    else:
        return [], [entry.cfg]
    members = [_members(child, index) for child in children]
    groups += [group for inner, _ in members for group in inner]
    return groups, [task for _, tasks in members for task in tasks]


@pytest.mark.parametrize("asked", SUITE.tasks, ids=lambda task: task.name)
def test_lm_eval_has_each_score_that_the_suite_asks_for(asked, index):
    groups, tasks = _members(asked.name, index)
    score = (asked.metric, asked.filter or "none")
    for task in tasks:
        filters = [entry["name"] for entry in task.get("filter_list", [{"name": "none"}])]
        metrics = [entry["metric"] for entry in task["metric_list"]]
        assert score in [(metric, name) for metric in metrics for name in filters], task["task"]
    for group in groups:
        [entry] = [e for e in group["aggregate_metric_list"] if e["metric"] == asked.metric]
        assert entry.get("filter_list") in (None, asked.filter), group["group"]
        assert entry["weight_by_size"] is True, group["group"]


@pytest.mark.parametrize("asked", SUITE.tasks, ids=lambda task: task.name)
def test_shots_take_effect_and_are_not_taken_from_the_scored_questions(asked, index):
    """lm-eval keeps to a 0 in a task's own file whatever it is told, and takes examples from the
    scored questions where a task has no others."""
    assert asked.num_fewshot is not None
    if asked.num_fewshot == 0:
        return
    for task in _members(asked.name, index)[1]:
        assert task.get("num_fewshot") != 0, task["task"]
        examples = task.get("fewshot_config", {}).get("samples")
        if examples is not None:
            assert len(examples) >= asked.num_fewshot, task["task"]
            continue
        scored = task.get("test_split") or task["validation_split"]
        source = task.get("fewshot_split") or task.get("training_split")
        assert source is not None and source != scored, task["task"]


class Table(LM):
    """Finds a continuation as likely as the table says."""

    def __init__(self, log_likelihood):
        super().__init__()
        self._log_likelihood = log_likelihood

    def loglikelihood(self, requests):
        return [(self._log_likelihood[request.args[1]], False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Evaluate one of our tasks by its own file, but for where its rows are.

    Gives the scores and, for each question, the prompt, the continuations and the target's index.
    """
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def run(name, *, example, split, questions, num_fewshot, log_likelihood):
        write = _write_csv if name == "balanced_copa" else _write_json
        files = {
            "train": write(tmp_path / "train", [example]),
            split: [write(tmp_path / f"{split}-{i}", [row]) for i, row in enumerate(questions)],
        }
        local = {
            "include": str(TASKS / f"{name}.yaml"),
            "dataset_path": "csv" if name == "balanced_copa" else "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "cache")},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(local))
        found = simple_evaluate(
            model=Table(log_likelihood),
            tasks=[name],
            num_fewshot=num_fewshot,
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            bootstrap_iters=0,
        )
        rendered = []
        for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"]):
            [prompt] = {prompt for prompt, _ in sample["arguments"]}
            choices = [choice for _, choice in sample["arguments"]]
            rendered.append((prompt, choices, sample["target"]))
        return found["results"][name], rendered

    return run


def _write_json(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_xiezhi_ranks_letters_below_the_options(run):
    scores, rendered = run(
        "xiezhi",
        example=XIEZHI_EXAMPLE,
        split="test",
        questions=XIEZHI,
        num_fewshot=1,
        log_likelihood={" A": -3.0, " B": -4.0, " C": -1.0, " D": -2.0},  # C: right, wrong
    )
    shot = "题目: 中国的首都是_____\nA. 上海\nB. 北京\nC. 广州\nD. 西安\n答案: B\n\n"
    letters = [" A", " B", " C", " D"]
    assert rendered == [
        (
            f"{shot}题目: 一年有几个月？_____\nA. 七个\nB. 十个\nC. 十二个\nD. 三十个\n答案:",
            letters,
            2,
        ),
        (f"{shot}题目: 水的化学式是_____\nA. H2O\nB. CO2\nC. O2\nD. N2\n答案:", letters, 0),
    ]
    assert scores["acc,none"] == 1 / 2


def test_c3_ranks_the_texts_of_two_to_four_options(run):
    """The answer 七点 is the likeliest of three, but by the character 七点半 is."""
    scores, rendered = run(
        "c3",
        example=C3_EXAMPLE,
        split="validation",
        questions=C3,
        num_fewshot=1,
        log_likelihood={"六点": -9.0, "七点": -3.0, "七点半": -4.0, "下棋": -1.0, "唱歌": -2.0},
    )
    shot = "文章：今天下雨。\n问题：今天天气怎么样？\n答案：下雨\n\n"
    assert rendered == [
        (
            f"{shot}文章：男：你几点起床？ 女：七点。\n问题：女的几点起床？\n答案：",
            ["六点", "七点", "七点半"],
            1,
        ),
        (f"{shot}文章：小明喜欢下棋。\n问题：小明喜欢什么？\n答案：", ["下棋", "唱歌"], 0),
    ]
    assert scores["acc,none"] == 1
    assert scores["acc_norm,none"] == 1 / 2


@pytest.mark.parametrize(
    "num_fewshot, shot", [(0, ""), (1, "The snow melted because the air grew warm.\n\n")]
)
def test_balanced_copa_completes_the_premise(num_fewshot, shot, run):
    scores, rendered = run(
        "balanced_copa",
        example=COPA_EXAMPLE,
        split="test",
        questions=COPA,
        num_fewshot=num_fewshot,
        log_likelihood={
            " i pulled the plug.": -1.0,
            " i opened the window.": -2.0,
            " the table dried.": -1.0,
            " the table got wet.": -2.0,
        },
    )
    assert rendered == [
        (
            f"{shot}The lamp went dark because",
            [" i pulled the plug.", " i opened the window."],
            0,
        ),
        (
            f"{shot}The child's cup fell over therefore",
            [" the table dried.", " the table got wet."],
            1,
        ),
    ]
    assert scores["acc,none"] == 1 / 2
