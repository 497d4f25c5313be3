"""The held-out sets of `[[validation.sets]]`: tokenized and packed once, then read again and again.

A set is read whole. Its documents follow each other in the order of its files, packed into rows as
training packs them (data.bos, data.long_documents, training.seq_len); the last row is filled up
without labels. Which rows there are does not depend on ranks or batch sizes. Rank r of R serves
rows r, r + R, ..., and as many rows without labels as make all ranks' batches the same number.

Cost: at the start every rank tokenizes each set, a few megabytes of text a second, and keeps its
own rows, 12 bytes a token: 400 MB of text are about 100 million tokens, minutes of tokenization (of
token ids that scripts/tokenize_data.py has made, seconds) and 1.2 GB over the data-parallel ranks.
Their tensor-, context- and pipeline-parallel ranks each keep the same. A validation then costs a
forward pass of these rows, and no reading.

Shape suffixes: N = rows of this rank, L = sequence length, 3 = input, position, label.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.tools.logging import logger

from recipes.data.config import DataConfig, ValidationSetConfig
from recipes.data.documents import load_set_documents
from recipes.data.encoder import Encoder
from recipes.data.order import Order
from recipes.data.packing import IGNORE_INDEX, PackedSource
from recipes.data.token_bytes import TokenBytes, build_token_bytes


@dataclass(slots=True, kw_only=True)
class ValidationSet:
    """A held-out set as this rank reads it."""

    name: str

    rows_N3L: np.ndarray
    """This rank's rows, int32; N is a multiple of the local batch size, the same on each rank."""

    num_documents: int
    """Of the whole set, as the counts that follow; without those that are empty."""

    num_labels: int
    """Tokens that are predicted: all but the first of each document, BOS where it begins so; EOS
    among them. With data.long_documents = "truncate" none beyond a document's first seq_len."""

    num_bytes: int | None
    """Of UTF-8 of the decoded text that the labels stand for, as TokenBytes counts them: EOS is no
    text, and of a document without BOS the first token's text is not predicted, nor counted. None
    if the tokenizer has no decoder."""

    def bits_per_byte(self, loss: float) -> float | None:
        """Bits of all labels, EOS among them, over `num_bytes`; loss: nats per label. None without
        bytes."""
        if not self.num_bytes:
            return None
        return loss * self.num_labels / math.log(2) / self.num_bytes

    def batches(self, batch_size: int) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """({"input", "positions"}, labels), each int64 [batch_size, L]; it divides N."""
        for first in range(0, len(self.rows_N3L), batch_size):
            rows_B3L = torch.from_numpy(self.rows_N3L[first : first + batch_size].astype(np.int64))
            input_BL, positions_BL, labels_BL = (x.contiguous() for x in rows_B3L.unbind(1))
            yield {"input": input_BL, "positions": positions_BL}, labels_BL


class ValidationSetLoader(BaseDataLoader):
    """A set's batches as TorchTitan's validator asks for them."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        held_out: ValidationSet
        """What it reads."""

        infinite: bool = False
        """TorchTitan's validator sets it; a set has its end either way."""

    def __init__(self, config: Config, *, local_batch_size: int, **kwargs: Any) -> None:
        self._set, self._batch_size = config.held_out, local_batch_size

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        return self._set.batches(self._batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a set is read whole."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


def load_validation_sets(
    data: DataConfig,
    sets: Sequence[ValidationSetConfig],
    tokenizer: HuggingFaceTokenizer,
    *,
    seq_len: int,
    dp_rank: int,
    dp_world_size: int,
    local_batch_size: int,
) -> list[ValidationSet]:
    """Read all sets. data: for bos, long_documents and on_error.

    Raises ValueError for a set that cannot be read or gives no label, and for a bad document,
    unless data.on_error is "skip": then the log has how many were passed over.
    """
    encoder = Encoder(tokenizer, data.bos)
    token_bytes = build_token_bytes(tokenizer.tokenizer, encoder)
    if token_bytes is None:
        logger.warning(
            "validation.sets have no bits_per_byte: the tokenizer has no decoder, which would tell "
            "how its tokens make up a text."
        )
    loaded = []
    for config, documents in zip(sets, load_set_documents(data, sets), strict=True):
        source = PackedSource(
            documents,
            encoder,
            Order(len(documents), num_streams=1, shuffle=False),
            seq_len=seq_len,
            num_epochs=1,
            truncates=data.long_documents == "truncate",
            skips_bad=data.on_error == "skip",
            fills_last=True,
        )
        found = _read(config.name, source, token_bytes, dp_rank, dp_world_size)
        num_steps = -(-found.num_rows // (dp_world_size * local_batch_size))
        filling_3L = source.build_filling(seq_len).astype(np.int32)
        missing = [filling_3L] * (num_steps * local_batch_size - len(found.own_rows))
        rows_N3L = np.stack([*found.own_rows, *missing])
        loaded.append(
            ValidationSet(
                name=config.name,
                rows_N3L=rows_N3L,
                num_documents=found.num_documents,
                num_labels=found.num_labels,
                num_bytes=None if token_bytes is None else found.num_bytes,
            )
        )
    return loaded


@dataclass(slots=True)
class _Found:
    """What one pass over a set finds."""

    own_rows: list[np.ndarray]
    num_rows: int = 0
    num_documents: int = 0
    num_labels: int = 0
    num_bytes: int = 0


def _read(
    name: str, source: PackedSource, token_bytes: TokenBytes | None, rank: int, num_ranks: int
) -> _Found:
    """Keeps the rows of this rank, and counts all."""
    found, stream = _Found([]), source.open_stream(0)
    num_skipped, complaint, continues = 0, None, False
    while (row := stream.next_row()) is not None:
        if found.num_rows % num_ranks == rank:
            found.own_rows.append(row.row_3L.astype(np.int32))
        found.num_rows += 1
        found.num_documents += len(row.documents) - continues
        continues = row.cursor.offset > 0
        found.num_labels += int((row.row_3L[2] != IGNORE_INDEX).sum())
        if token_bytes is not None:
            found.num_bytes += token_bytes.count(row.row_3L)
        num_skipped, complaint = num_skipped + row.num_skipped, row.complaint or complaint
    num_skipped, complaint = num_skipped + stream.num_skipped, stream.complaint or complaint
    if found.num_rows == 0:
        raise ValueError(
            f"{source.documents.option} ({name}) has no tokens to predict. Name other documents."
        )
    logger.info(
        f"Validation set {name}: {found.num_documents:,} documents, {found.num_rows:,} rows, "
        f"{found.num_labels:,} labels"
    )
    if num_skipped:
        logger.warning(
            f"Validation set {name}: skipped {num_skipped} bad documents. The last: {complaint}"
        )
    return found
