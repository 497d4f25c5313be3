"""Small documents, files and tokenizers for the tests of the data pipeline."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from recipes.data.records import BadDocumentError

EOS = 0


class WordTokenizer:
    """One token per character, never 0; a tokenizer and its own backend."""

    tokenizer_path = str(Path(__file__).parent / "word_tokenizer")
    default_add_bos = False
    padding = truncation = model = None

    @property
    def tokenizer(self) -> "WordTokenizer":
        return self

    def encode(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        ids = [ord(character) for character in text]
        return SimpleNamespace(
            ids=ids,
            offsets=[(place, place + 1) for place in range(len(ids))],
            word_ids=[*range(len(ids))],
            special_tokens_mask=[0] * len(ids),
        )

    def add_special_tokens(self, tokens: list[str]) -> None:
        assert tokens == ["\0"]

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {}

    def token_to_id(self, token: str) -> int:
        return ord(token)

    def get_vocab(self) -> dict[str, int]:
        return {"the last": 0x10FFFF}


class Texts:
    """Documents in memory, some to a block, that count how often each is parsed; None is bad."""

    option = "data.sources[0]"

    def __init__(self, texts: list[str | None], block_size: int = 1) -> None:
        self.texts = texts
        self.parses = [0] * len(texts)
        self.block_size = block_size

    def __len__(self) -> int:
        return -(-len(self.texts) // self.block_size)

    def read(self, block: int) -> Iterator[tuple[int, int]]:
        first = block * self.block_size
        for key in range(first, min(first + self.block_size, len(self.texts))):
            yield key, key

    def parse(self, block: int, raw: int) -> str:
        self.parses[raw] += 1
        text = self.texts[raw]
        if text is None:
            raise BadDocumentError("{place} is bad")
        return text

    def name(self, block: int, key: int) -> str:
        return f"document {key}"

    def complain(self, block: int, key: int, error: BadDocumentError) -> ValueError:
        return ValueError(error.at(f"text {key}"))


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 40 letters, some of them empty."""
    random = np.random.RandomState(seed)
    letters = [chr(97 + i) for i in range(26)]
    return ["".join(random.choice(letters, random.randint(0, 41))) for _ in range(count)]


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_compressed(path: Path, content: bytes) -> Path:
    """By the ending of the path: .gz or .zst."""
    import pyarrow

    compression = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[path.suffix]
    with pyarrow.output_stream(path, compression=compression) as stream:
        stream.write(content)
    return path


def write_parquet(path: Path, columns: dict, row_group_size: int = 10) -> Path:
    import pyarrow
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path
