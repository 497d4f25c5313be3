"""Three weighted sources of different formats: shares, elasticity, and what is consumed."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import load_documents
from recipes.data.encoder import Encoder
from recipes.data.loader import PackedDataLoader
from recipes.data.mixture import PackedData
from recipes.data.packing import START
from tests import reference_rows
from tests.unit.data_samples import write_compressed, write_jsonl, write_parquet

EOS, SEQ_LEN, GLOBAL_BATCH, NUM_STREAMS = 0, 4, 8, 8
WEIGHTS = {"text": 2.0, "lines": 1.0, "columns": 1.0}
SIZES = {"text": 64, "lines": 24, "columns": 16}
NUM_IDS = 4096

Batches = list[list[list[list[int]]]]
Session = tuple[int, int, int]
"""Ranks, workers, global batches."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    """Token i is spelled i, but for EOS."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocab = {"<eos>": EOS} | {str(i): i for i in range(1, NUM_IDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return HuggingFaceTokenizer(tokenizer_path=str(folder))


def write_sources(folder: Path, documents: dict[str, list[list[int]]]) -> DataConfig:
    """Text as JSON lines in two files, token ids as compressed lines with two bad ones among them,
    and as Parquet."""
    half = len(documents["text"]) // 2
    for number, part in enumerate([documents["text"][:half], documents["text"][half:]]):
        records = [{"text": " ".join(map(str, tokens))} for tokens in part]
        write_jsonl(folder / f"text-{number}.jsonl", records)
    lines = [json.dumps({"ids": tokens}) for tokens in documents["lines"]]
    lines[3:3], lines[9:9] = ["{bad"], [json.dumps({"ids": [NUM_IDS]})]
    write_compressed(folder / "lines.jsonl.zst", "\n".join(lines).encode())
    write_parquet(folder / "columns.parquet", {"ids": documents["columns"]}, row_group_size=7)
    paths = {"text": "text-*.jsonl", "lines": "lines.jsonl.zst", "columns": "columns.parquet"}
    sources = [
        SourceConfig(
            path=str(folder / path),
            name=name,
            weight=WEIGHTS[name],
            tokens=None if name == "text" else "ids",
        )
        for name, path in paths.items()
    ]
    return DataConfig(sources=sources, num_streams=NUM_STREAMS, shuffle_buffer=5, on_error="skip")


def make_documents(lengths: Any) -> dict[str, list[list[int]]]:
    """Documents of those lengths whose tokens occur nowhere else."""
    documents, token = {}, 1
    for name, size in SIZES.items():
        documents[name] = []
        for _ in range(size):
            length = lengths()
            documents[name].append([*range(token, token + length)])
            token += length
    assert token <= NUM_IDS
    return documents


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    random = np.random.RandomState(0)
    documents = make_documents(lambda: random.randint(0, 30))
    return write_sources(tmp_path_factory.mktemp("uneven"), documents)


def run(
    data: DataConfig, tokenizer: HuggingFaceTokenizer, sessions: list[Session]
) -> tuple[Batches, dict[str, int], dict[str, int]]:
    """Global batches of one run in several sessions, tokens and skipped documents at its end."""
    batches: Batches = []
    state: dict[str, Any] = {}
    for num_ranks, num_workers, count in sessions:
        config = PackedDataLoader.Config(data=replace(data, num_workers=num_workers))
        loaders = [
            config.build(
                dp_world_size=num_ranks,
                dp_rank=rank,
                tokenizer=tokenizer,
                seq_len=SEQ_LEN,
                local_batch_size=GLOBAL_BATCH // num_ranks,
            )
            for rank in range(num_ranks)
        ]
        for loader in loaders:
            loader.load_state_dict(
                {key: state[key] for key in loader.state_dict()} if state else {}
            )
        for parts in zip(*(islice(loader, count) for loader in loaders), strict=True):
            rows = [torch.stack([d["input"], d["positions"], labels], 1) for d, labels in parts]
            batches.append(torch.stack(rows, 1).flatten(0, 1).tolist())
        state = {key: value for loader in loaders for key, value in loader.state_dict().items()}
        assert all(loader.num_tokens == loaders[0].num_tokens for loader in loaders)
        num_tokens = loaders[0].num_tokens
        num_skipped = Counter()
        for loader in loaders:
            num_skipped.update(loader.num_skipped)
    return batches, num_tokens, dict(num_skipped)


