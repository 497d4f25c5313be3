"""The sources' figures, summed over real ranks."""

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.loader import PackedDataLoader
from recipes.data.metrics import count_sources
from recipes.data.tokenizer import save_bpe_tokenizer
from tests.waiting import DEADLINE_S

BATCHES, GLOBAL_BATCH, SEQ_LEN = 6, 4, 16


@pytest.fixture
def tokenizer(tmp_path: Path) -> HuggingFaceTokenizer:
    save_bpe_tokenizer(tmp_path / "t", ["a word"], vocab_size=260)
    return HuggingFaceTokenizer(tokenizer_path=str(tmp_path / "t"))


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """A third of the documents of "bad" are."""
    lines = [json.dumps({"text": f"a word {i}"}) for i in range(60)]
    (tmp_path / "good.jsonl").write_text("\n".join(lines))
    lines[1::3] = ["no JSON"] * 20
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    names = ("good", "bad")
    sources = [SourceConfig(path=str(tmp_path / f"{name}.jsonl"), name=name) for name in names]
    return DataConfig(sources=sources, num_streams=4, on_error="skip")


def draw(data: DataConfig, tokenizer: HuggingFaceTokenizer, rank: int, num_ranks: int) -> Any:
    loader: Any = PackedDataLoader.Config(data=data).build(
        dp_world_size=num_ranks,
        dp_rank=rank,
        tokenizer=tokenizer,
        seq_len=SEQ_LEN,
        local_batch_size=GLOBAL_BATCH // num_ranks,
    )
    for _ in zip(range(BATCHES), loader, strict=False):
        pass
    return loader


def run_rank(rank: int, store: str, loader: Any, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,), mesh_dim_names=("batch",))
    dims: Any = SimpleNamespace(dp_enabled=True, get_mesh=lambda name: mesh[name])
    results.put(count_sources(loader, dims))
    dist.destroy_process_group()


def test_the_counts_of_two_ranks_are_those_of_one(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    one = count_sources(draw(data, tokenizer, 0, 1), SimpleNamespace(dp_enabled=False))
    half = BATCHES * GLOBAL_BATCH * SEQ_LEN // 2
    assert abs(one["data/tokens_good"] - half) <= SEQ_LEN
    assert one["data/tokens_good"] + one["data/tokens_bad"] == 2 * half
    assert one["data/skipped_bad"] > 3 and one["data/skipped_good"] == 0
    loaders = [draw(data, tokenizer, rank, 2) for rank in range(2)]
    assert all(loader.num_skipped["bad"] for loader in loaders), "each rank must have some"
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    ranks = [
        fork.Process(target=run_rank, args=(rank, str(tmp_path / "store"), loader, results))
        for rank, loader in enumerate(loaders)
    ]
    for process in ranks:
        process.start()
    found = [results.get(timeout=DEADLINE_S) for _ in ranks]
    for process in ranks:
        process.join(DEADLINE_S)
        assert process.exitcode == 0
    assert found == [one, one]


def test_without_skipping_there_is_nothing_to_sum(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a word"}\n' * 9)
    data = DataConfig(sources=[SourceConfig(path=str(tmp_path / "a.jsonl"))], num_streams=4)
    counts = count_sources(draw(data, tokenizer, 0, 1), SimpleNamespace(dp_enabled=True))
    assert counts == {"data/tokens_0": BATCHES * GLOBAL_BATCH * SEQ_LEN}
