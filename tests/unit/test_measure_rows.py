"""The rows that a model is measured on: those of training, each token once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.data.config import DataConfig, SourceConfig
from recipes.measure import rows as measure_rows
from recipes.measure.rows import Batch, batch_documents, batch_rows, load_encoder, read_rows
from tests.unit.data_samples import make_texts, write_jsonl

# isort: split

from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data.loader import PackedDataLoader
from recipes.data.tokenizer import save_bpe_tokenizer

SEQ_LEN = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Its EOS is token 0; a letter is a token."""
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    save_bpe_tokenizer(folder, ["a"], vocab_size=257)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """60 documents, some longer than a row, and some empty."""
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    return write_jsonl(path, [{"text": text} for text in make_texts(60)])


def read(text: Path, tokenizer: Path, num_rows: int) -> np.ndarray:
    data = DataConfig(sources=[SourceConfig(path=str(text))], num_streams=1)
    encoder = load_encoder(str(tokenizer), "auto")
    return read_rows(data, encoder, seq_len=SEQ_LEN, num_rows=num_rows)


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_rows_are_those_that_training_and_validation_get(text, tokenizer, fraction):
    """Four streams of the training data; of documents held out, file order."""
    source = SourceConfig(path=str(text))
    data = DataConfig(sources=[source], num_streams=4, validation_fraction=fraction)
    loader = PackedDataLoader(
        PackedDataLoader.Config(data=data, split="validation" if fraction else "train"),
        dp_world_size=1,
        dp_rank=0,
        tokenizer=HuggingFaceTokenizer(tokenizer_path=str(tokenizer)),
        seq_len=SEQ_LEN,
        local_batch_size=6,
    )
    inputs, labels = next(iter(loader))
    rows = read_rows(data, load_encoder(str(tokenizer), "auto"), seq_len=SEQ_LEN, num_rows=6)
    expected = torch.stack([inputs["input"], inputs["positions"], labels], dim=1)
    assert np.array_equal(rows, expected.numpy())


def test_documents_are_read_once(text, tokenizer):
    rows = read(text, tokenizer, num_rows=10_000)
    num_documents = sum(1 for text in make_texts(60) if text)
    num_ends = (rows[:, 2] == 0).sum()  # labels that are EOS
    assert num_documents - SEQ_LEN < num_ends <= num_documents  # what fills no row is dropped


def test_batches_of_documents_have_all_tokens_of_the_rows_once(text, tokenizer, monkeypatch):
    monkeypatch.setattr(measure_rows, "TOKENS_PER_BATCH", 2 * SEQ_LEN)
    rows = read(text, tokenizer, num_rows=9)

    def listed(batches: list[Batch]) -> list[tuple[int, ...]]:
        return sorted(
            (int(batch.row_B[b]), *(int(x[b, t]) for x in batch[:3]))
            for batch in batches
            for b, t in batch.is_token_BL.nonzero().tolist()
        )

    whole, parts = [*batch_rows(rows)], [*batch_documents(rows)]
    assert len(whole) == 5 and len(parts) > 5
    assert listed(whole) == listed(parts) and len(listed(parts)) == 9 * SEQ_LEN
    for batch in parts:
        assert (batch.labels_BL[~batch.is_token_BL] == -100).all()
        assert (batch.positions_BL[:, 0] == 0).all()
