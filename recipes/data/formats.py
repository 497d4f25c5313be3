"""From a source to its blocks, by the endings of its files. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from recipes.data.blocks import (
    BadBlock,
    Block,
    CompressedLinesBlock,
    LinesBlock,
    TextBlock,
    block_extent,
    load_row_groups,
)
from recipes.data.config import HUB, DataConfig, DocumentsConfig
from recipes.data.endings import read_ending
from recipes.data.hub import load_hub_blocks
from recipes.data.opening import empty_file
from recipes.data.records import BadDocumentError, Field, Value
from recipes.data.sources import SourceFile
from recipes.data.tables import load_table

_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = 2**12, 2**20


@dataclass(slots=True, frozen=True)
class _FirstDocuments:
    """The first `count` documents of a block."""

    block: Block
    count: int

    def read(self) -> Iterator[tuple[int, Any]]:
        return islice(self.block.read(), self.count)

    def parse(self, raw: Any) -> Value:
        return self.block.parse(raw)

    def name(self, key: int) -> str:
        return self.block.name(key)

    def locate(self, key: int) -> str:
        return self.block.locate(key)


def load_blocks(
    option: str, source: DocumentsConfig, files: Sequence[SourceFile], data: DataConfig
) -> list[Block]:
    """The source's blocks. `option` is what error messages call it.

    A file of records that has none, or is damaged as a whole, is a bad document. Raises ValueError
    for that, unless data.on_error is "skip", and for a hub data set that cannot be loaded.
    """
    field = Field(option, source.tokens or source.text or "text", source.tokens is not None)
    blocks: list[Block]
    if source.path.startswith(HUB):
        blocks = load_hub_blocks(source, field, data.num_streams)
    else:
        lines = sum(
            file.num_bytes for file in files if read_ending(file.path).format == "JSON lines"
        )
        extent = block_extent(lines, data.num_streams, _MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES)
        blocks = []
        for file in files:
            try:
                blocks += _load_file(file, field, extent)
            except BadDocumentError as error:
                if data.on_error == "raise":
                    raise ValueError(error.at(str(file.path))) from error
                blocks.append(BadBlock(file, error))
            except OSError as error:
                raise ValueError(f"{option}.path cannot be read: {error}") from error
    return blocks if source.limit is None else _take(blocks, source.limit)


def _load_file(file: SourceFile, field: Field, extent: int) -> Sequence[Block]:
    """Raises BadDocumentError, OSError."""
    format_, compression = read_ending(file.path)
    if format_ == "plain text":
        return [TextBlock(file)]
    if format_ == "Parquet":
        return load_row_groups(file, field)
    if file.num_bytes == 0:
        raise empty_file(file)
    if format_ in ("CSV", "TSV"):
        return [load_table(file, field, "," if format_ == "CSV" else "\t")]
    if compression is not None:
        return [CompressedLinesBlock(file, field)]
    return [
        LinesBlock(file, field, begin, min(begin + extent, file.num_bytes))
        for begin in range(0, file.num_bytes, extent)
    ]


def _take(blocks: Sequence[Block], limit: int) -> list[Block]:
    """The blocks of the first `limit` documents; reads as many."""
    taken: list[Block] = []
    for block in blocks:
        count = sum(1 for _ in islice(block.read(), limit))
        limit -= count
        if limit == 0:
            return [*taken, _FirstDocuments(block, count)]
        taken.append(block)
    return taken
