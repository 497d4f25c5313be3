"""Blocks out of a data set of the Hugging Face hub, or of a folder in its layout.

The `datasets` library finds the files of a split, downloads or streams them, and decodes. Only its
plain formats are accepted: nothing is unpickled, and no code of a data set runs. Imports no torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from recipes.data.blocks import Block, block_extent
from recipes.data.config import DocumentsConfig
from recipes.data.records import PLACE, BadDocumentError, Field, Value
from recipes.data.splits import split_hub_path

PLAIN_FORMATS = ("arrow", "csv", "json", "parquet", "text")

_BATCH_ROWS = 256
_MAX_BLOCK_ROWS = 1000


@dataclass(slots=True, frozen=True)
class _HubBlock:
    path: str
    """The source's, as configured."""

    field: Field
    dataset: Any
    """A split, formatted as pyarrow tables."""

    def parse(self, raw: Any) -> Value:
        return self.field.parse_scalar(raw)

    def locate(self, key: int) -> str:
        return self.name(key)

    def name(self, key: int) -> str:
        return f"{self.path}:{key}"


@dataclass(slots=True, frozen=True)
class HubRowsBlock(_HubBlock):
    """Rows begin..end of a downloaded split; documents `path:row`, counted from 1."""

    begin: int
    end: int

    def read(self) -> Iterator[tuple[int, Any]]:
        for first in range(self.begin, self.end, _BATCH_ROWS):
            table = self.dataset[first : min(first + _BATCH_ROWS, self.end)]
            yield from enumerate(self.field.select_column(table), first + 1)


@dataclass(slots=True, frozen=True)
class HubShardBlock(_HubBlock):
    """A shard (as a rule a file) of a streamed split; documents `path/shard:row`, both from 1."""

    shard: int

    def read(self) -> Iterator[tuple[int, Any]]:
        shard = self.dataset.shard(num_shards=self.dataset.num_shards, index=self.shard)
        row = 1
        try:
            # Not `__iter__`: in a DataLoader's worker that yields only the worker's own part.
            for table in shard.iter(_BATCH_ROWS):
                self.field.check_schema(table.schema, PLACE)
                for scalar in self.field.select_column(table):
                    yield row, scalar
                    row += 1
        except BadDocumentError as error:
            yield row, error
        except ValueError as error:
            message = f"{self.field.option}.path: the shard of {PLACE} is damaged ({error})."
            yield row, BadDocumentError(f"{message} Replace it.")

    def name(self, key: int) -> str:
        return f"{self.path}/{self.shard + 1}:{key}"


def load_hub_blocks(source: DocumentsConfig, field: Field, num_streams: int) -> list[Block]:
    """The blocks of the source's split; downloads it unless it is to be streamed.

    Raises ValueError, one line, if there is no such split in a plain format.
    """
    split = source.split or "train"
    builder = _load_builder(field.option, source)
    with _complaining_about(field.option, source.path, split):
        if source.streaming:
            data: Any = builder.as_streaming_dataset(split=split).with_format("arrow")
            shards = range(data.num_shards)
            return [HubShardBlock(source.path, field, data, shard) for shard in shards]
        builder.download_and_prepare()
        data = builder.as_dataset(split=split).with_format("arrow")
    try:
        field.check_schema(data.features.arrow_schema, source.path)
    except BadDocumentError as error:
        raise ValueError(str(error)) from error
    extent = block_extent(len(data), num_streams, 1, _MAX_BLOCK_ROWS)
    return [
        HubRowsBlock(source.path, field, data, begin, min(begin + extent, len(data)))
        for begin in range(0, len(data), extent)
    ]


def hash_files(option: str, source: DocumentsConfig) -> str:
    """Changes with the data set's files: of the hub by their commit, of a folder by their times.

    Raises ValueError, as `load_hub_blocks`.
    """
    files_hash: str = _load_builder(option, source).hash
    return files_hash


def _load_builder(option: str, source: DocumentsConfig) -> Any:
    import datasets

    name, revision = split_hub_path(source.path)
    with _complaining_about(option, source.path, source.split or "train"):
        builder = datasets.load_dataset_builder(name, source.subset, revision=revision)
    _check_format(builder, option, source.path)
    return builder


@contextmanager
def _complaining_about(option: str, path: str, split: str) -> Iterator[None]:
    """Turn whatever `datasets` raises (OSError, RuntimeError, YAMLError, ...) into ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{option}.path ({path}, split {split}) cannot be loaded: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    """The error and what caused it, on one line: `datasets` says what happened, not why."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        if text and not any(text in other for other in texts):
            texts.append(text)
        cause = cause.__cause__
    return ": ".join(texts)


def _check_format(builder: Any, option: str, path: str) -> None:
    """Some of the library's other formats run code or unpickle."""
    package, _, name = type(builder).__module__.rpartition(".")
    if name not in PLAIN_FORMATS or not package.startswith("datasets.packaged_modules."):
        raise ValueError(
            f"{option}.path ({path}) has the format {name}. "
            f"Use a data set in one of {', '.join(PLAIN_FORMATS)}."
        )
