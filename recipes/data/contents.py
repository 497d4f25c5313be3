"""What a file is by its first bytes: for messages about one that is not what its name says.

Imports neither torch nor numpy.
"""

import codecs
from typing import NamedTuple

HEAD_BYTES = 512
"""What is looked at."""

_MIN_WIDE = 8
"""Bytes that tell UTF-16 by its zeros."""


class Content(NamedTuple):
    """What the first bytes say."""

    kind: str
    """One word: what a name can say too (gzip, zstd, bz2, xz, Parquet), or else."""

    what: str
    """For people."""

    remedy: str


def _rename(ending: str) -> str:
    return f"Let its name end in {ending}."


_CONVERT = "Convert it to JSON lines or Parquet."
_DECOMPRESS = "Decompress it, or use gzip or Zstandard."
_UNPACK = "Unpack the archive."
_ICONV = "Convert it to UTF-8: iconv -f {} -t UTF-8."

_BEGINNINGS: tuple[tuple[bytes, Content], ...] = (
    (b"\x1f\x8b", Content("gzip", "gzip-compressed", _rename(".gz"))),
    (b"\x28\xb5\x2f\xfd", Content("zstd", "Zstandard-compressed", _rename(".zst"))),
    # A frame that is skipped, with which pzstd begins.
    (b"\x50\x2a\x4d\x18", Content("zstd", "Zstandard-compressed", _rename(".zst"))),
    (b"BZh", Content("bz2", "bzip2-compressed", _rename(".bz2"))),
    (b"\xfd7zXZ\0", Content("xz", "xz-compressed", _rename(".xz"))),
    (b"\x04\x22\x4d\x18", Content("lz4", "LZ4-compressed", _DECOMPRESS)),
    (b"PK\x03\x04", Content("zip", "a zip archive, or an office file", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Content("7z", "a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", Content("rar", "a RAR archive", _UNPACK)),
    (b"PAR1", Content("Parquet", "Parquet", _rename(".parquet"))),
    (b"ARROW1", Content("Arrow", "an Arrow file", _CONVERT)),
    (b"\xff\xff\xff\xff", Content("Arrow", "an Arrow stream", _CONVERT)),
    (b"Obj\x01", Content("Avro", "Avro", _CONVERT)),
    (b"\x89HDF\r\n\x1a\n", Content("HDF5", "HDF5", _CONVERT)),
    (b"\x93NUMPY", Content("npy", "a NumPy array", _CONVERT)),
    (b"SQLite format 3\0", Content("SQLite", "an SQLite database", _CONVERT)),
    (b"%PDF-", Content("PDF", "a PDF file", "Extract its text.")),
    (b"\xff\xfe\0\0", Content("UTF-32", "UTF-32 text", _ICONV.format("UTF-32"))),
    (b"\0\0\xfe\xff", Content("UTF-32", "UTF-32 text", _ICONV.format("UTF-32"))),
    (b"\xff\xfe", Content("UTF-16", "UTF-16 text", _ICONV.format("UTF-16"))),
    (b"\xfe\xff", Content("UTF-16", "UTF-16 text", _ICONV.format("UTF-16"))),
    (
        b"version https://git-lfs.github.com/spec/",
        Content("LFS", "a pointer of Git LFS, not the file", "Fetch the file: git lfs pull."),
    ),
)  # fmt: skip
_TEXTUAL = frozenset({"Avro", "HTML", "Parquet", "bz2"})
"""What text may begin with, too."""


def find_content(head: bytes) -> Content | None:
    """What a file with these first bytes is; None if they are text, or nobody knows."""
    for beginning, content in _BEGINNINGS:
        if head.startswith(beginning):
            return content
    if head[257:262] == b"ustar":
        return Content("tar", "a tar archive", _UNPACK)
    if head and not head.strip(b"\0"):
        return Content("zeros", "filled with zero bytes, as after a crash", "Replace the file.")
    start = head.lstrip()[:9].lower()
    if start.startswith((b"<!doctype", b"<html")):
        return Content("HTML", "an HTML page", "Download the file again.")
    return _find_wide(head)


def find_binary(head: bytes) -> Content | None:
    """The same, but None for what text may begin with."""
    content = find_content(head)
    return None if content is None or content.kind in _TEXTUAL else content


def is_text(head: bytes) -> bool:
    """Whether these first bytes are UTF-8 without control characters."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character >= " " or character in "\t\n\r\f" for character in text)


def _find_wide(head: bytes) -> Content | None:
    """UTF-16 or UTF-32 without a byte order mark: most characters of most scripts' spaces, digits
    and signs, and all of ASCII, have zeros at the same places."""
    width = 4
    columns = [head[place::width] for place in range(width)]
    if len(head) < _MIN_WIDE:
        return None
    zeros = [column.count(0) / len(column) for column in columns]
    for order, (low, *rest) in (("LE", zeros), ("BE", zeros[::-1])):
        if low < 0.1 and min(rest[1:]) > 0.9:
            return Content("UTF-32", "UTF-32 text", _ICONV.format(f"UTF-32{order}"))
        if max(low, rest[1]) < 0.1 and min(rest[0], rest[2]) > 0.5:
            return Content("UTF-16", "UTF-16 text", _ICONV.format(f"UTF-16{order}"))
    return None
