"""What the ending of a file's name says of its format, in upper or lower case.

Imports neither torch nor numpy.
"""

from pathlib import Path
from typing import Literal, NamedTuple

Format = Literal["JSON lines", "Parquet", "CSV", "TSV", "plain text"]

COMPRESSIONS = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
}

_FORMATS: dict[str, Format] = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".jsonlines": "JSON lines",
    ".ldjson": "JSON lines",
    ".ndj": "JSON lines",
    ".jl": "JSON lines",
    ".json": "JSON lines",
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".csv": "CSV",
    ".tsv": "TSV",
}

_UNREADABLE = {
    **dict.fromkeys(
        (".7z", ".br", ".lz", ".lz4", ".lzma", ".lzo", ".rar", ".snappy", ".sz", ".z"),
        "Decompress it, or use gzip or Zstandard.",
    ),
    **dict.fromkeys(
        (".tar", ".tbz2", ".tgz", ".txz", ".tzst", ".zip"),
        "Unpack the archive.",
    ),
    **dict.fromkeys(
        (".arrow", ".avro", ".db", ".feather", ".h5", ".hdf5", ".ipc", ".lmdb", ".mds")
        + (".msgpack", ".orc", ".recordio", ".sqlite", ".sqlite3", ".tfrecord", ".warc")
        + (".bin", ".idx", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".safetensors")
        + (".ods", ".xls", ".xlsx"),
        "Convert it to JSON lines or Parquet.",
    ),
    **dict.fromkeys(
        (".doc", ".docx", ".epub", ".odt", ".pdf", ".ppt", ".pptx", ".rtf"),
        "Extract its text.",
    ),
}
"""Endings that are not read, each with the remedy."""

_RECORDS_BEFORE = frozenset({".jsonl", ".ndjson", ".jsonlines", ".parquet", ".pq"})
"""A name such as a.jsonl.part or a.parquet~ is of records too, but perhaps not of all."""


class Ending(NamedTuple):
    """What a file is by its name."""

    format: Format
    compression: str | None


def read_ending(path: Path) -> Ending:
    """What the file is by its name. Raises ValueError, with the remedy, where it cannot be read."""
    *earlier, last = ["", *(suffix.lower() for suffix in path.suffixes)]
    compression = COMPRESSIONS.get(last)
    if compression is not None:
        *earlier, last = earlier or [""]
        if last in COMPRESSIONS:
            raise ValueError("is compressed twice by its ending. Decompress it.")
    if last in _UNREADABLE:
        raise ValueError(f"has the ending {last}, which is not read. {_UNREADABLE[last]}")
    format_ = _FORMATS.get(last, "plain text")
    if format_ == "Parquet" and compression is not None:
        raise ValueError("is a compressed Parquet file by its ending. Decompress it.")
    before = _RECORDS_BEFORE.intersection([*earlier, last.rstrip("~")])
    unknown = format_ == "plain text" and sorted(before)
    if unknown:
        raise ValueError(
            f"has {unknown[0]} in its name but another ending. Rename it if it is complete."
        )
    return Ending(format_, compression)


def check_field(path: Path, tokens: str | None, text: str | None) -> None:
    """Raise ValueError, with the remedy, if the file cannot have the field that the source names:
    only records have fields."""
    format_ = read_ending(path).format
    if tokens is not None and format_ in ("CSV", "TSV"):
        raise ValueError(f"is {format_} by its ending, which has no lists. Use JSONL or Parquet.")
    if format_ == "plain text" and (tokens is not None or text is not None):
        raise ValueError(
            "is plain text by its ending. Use JSONL, Parquet or CSV, or exclude the file."
        )


def strip_compression(name: str) -> str:
    """The name without the ending of a compression."""
    path = Path(name)
    return name[: -len(path.suffix)] if path.suffix.lower() in COMPRESSIONS else name
