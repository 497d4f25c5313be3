"""Copies of the hub's data sets of four official tasks, tiny, as the hub has them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.integration.stock_models import TEXT


def draw_texts(num: int, *, seed: int) -> list[str]:
    """Different ones, of 1 to 12 words."""
    random = np.random.RandomState(seed)
    texts: dict[str, None] = {}
    while len(texts) < num:
        texts[" ".join(random.choice(TEXT.split(), random.randint(1, 13)))] = None
    return [*texts]


def write_banking77(folder: Path, train: Sequence[Any], test: Sequence[Any]) -> Path:
    """Rows of (text, label). Classification."""
    for split, rows in (("train", train), ("test", test)):
        _write(folder / f"{split}.jsonl", [{"text": text, "label": label} for text, label in rows])
    return folder


def write_stsbenchmark(folder: Path, rows: Sequence[tuple[str, str, float]]) -> Path:
    keys = ("sentence1", "sentence2", "score")
    _write(folder / "test.jsonl", [dict(zip(keys, row, strict=True)) for row in rows])
    return folder


def write_sts17(folder: Path, rows: Sequence[tuple[str, str, float, str]]) -> Path:
    """All languages in one table."""
    keys = ("sentence1", "sentence2", "score", "lang")
    _write(folder / "test.jsonl", [dict(zip(keys, row, strict=True)) for row in rows])
    return folder


def write_twittersemeval2015(folder: Path, rows: Sequence[tuple[str, str, int]]) -> Path:
    """Pair classification: one row that holds all pairs."""
    sent1, sent2, labels = zip(*rows, strict=True)
    _write(folder / "test.jsonl", [{"sent1": sent1, "sent2": sent2, "labels": labels}])
    return folder


def write_askubuntu(folder: Path, queries: Sequence[tuple[str, Mapping[str, int]]]) -> Path:
    """Queries with their candidates -> relevance. Reranking: four tables, named in the README."""
    tables: dict[str, list[dict[str, Any]]] = {
        "queries": [], "corpus": [], "default": [], "top_ranked": [],
    }  # fmt: skip
    for i, (query, candidates) in enumerate(queries):
        ids = [f"doc-{i}-{j}" for j in range(len(candidates))]
        tables["queries"].append({"_id": f"query-{i}", "text": query})
        tables["top_ranked"].append({"query-id": f"query-{i}", "corpus-ids": ids})
        for doc, (text, relevance) in zip(ids, candidates.items(), strict=True):
            tables["corpus"].append({"_id": doc, "title": "", "text": text})
            tables["default"].append(
                {"query-id": f"query-{i}", "corpus-id": doc, "score": relevance}
            )
    configs = []
    for name, rows in tables.items():
        _write(folder / name / "test.jsonl", rows)
        files = [{"split": "test", "path": f"{name}/test.jsonl"}]
        configs.append({"config_name": name, "data_files": files})
    # JSON is YAML.
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    return folder


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
