"""The options of the data pipeline. Plain data: no torch."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from math import isfinite
from typing import Any, Literal

EMBEDDED_CORPUS = "embedded://python"
"""Source path that means: the running Python's own standard library."""

EMBEDDED_TOKENIZER = "embedded://python-bpe-8k"
"""Tokenizer path that means: a byte-level BPE trained once on the embedded corpus."""

HUB = "hf://"
"""Source paths that begin so are data sets of the Hugging Face hub."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DocumentsConfig:
    """Which documents, and which field of theirs: what every table that names data has."""

    path: str
    """A file, a glob (`**` recurses), `hf://owner/name` or `hf://owner/name@revision` of the
    Hugging Face hub (or of a folder in its layout, `hf://./folder`), or `embedded://python`. A file
    that several names or links lead to is there once. The ending tells a file's format, in upper or
    lower case: .jsonl, .ndjson, .jsonlines, .ldjson, .ndj, .jl and .json hold one JSON object a
    line, .parquet and .pq one document a row, .csv and .tsv one a row below a header; a file of any
    other ending is one plain-text document. Each but Parquet may be compressed, with a further
    ending .gz, .zst, .bz2 or .xz."""

    text: str | None = None
    """The field that holds a document's text, by default "text"; `data.text` is the field `text` of
    the field `data`, unless there is one of that very name. If given, a plain-text file is an
    error: only records have fields."""

    tokens: str | None = None
    """JSONL, Parquet, hub: the field that holds a document already tokenized, a list of token ids,
    by the tokenizer of this run. In place of `text`; nested like it."""

    limit: int | None = None
    """Use only its first so many documents, bad and held-out ones counted; all epochs use the
    same. At least 1."""

    split: str | None = None
    """Hub only: the split of the data set, by default "train"."""

    subset: str | None = None
    """Hub only: the data set's configuration, where it has several."""

    streaming: bool = False
    """Hub only: read over the network as documents are needed, instead of downloading everything
    first."""


@dataclass(kw_only=True, slots=True, frozen=True)
class SourceConfig(DocumentsConfig):
    """One source of documents, a `[[data.sources]]` table."""

    name: str | None = None
    """What log and TensorBoard call it; by default its number, from 0."""

    weight: float = 1.0
    """Its share of the training tokens, relative to the weights of the other sources. More than 0.
    Each row of a batch comes from one source, so the shares are exact whatever the documents'
    lengths. A source that ends begins again while others go on."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ValidationSetConfig(DocumentsConfig):
    """One held-out set, a `[[validation.sets]]` table: read whole at each validation, and apart
    from what training reads."""

    name: str
    """What console and TensorBoard call it: validation_metrics/<name>/loss and, where the tokenizer
    has a decoder, validation_metrics/<name>/bits_per_byte. Each set has its own."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DataConfig:
    """How documents become packed rows, the `[data]` table."""

    sources: list[SourceConfig] = field(default_factory=list)
    """Where the documents come from, at least one."""

    seed: int = 0
    """Seed of the document order, 0 to 2**32 - 1."""

    shuffle: bool = True
    """Whether each epoch visits the documents in a new random order."""

    shuffle_buffer: int = 256
    """How many documents that lie together a stream holds at once to shuffle them. Where in the
    data a stream reads is random anyway, and each stream reads somewhere else. At least 1."""

    num_streams: int = 64
    """Virtual streams that the documents are dealt to, at least 1 and at most the number of
    documents of each source. Row i of the data is row i // num_streams of stream i % num_streams,
    on any number of ranks. The data-parallel degree must divide it."""

    num_epochs: int = -1
    """How often to go through each source; -1 is without end. With a finite number the data end
    where the first stream of the first source does (use many documents per stream), and one pass
    of tokenization at the start finds the step at which all ranks stop together."""

    validation_fraction: float = 0.0
    """Share of the documents, chosen by a hash of their names, that training never sees and
    validation reads. At least 0, less than 1. The embedded tokenizer has not seen the documents
    held out by a share up to 0.1."""

    bos: Literal["auto", "always", "never"] = "auto"
    """Whether each document begins with BOS: auto as the tokenizer's own files say. It ends with
    EOS in any case. Neither is doubled where text or token ids have it already."""

    long_documents: Literal["continue", "truncate"] = "continue"
    """What becomes of a document of more than seq_len tokens: continue in the stream's next rows,
    each with positions from 0, or drop all but its first seq_len tokens. The label at a cut is the
    document's true next token either way."""

    on_error: Literal["raise", "skip"] = "raise"
    """What a document that cannot be used does, such as a line that is no JSON: end the run with
    an error that names file and line, or be skipped, counted and logged."""

    num_workers: int = 0
    """Worker processes per rank that read and tokenize ahead; the rows do not depend on it. They
    share the work evenly if it divides the rank's streams, num_streams / data-parallel degree."""

    def __post_init__(self) -> None:
        """Raise ValueError, one line, for a value out of range or without effect."""
        _check("data", self, "seed", 0 <= self.seed < 2**32, "be from 0 to 2**32 - 1")
        for name in ("shuffle_buffer", "num_streams"):
            _check("data", self, name, getattr(self, name) >= 1, "be at least 1")
        has_end = self.num_epochs == -1 or self.num_epochs >= 1
        _check("data", self, "num_epochs", has_end, "be -1 or at least 1")
        is_share = 0.0 <= self.validation_fraction < 1.0
        _check("data", self, "validation_fraction", is_share, "be at least 0 and less than 1")
        _check("data", self, "num_workers", self.num_workers >= 0, "be at least 0")
        for index, source in enumerate(self.sources):
            option = f"data.sources[{index}]"
            has_weight = isfinite(source.weight) and source.weight > 0
            _check(option, source, "weight", has_weight, "be a number greater than 0")
            _check_documents(option, source)
        _check_names("data.sources", source_names(self))


