"""python scripts/evaluate.py on tasks of mteb: two models against scores computed by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation import mteb_data, reference
from tests.integration.stock_models import CONTEXT, FAMILIES, save_model
from tests.waiting import DEADLINE_S

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SUITE = """
title = "Vectors"
harness = "mteb"

[[tasks]]
name = "STSBenchmark"
group = "STS"
data = "sts"

[[tasks]]
name = "Banking77Classification"
label = "Banking"
group = "Classification"
data = "banking"

[[tasks]]
name = "STS12"
group = "STS"
data = "sts_again"
"""


def write_sts(folder, seed):
    texts = mteb_data.draw_texts(40, seed=seed)
    scores = [float(score) for score in np.random.RandomState(seed).permutation(20) / 4]
    mteb_data.write_stsbenchmark(folder, [*zip(texts[:20], texts[20:], scores, strict=True)])
    return texts, scores


def correlate(model, data):
    texts, scores = data
    first, second = (reference.embed(model, half, CONTEXT) for half in (texts[:20], texts[20:]))
    return reference.spearman(reference.cosines(first, second), scores)


def test_two_models_on_tasks_of_mteb_are_compared_by_scores_computed_by_hand(tmp_path):
    models = [save_model(tmp_path / name, FAMILIES[name][0]) for name in ("llama", "qwen3")]
    data = [write_sts(tmp_path / name, seed) for name, seed in (("sts", 3), ("sts_again", 5))]
    # Each label has one text; of the 20 test rows 5 carry the label of another text.
    texts = mteb_data.draw_texts(4, seed=1)
    mteb_data.write_banking77(
        tmp_path / "banking",
        [(text, label) for label, text in enumerate(texts)] * 8,
        [(texts[i % 4], (i + (i < 5)) % 4) for i in range(20)],
    )
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "scripts/evaluate.py", "--model", *models, "--suite", suite]
    for _ in range(2):
        done = subprocess.run(
            [*map(str, command), "--output", str(tmp_path / "output"), "--batch-size", "3"],
            cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, timeout=DEADLINE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 of 3 tasks done") == 2  # the second time
    content = json.loads((tmp_path / "output" / "evaluation.json").read_text())
    rows = {row["title"]: row for row in content["rows"]}
    first, again = ([correlate(model, d) for model in models] for d in data)
    # float32 vectors have the order of the float64 ones: no two cosines are nearer than 1e-5.
    assert rows["STSBenchmark"]["scores"] == pytest.approx(first, abs=1e-12)
    assert rows["STS12"]["scores"] == pytest.approx(again, abs=1e-12)
    assert abs(first[0] - first[1]) > 0.01
    assert rows["Banking"]["scores"] == [0.75, 0.75]
    sts = [(a + b) / 2 for a, b in zip(first, again, strict=True)]
    assert rows["mean of STS"]["scores"] == pytest.approx(sts)
    mean = [(0.75 + a + b) / 3 for a, b in zip(first, again, strict=True)]
    assert rows["mean"]["scores"] == pytest.approx(mean)
    (difference,) = rows["mean"]["differences"]
    assert difference["value"] == pytest.approx(mean[1] - mean[0])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert rows["STS12"]["differences"][0]["low"] is None
