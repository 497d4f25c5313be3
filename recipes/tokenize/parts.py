"""A part: a Parquet file with the token ids of some blocks of a source, a document a row.

A document's ids are those that it has in training, [BOS] tokens EOS, so a source with
`tokens = "input_ids"` gives the same: the encoder doubles neither. A part has its name only when it
is complete and has been read back. Imports no torch.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recipes.data.blocks import Block, load_row_groups
from recipes.data.documents import Documents
from recipes.data.encoder import Encoder
from recipes.data.records import BadDocumentError, Field
from recipes.data.sources import SourceFile

FIELD = "input_ids"
"""The column of token ids."""

UNFINISHED = ".tmp"
"""Ending of a part that is being written."""

_METADATA = b"nitp.tokenize"
_GROUP_DOCUMENTS = 256
"""Documents of a row group, the loader's unit of shuffling, unless its tokens are many."""
_GROUP_TOKENS = 2**22


class Count(NamedTuple):
    """What is in a part."""

    num_documents: int
    num_tokens: int
    """BOS and EOS among them."""
    num_bad: int
    """Documents passed over."""


@dataclass(slots=True, frozen=True)
class Part:
    """What one file is made of."""

    path: Path
    option: str
    """The source, such as `data.sources[0]`."""

    blocks: Sequence[Block]
    fingerprint: str
    """Changes with the documents and with what becomes of them."""

    skips_bad: bool
    """Whether a bad document is passed over, or an error."""


@dataclass(slots=True, frozen=True)
class Written:
    """A part that has just been made."""

    count: Count
    seconds: float
    """It took one process so long."""


def read_count(part: Part) -> Count | None:
    """What is in the part; None if it is not there, or damaged. Raises ValueError if the file is
    another's."""
    import pyarrow
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(part.path).metadata or {}
    except FileNotFoundError:
        return None
    except pyarrow.ArrowInvalid:
        return None
    record = json.loads(metadata.get(_METADATA, b"{}"))
    if record.get("fingerprint") != part.fingerprint:
        raise ValueError(
            f"--output: {part.path} was made of other documents, by another tokenizer or with "
            "other options. Name another folder, or remove it."
        )
    return Count(*record["count"])


def write_part(part: Part, encoder: Encoder) -> Written:
    """Tokenize the part's documents, and read them back as training does.

    Without documents there is no file: the loader takes an empty one for a mistake. Raises
    ValueError for a bad document, unless skipped, and OSError if the file cannot be written or is
    not what was written.
    """
    begin = time.perf_counter()
    unfinished = part.path.with_name(part.path.name + UNFINISHED)
    count, written = _write(unfinished, part, encoder)
    if count.num_documents == 0:
        unfinished.unlink()
        return Written(count, time.perf_counter() - begin)
    if _hash(_read_back(unfinished, part.option, encoder)) != written:
        raise OSError(f"{unfinished} does not hold what was written to it. Check the disk.")
    with unfinished.open("rb+") as stream:
        os.fsync(stream.fileno())
    unfinished.rename(part.path)
    return Written(count, time.perf_counter() - begin)


def _write(path: Path, part: Part, encoder: Encoder) -> tuple[Count, str]:
    """Write the file; what is in it, and a hash of the ids."""
    import pyarrow
    import pyarrow.parquet as pq

    schema = pyarrow.schema([(FIELD, pyarrow.list_(pyarrow.int32()))])
    bad: list[str] = []
    digest, num_documents, num_tokens = _Digest(), 0, 0
    # Of a column of ids a dictionary is as large as the column.
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for group in _group(_encode(part, encoder, bad)):
            ends = np.cumsum([0, *map(len, group)])
            ids = pyarrow.array(np.concatenate(group).astype(np.int32))
            column = pyarrow.ListArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), ids)
            writer.write_table(pyarrow.table([column], schema))
            digest.update(group)
            num_documents += len(group)
            num_tokens += int(ends[-1])
        count = Count(num_documents, num_tokens, len(bad))
        record = {"fingerprint": part.fingerprint, "count": count}
        writer.add_key_value_metadata({_METADATA: json.dumps(record)})
    return count, digest.hexdigest()


def _encode(part: Part, encoder: Encoder, bad: list[str]) -> Iterator[np.ndarray]:
    """Each document's ids, int64 [T]; of those passed over, the complaints go to `bad`."""
    documents = Documents(part.option, part.blocks)
    for block in range(len(documents)):
        for key, raw in documents.read(block):
            try:
                yield encoder.encode(documents.parse(block, raw))
            except BadDocumentError as error:
                if not part.skips_bad:
                    raise documents.complain(block, key, error) from error
                bad.append(error.at(documents.name(block, key)))


def _group(documents: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    group: list[np.ndarray] = []
    for tokens in documents:
        group.append(tokens)
        if len(group) == _GROUP_DOCUMENTS or sum(map(len, group)) >= _GROUP_TOKENS:
            yield group
            group = []
    if group:
        yield group


def _read_back(path: Path, option: str, encoder: Encoder) -> Iterator[np.ndarray]:
    """Each document's ids as a run with `tokens = "input_ids"` has them."""
    size = path.stat().st_size
    file = SourceFile(path=path, name=path.name, num_bytes=size, source=0, option=option)
    blocks = load_row_groups(file, Field(option, FIELD, is_tokens=True))
    documents = Documents(option, blocks)
    for block in range(len(documents)):
        for _, raw in documents.read(block):
            yield encoder.encode(documents.parse(block, raw))


class _Digest:
    """A hash of documents, by what their ids are and where each ends."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, documents: Sequence[np.ndarray]) -> None:
        for tokens in documents:
            self._hash.update(len(tokens).to_bytes(8))
            self._hash.update(tokens.tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _hash(documents: Iterator[np.ndarray]) -> str:
    digest = _Digest()
    for tokens in documents:
        digest.update([tokens])
    return digest.hexdigest()