def source_names(data: DataConfig) -> list[str]:
    """What log and TensorBoard call each source."""
    return [
        str(index) if source.name is None else source.name
        for index, source in enumerate(data.sources)
    ]


def check_validation_sets(sets: Sequence[ValidationSetConfig]) -> None:
    """Raise ValueError, one line, for a value out of range or without effect, or a name twice."""
    for index, held_out in enumerate(sets):
        _check_documents(set_option(index), held_out)
    _check_names("validation.sets", [held_out.name for held_out in sets])


def set_option(index: int) -> str:
    """What error messages call a held-out set."""
    return f"validation.sets[{index}]"


def _check_names(table: str, names: Sequence[str]) -> None:
    _, _, kind = table.partition(".")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(
                f'{table}: {count} {kind} are called "{name}". Give each its own name.'
            )


def _check_documents(option: str, documents: SourceConfig | ValidationSetConfig) -> None:
    is_tag = documents.name is None or re.fullmatch(r"[\w.-]+", documents.name)
    _check(option, documents, "name", is_tag, "consist of letters, digits and . _ -")
    limit = documents.limit
    _check(option, documents, "limit", limit is None or limit >= 1, "be at least 1")
    for name in ("text", "tokens"):
        _check(option, documents, name, getattr(documents, name) != "", "not be empty")
    is_text = documents.tokens is None or documents.text is None
    _check(option, documents, "text", is_text, f"be left out, as {option}.tokens is given")
    if not documents.path.startswith(HUB):
        for name in ("split", "subset", "streaming"):
            is_default = not getattr(documents, name)
            _check(
                option, documents, name, is_default, f"be left out, as path does not begin {HUB}"
            )


def _check(table: str, config: Any, name: str, holds: object, rule: str) -> None:
    if not holds:
        default = type(config).__dataclass_fields__[name].default
        remedy = "Rename it." if default is MISSING else f"The default is {default}."
        raise ValueError(f"{table}.{name} ({getattr(config, name)}) must {rule}. {remedy}")