@pytest.mark.parametrize(
    "sessions",
    [
        [(2, 0, 40)],
        [(4, 0, 40)],
        [(1, 2, 40)],
        [(2, 2, 40)],
        [(4, 2, 40)],
        [(1, 0, 11), (4, 0, 13), (2, 0, 16)],
        [(4, 2, 3), (2, 0, 20), (1, 2, 7), (4, 0, 10)],
    ],
)
def test_global_batches_and_counts_do_not_depend_on_ranks_workers_or_resumes(
    sessions: list[Session], uneven: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    assert run(uneven, tokenizer, sessions) == run(uneven, tokenizer, [(1, 0, 40)])


def test_each_source_gives_its_share_and_all_of_its_documents(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    # Documents as long as a row: a row of the data is a document.
    documents = make_documents(lambda: SEQ_LEN)
    data = write_sources(tmp_path, documents)
    count = 3 * sum(SIZES.values()) // GLOBAL_BATCH
    batches, num_tokens, _ = run(data, tokenizer, [(4, 2, 10), (1, 0, 10), (2, 0, count - 20)])
    consumed = Counter(tuple(row[0]) for batch in batches for row in batch)
    for name, found in documents.items():
        num_rows = sum(consumed[tuple(tokens)] for tokens in found)
        assert num_tokens[name] == num_rows * SEQ_LEN
        share = WEIGHTS[name] / sum(WEIGHTS.values())
        assert abs(num_rows - share * count * GLOBAL_BATCH) <= 2
    assert {*consumed} == {tuple(tokens) for found in documents.values() for tokens in found}
    times = {consumed[tuple(tokens)] for tokens in documents["text"]}
    assert times == {2, 3}, "64 documents, 8 for each stream, in 2.4 epochs"


@pytest.mark.parametrize("sessions", [[(2, 2, 12), (4, 0, 88)], [(1, 0, 100)]])
def test_rows_are_those_of_documents_dealt_by_hand(
    sessions: list[Session], tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    """Sources, streams, epochs, blocks and windows in plain loops."""
    random = np.random.RandomState(1)
    documents = make_documents(lambda: random.randint(0, 30))
    data = replace(write_sources(tmp_path, documents), seed=5)
    batches, num_tokens, num_skipped = run(data, tokenizer, sessions)
    text, lines, columns = ([[*d, EOS] for d in documents[name]] for name in SIZES)
    half, size = len(text) // 2, 7
    blocks: list[reference_rows.Source] = [
        [text[:half], text[half:]],
        [[*lines[:3], None, *lines[3:8], None, *lines[8:]]],
        [columns[first : first + size] for first in range(0, len(columns), size)],
    ]
    rows = reference_rows.training_rows(
        blocks, num_streams=NUM_STREAMS, seq_len=SEQ_LEN, seed=5, weights=[*WEIGHTS.values()],
        buffer=5,
    )  # fmt: skip
    expected = [*islice(rows, 100 * GLOBAL_BATCH)]
    assert [row for batch in batches for row in batch] == [row for _, row, _ in expected]
    for number, name in enumerate(SIZES):
        own = [num_bad for source, _, num_bad in expected if source == number]
        assert num_tokens[name] == len(own) * SEQ_LEN
        assert num_skipped[name] == sum(own)
    assert num_skipped["lines"] > 2, "of more than one epoch"


@pytest.mark.parametrize(
    "weights", [(0.5, 0.3, 0.2), (1.0, 1.0), (0.99, 0.01), (1.0,), (3.0, 0.07, 7.0, 1e-3, 2.0)]
)
@pytest.mark.parametrize("num_streams", [1, 8, 55, 64, 144])
def test_shares_hold_in_the_data_in_each_stream_and_in_each_batch(
    weights: tuple[float, ...], num_streams: int
) -> None:
    data = DataConfig(
        sources=[SourceConfig(path=str(i), weight=w) for i, w in enumerate(weights)],
        num_streams=num_streams,
    )
    packed = make_mixture(data)
    rows = np.arange(2000 * num_streams)
    sources = packed.source_of(rows)
    shares = np.array(weights) / sum(weights)

    def excess(part: np.ndarray) -> float:
        """How many rows a source is off its share, at any moment."""
        counts = (part[:, None] == np.arange(len(weights))).cumsum(0)
        return np.abs(counts - shares * np.arange(1, len(part) + 1)[:, None]).max()

    # Measured: at most 4.7 in a stream, 8.6 over all. Drawn at random: 40 and 400 are common.
    assert max(excess(sources[stream::num_streams]) for stream in range(num_streams)) < 6
    assert excess(sources) < 10
    batches = sources[: len(sources) // 64 * 64].reshape(-1, 64)
    counts = (batches[:, :, None] == np.arange(len(weights))).sum(1)
    assert np.abs(counts - 64 * shares).max() < 6


def make_mixture(data: DataConfig) -> PackedData:
    """Without documents: what depends on the configuration only."""

    class Nothing:
        option = ""

        def __len__(self) -> int:
            return 1

    nothing: Any = [Nothing() for _ in data.sources]
    return PackedData(data, nothing, None, seq_len=SEQ_LEN, num_epochs=-1)


def test_the_rows_of_a_source_do_not_depend_on_the_other_sources(
    uneven: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    def rows_of_first(data: DataConfig) -> list[list]:
        packed = PackedData(
            data, load_documents(data, "train"), Encoder(tokenizer), seq_len=4, num_epochs=-1
        )
        stream = packed.open_stream(3, 3, [START] * len(data.sources))
        drawn = (stream.next_row() for _ in range(60))
        return [row.row_3L.tolist() for source, row in drawn if source == 0][:20]

    alone = replace(uneven, sources=uneven.sources[:1])
    assert rows_of_first(uneven) == rows_of_first(alone)


@pytest.mark.parametrize("epochs", [1, 3])
def test_finite_data_end_before_the_first_row_that_a_source_lacks(
    epochs: int, uneven: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    packed = PackedData(
        uneven, load_documents(uneven, "train"), Encoder(tokenizer), seq_len=4, num_epochs=epochs
    )
    streams = [packed.open_stream(j, j, [START] * 3) for j in range(NUM_STREAMS)]
    row = 0
    while streams[row % NUM_STREAMS].next_row()[1] is not None:
        row += 1
    assert packed.count_rows() == row > 20
