"""The unigram model's cross entropy, against counts of labels dealt by hand."""

import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data import unigram
from recipes.data.config import DataConfig, SourceConfig
from recipes.data.loader import PackedDataLoader
from recipes.data.tokenizer import save_bpe_tokenizer
from tests import reference_rows

SEQ_LEN, NUM_STREAMS = 16, 4


def test_the_value_is_the_entropy_of_the_first_labels_of_the_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 labels are in the first 4 rows of 16. In nats, of as many labels as were looked at."""
    texts = [f"row {i} " * (1 + i % 3) for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save_bpe_tokenizer(tmp_path / "tokenizer", texts, vocab_size=270)
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(tmp_path / "tokenizer"))
    data = DataConfig(
        sources=[SourceConfig(path=str(tmp_path / "a.jsonl"))], num_streams=NUM_STREAMS, seed=3
    )
    monkeypatch.setattr(unigram, "SAMPLE_TOKENS", 50)
    value = unigram.unigram_cross_entropy(PackedDataLoader.Config(data=data), tokenizer, SEQ_LEN)
    documents = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    rows = reference_rows.training_rows(
        [[documents]], num_streams=NUM_STREAMS, seq_len=SEQ_LEN, seed=3
    )
    counts = Counter(label for _, row, _ in islice(rows, 4) for label in row[2])
    expected = -sum(n / 64 * math.log(n / 64) for n in counts.values())
    assert 1 < expected < math.log(64)
    assert value == pytest.approx(expected, rel=1e-12)
