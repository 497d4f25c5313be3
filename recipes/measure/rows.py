"""Packed rows as the data path of training makes them, and batches of them for a model.

Shape suffixes: N = rows, 3 = input, position, label; B = sequences of a batch, L = their length.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from nitp.objective import IGNORE_INDEX
from recipes.data.config import DataConfig
from recipes.data.documents import Split, load_documents
from recipes.data.encoder import BosRule, Encoder
from recipes.data.mixture import PackedData
from recipes.data.packing import START
from recipes.data.tokenizer import resolve_tokenizer_path

TOKENS_PER_BATCH = 4096
"""A batch has one row or more, up to so many tokens."""


class Batch(NamedTuple):
    """Sequences for one forward pass."""

    tokens_BL: torch.Tensor
    positions_BL: torch.Tensor

    labels_BL: torch.Tensor
    """IGNORE_INDEX where there is no token."""

    row_B: torch.Tensor
    """The packed row that each sequence is of, or is a part of."""

    is_token_BL: torch.Tensor
    """False for padding."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(x.to(device) for x in self))


def split_of(data: DataConfig) -> Split:
    """Which documents of the sources are measured: those held out, if any are. The sets of
    `[[validation.sets]]` are not."""
    return "validation" if data.validation_fraction > 0 else "train"


def load_encoder(tokenizer: str, bos: BosRule) -> Encoder:
    """tokenizer: as `tokenizer.path`. Raises ValueError for one that cannot be used."""
    folder = resolve_tokenizer_path(tokenizer)
    try:
        loaded = HuggingFaceTokenizer(tokenizer_path=folder)
    except Exception as error:  # the tokenizers library raises no other class
        raise ValueError(f"tokenizer.path ({folder}) cannot be loaded: {error}") from error
    return Encoder(loaded, bos)


def read_rows(data: DataConfig, encoder: Encoder, *, seq_len: int, num_rows: int) -> np.ndarray:
    """The first rows that training, or of documents held out validation, gets: int64 [N, 3, L].

    Fewer rows than `num_rows` where the documents, read once, give no more. Raises ValueError for
    data that cannot be used, and for fewer than two rows.
    """
    split = split_of(data)
    packed = PackedData(
        data,
        load_documents(data, split),
        encoder,
        seq_len=seq_len,
        num_epochs=1,
        is_mixed=split == "train",
    )
    start = [START] * len(packed.sources)
    streams = [packed.open_stream(j, j, start) for j in range(packed.num_streams)]
    rows: list[np.ndarray] = []
    for number in range(num_rows):
        _, row = streams[number % packed.num_streams].next_row()
        if row is None:
            break
        rows.append(row.row_3L)
    if len(rows) < 2:
        raise ValueError(
            f"data.sources give {len(rows)} rows of {seq_len} tokens, where at least 2 are needed. "
            "Add documents, or lower --seq-len."
        )
    return np.stack(rows)


def batch_rows(rows_N3L: np.ndarray) -> Iterator[Batch]:
    """Whole rows, several documents in each: for a model whose attention goes by positions."""
    size = max(1, TOKENS_PER_BATCH // rows_N3L.shape[2])
    for first in range(0, len(rows_N3L), size):
        rows_B3L = torch.from_numpy(rows_N3L[first : first + size])
        tokens_BL, positions_BL, labels_BL = rows_B3L.unbind(1)
        row_B = torch.arange(first, first + len(tokens_BL))
        is_token_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
        yield Batch(tokens_BL, positions_BL, labels_BL, row_B, is_token_BL)


def batch_documents(rows_N3L: np.ndarray) -> Iterator[Batch]:
    """Each document's part of a row as a sequence of its own, those of like length together and
    padded at the end: any causal model sees the same of a token as training's attention does."""
    parts = [
        (number, row_3L[:, begin:end])
        for number, row_3L in enumerate(rows_N3L)
        for begin, end in _document_bounds(row_3L[1])
    ]
    parts.sort(key=lambda part: part[1].shape[1], reverse=True)
    while parts:
        length = parts[0][1].shape[1]
        size = max(1, TOKENS_PER_BATCH // length)
        yield _pad(parts[:size], length)
        parts = parts[size:]


def _document_bounds(positions_L: np.ndarray) -> list[tuple[int, int]]:
    starts = np.flatnonzero(positions_L == 0).tolist()
    return list(zip(starts, [*starts[1:], len(positions_L)], strict=True))


def _pad(parts: list[tuple[int, np.ndarray]], length: int) -> Batch:
    padded_B3L = np.zeros((len(parts), 3, length), np.int64)
    padded_B3L[:, 2] = IGNORE_INDEX
    for sequence_3L, (_, part_3L) in zip(padded_B3L, parts, strict=True):
        sequence_3L[:, : part_3L.shape[1]] = part_3L
    tokens_BL, positions_BL, labels_BL = torch.from_numpy(padded_B3L).unbind(1)
    length_B = torch.tensor([part_3L.shape[1] for _, part_3L in parts])
    is_token_BL = torch.arange(length) < length_B[:, None]
    row_B = torch.tensor([number for number, _ in parts])
    return Batch(tokens_BL, positions_BL, labels_BL, row_B, is_token_BL)
