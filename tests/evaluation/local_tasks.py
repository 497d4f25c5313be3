"""lm-eval tasks on files: questions with choices, in groups as well, and one of generation."""

import json
from pathlib import Path

import yaml

EXAMPLES = [{"question": "ask stop", "choices": ["stop", "ask"], "answer": 1}] * 3


def question(last: str, choices: list[str], answer: str) -> dict[str, object]:
    return {"question": f"ask {last}", "choices": choices, "answer": choices.index(answer)}


SMALL = [
    question("red", ["one", "two", "three"], "one"),
    question("green", ["three", "two", "one"], "two"),
    question("blue", ["two", "one", "three"], "two"),
]
LARGE = [
    question("red", ["two", "one"], "two"),
    question("red", ["one", "two"], "one"),
    question("green", ["two", "three"], "three"),
    question("green", ["three", "two"], "two"),
    question("blue", ["three", "two"], "three"),
]
# The word after "red" is generated on, and so is the one after that, until the end.
CHAINS = [
    {"question": "ask red", "answer": "one"},
    {"question": "ask green", "answer": "two"},
    {"question": "ask blue", "answer": "two"},
    {"question": "ask red", "answer": "red"},
]


def write_tasks(folder: Path) -> None:
    """Below `folder`: data, and the task YAMLs in `folder/tasks`."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    for name, rows in (("small", SMALL), ("large", LARGE)):
        data = {"examples": EXAMPLES, "test": rows}
        _write_yaml(tasks / f"{name}.yaml", {
            **_source(folder, name, data),
            "task": name,
            "output_type": "multiple_choice",
            "fewshot_split": "examples",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [_metric("acc")],
        })  # fmt: skip
    for name, is_weighted in (("by_document", True), ("by_task", False)):
        _write_yaml(tasks / f"{name}.yaml", {
            "group": name,
            "task": ["small", "large"],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": is_weighted}],
        })  # fmt: skip
    _write_yaml(tasks / "chains.yaml", {
        **_source(folder, "chains", {"test": CHAINS}),
        "task": "chains",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": ["stop"], "max_gen_toks": 4, "do_sample": False},
        "filter_list": [{"name": "first", "filter": [
            {"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"},
        ]}],
        "metric_list": [_metric("exact_match")],
    })  # fmt: skip


def _source(folder: Path, name: str, data: dict[str, list]) -> dict[str, object]:
    files = {}
    for split, rows in data.items():
        path = folder / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    return {
        "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
    }  # fmt: skip


def _metric(name: str) -> dict[str, object]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _write_yaml(path: Path, content: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump(content))
