"""The documents of a split: the blocks of its sources, without what the other split has.

Imports no torch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

from recipes.data.blocks import Block
from recipes.data.config import (
    HUB,
    DataConfig,
    DocumentsConfig,
    ValidationSetConfig,
    set_option,
)
from recipes.data.formats import load_blocks
from recipes.data.records import BadDocumentError, Value
from recipes.data.sources import SourceFile, find_files, find_set_files, is_validation

Split = Literal["train", "validation"]

_NUM_TRIED = 100
"""With data.on_error = "skip", one of so many first documents of a source must be good."""


class Documents:
    """The documents of one source, or several, in one split, block by block."""

    def __init__(
        self, option: str, blocks: Sequence[Block], has: Callable[[str], bool] | None = None
    ) -> None:
        """option: what error messages call the source. has: whether the split has the document of
        that name; None, it has all."""
        self.option = option
        self._blocks = blocks
        self._has = has

    def __len__(self) -> int:
        """Blocks."""
        return len(self._blocks)

    def read(self, block: int) -> Iterator[tuple[int, Any]]:
        """(key, document not yet parsed) of each document of the block that the split has."""
        source = self._blocks[block]
        try:
            for key, raw in source.read():
                if self._has is None or self._has(source.name(key)):
                    yield key, raw
        except OSError as error:
            raise self._unreadable(error) from error

    def parse(self, block: int, raw: Any) -> Value:
        """The document, as `read` yields it. Raises BadDocumentError."""
        if isinstance(raw, BadDocumentError):
            raise BadDocumentError(str(raw))  # anew: one raised again and again keeps every frame
        try:
            return self._blocks[block].parse(raw)
        except OSError as error:
            raise self._unreadable(error) from error

    def name(self, block: int, key: int) -> str:
        """The document's name, the same on every machine."""
        return self._blocks[block].name(key)

    def complain(self, block: int, key: int, error: BadDocumentError) -> ValueError:
        """The error, one line, that says where the document lies on this machine."""
        return ValueError(error.at(self._blocks[block].locate(key)))

    def check_first(self, num_documents: int) -> None:
        """Raise ValueError unless one of the first so many is good: a wrong field shows at once."""
        complaint: ValueError | None = None
        for block, key, raw in islice(self._read_all(), num_documents):
            try:
                self.parse(block, raw)
                return
            except BadDocumentError as error:
                complaint = complaint or self.complain(block, key, error)
        if complaint is not None:
            raise complaint

    def count(self, at_most: int) -> int:
        """The number of documents; reads no more than `at_most`."""
        return sum(1 for _ in islice(self._read_all(), at_most))

    def _read_all(self) -> Iterator[tuple[int, int, Any]]:
        for block in range(len(self)):
            for key, raw in self.read(block):
                yield block, key, raw

    def _unreadable(self, error: OSError) -> ValueError:
        return ValueError(f"{self.option}.path cannot be read: {' '.join(str(error).split())}")


def load_documents(data: DataConfig, split: Split) -> list[Documents]:
    """Index the sources; reads the first few documents, and as many as a source's limit.

    For training the documents of each source, for validation those of all sources in one. Raises
    ValueError if a source cannot be read, or the split has too few documents.
    """
    fraction, is_training = data.validation_fraction, split == "train"
    files, blocks = find_files(data), []
    for index, source in enumerate(data.sources):
        option = f"data.sources[{index}]"
        own_files = [file for file in files if file.source == index]
        blocks.append(_load_checked(option, source, own_files, data))

    # Not a closure: a worker process that is not forked gets a pickle of it.
    has = partial(_has, fraction=fraction, is_training=is_training)
    selection = has if fraction > 0 or not is_training else None
    if is_training:
        found = [
            Documents(f"data.sources[{index}]", source_blocks, selection)
            for index, source_blocks in enumerate(blocks)
        ]
    else:
        found = [Documents("data.sources", [*chain.from_iterable(blocks)], selection)]
    for documents in found:
        _check_count(documents, data, split)
    return found


def load_set_documents(data: DataConfig, sets: Sequence[ValidationSetConfig]) -> list[Documents]:
    """The documents of each held-out set. Indexes and reads as `load_documents` does; raises
    ValueError if a set cannot be read."""
    return [
        Documents(set_option(index), _load_checked(set_option(index), held_out, files, data))
        for index, (held_out, files) in enumerate(
            zip(sets, find_set_files(data, sets), strict=True)
        )
    ]


def _load_checked(
    option: str, source: DocumentsConfig, files: Sequence[SourceFile], data: DataConfig
) -> list[Block]:
    """The blocks, one of the first documents of which is good: a wrong field shows at once."""
    blocks = load_blocks(option, source, files, data)
    tried = 1 if data.on_error == "raise" else _NUM_TRIED
    Documents(option, blocks).check_first(tried)
    return blocks


def _has(name: str, fraction: float, is_training: bool) -> bool:
    return is_validation(name, fraction) != is_training


def _check_count(documents: Documents, data: DataConfig, split: Split) -> None:
    needed = data.num_streams if split == "train" else 1
    count = documents.count(needed)
    if count == 0 and data.validation_fraction == 0 and split == "train":
        raise ValueError(f"{documents.option} has no documents. Name other files.")
    if count == 0:
        remedy = "Lower" if split == "train" else "Raise"
        raise ValueError(
            f"data.validation_fraction ({data.validation_fraction}) leaves no document of "
            f"{documents.option} for {split}. {remedy} it or add documents."
        )
    if count < needed:
        raise ValueError(
            f"data.num_streams ({needed}) must be at most the number of documents of "
            f"{documents.option} ({count}). Lower it or add documents."
        )


def compute_fingerprint(data: DataConfig, documents: list[Documents]) -> str:
    """16 hex digits that other sources, files, fields, weights or limits would change."""
    parts: list[Any] = [(file.source, file.name, file.num_bytes) for file in find_files(data)]
    for source, found in zip(data.sources, documents, strict=True):
        options = asdict(source)
        del options["name"]
        options["text"] = source.text or "text"
        if not source.path.startswith(HUB):
            del options["path"]  # files may move
        parts.append((sorted(options.items()), len(found)))
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
