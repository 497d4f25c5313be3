"""The options of the data pipeline. Plain data: no torch."""

from dataclasses import dataclass, field

EMBEDDED_CORPUS = "embedded://python"
"""Source path that means: the running Python's own standard library."""

EMBEDDED_TOKENIZER = "embedded://python-bpe-8k"
"""Tokenizer path that means: a byte-level BPE trained once on the embedded corpus."""


@dataclass(kw_only=True, slots=True, frozen=True)
class SourceConfig:
    """One source of documents, a `[[data.sources]]` table."""

    path: str
    """A file, a glob (`**` recurses), or `embedded://python`. The ending tells the format: .jsonl,
    .parquet; any other file is one plain-text document."""

    text: str = "text"
    """JSONL and Parquet: the field that holds the document's text."""


@dataclass(kw_only=True, slots=True, frozen=True)
class DataConfig:
    """How documents become packed rows, the `[data]` table."""

    sources: list[SourceConfig] = field(default_factory=list)
    """Where the documents come from, at least one."""

    seed: int = 0
    """Seed of the document order, 0 to 2**32 - 1."""

    shuffle: bool = True
    """Whether each epoch visits the documents in a new random order."""

    num_streams: int = 64
    """Virtual streams that the documents are dealt to, at least 1 and at most the number of
    documents. Row i of the data is row i // num_streams of stream i % num_streams, on any number
    of ranks. The data-parallel degree must divide it."""

    num_epochs: int = -1
    """How often to go through the documents; -1 is without end. With a finite number the data end
    where the first stream does (use many documents per stream), and one pass of tokenization at
    the start finds the step at which all ranks stop together."""

    validation_fraction: float = 0.0
    """Share of the documents, chosen by a hash of their names, that training never sees and
    validation reads. At least 0, less than 1. The embedded tokenizer has not seen the documents
    held out by a share up to 0.1."""

    num_workers: int = 0
    """Worker processes per rank that read and tokenize ahead; the rows do not depend on it. They
    share the work evenly if it divides the rank's streams, num_streams / data-parallel degree."""

    def __post_init__(self) -> None:
        """Raise ValueError, one line, for a number out of range."""
        rules = {
            "seed": (0 <= self.seed < 2**32, "be from 0 to 2**32 - 1"),
            "num_streams": (self.num_streams >= 1, "be at least 1"),
            "num_epochs": (self.num_epochs == -1 or self.num_epochs >= 1, "be -1 or at least 1"),
            "validation_fraction": (
                0.0 <= self.validation_fraction < 1.0,
                "be at least 0 and less than 1",
            ),
            "num_workers": (self.num_workers >= 0, "be at least 0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                default = type(self).__dataclass_fields__[name].default
                raise ValueError(
                    f"data.{name} ({getattr(self, name)}) must {rule}. The default is {default}."
                )
