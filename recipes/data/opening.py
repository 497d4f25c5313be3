"""Opens the files of sources, decompressed, and says what is wrong with one that cannot be read.

Memory: a Zstandard frame is read with a window of up to 128 MiB, the most that pyarrow allows.
Imports no torch.
"""

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from recipes.data.contents import HEAD_BYTES, Content, find_content, is_text
from recipes.data.endings import read_ending
from recipes.data.records import BadDocumentError
from recipes.data.sources import SourceFile

BUFFER_BYTES = 2**16

_XZ_MAGIC = b"\xfd7zXZ\0"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_ZSTD_WINDOW_MIB = 128
_BEYOND = (
    "incorrect header check", "unknown compression method",  # gzip
    "Unknown frame descriptor",  # zstd
    "no magic header",  # bz2
    "Input format not supported",  # xz
)  # fmt: skip
"""What decoders say where a frame, stream or member should begin and does not."""


def empty_file(file: SourceFile) -> BadDocumentError:
    """The complaint about a file of records that has none."""
    return BadDocumentError(
        f"{file.option}.path: {file.path} holds no documents. Remove or exclude the file."
    )


@contextmanager
def open_file(file: SourceFile) -> Iterator[io.BufferedReader]:
    """The file, decompressed. Raises BadDocumentError where it is damaged."""
    compression = read_ending(file.path).compression
    if compression is None:
        with file.path.open("rb") as plain:
            yield plain
        return
    if compression == "xz":
        with complaining_about(file), file.path.open("rb") as raw:
            yield io.BufferedReader(_XzReader(raw), BUFFER_BYTES)
        return
    import pyarrow

    with (
        complaining_about(file),
        pyarrow.input_stream(file.path, compression=compression) as stream,
    ):
        yield io.BufferedReader(stream, BUFFER_BYTES)


@contextmanager
def complaining_about(file: SourceFile) -> Iterator[None]:
    """Turn what decoders raise for a damaged file into BadDocumentError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, lzma.LZMAError, EOFError, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the medium, not the file
            raise
        raise BadDocumentError(f"{file.option}.path: {_describe(file, str(error))}") from error


def explain(file: SourceFile, error: BadDocumentError) -> BadDocumentError:
    """The error, or a better one if the file's content is not what its name says."""
    found = _look(file.path)
    return error if found is None else BadDocumentError(f"{file.option}.path: {found}")


def _describe(file: SourceFile, reason: str) -> str:
    """What is wrong with a file that its decoder refuses; one line."""
    path, ending = file.path, read_ending(file.path)
    expected = ending.compression or ending.format
    head = _read_head(path)
    content = find_content(head)
    if content is not None and content.kind != expected:
        return f"{path} is {content.what} by its content. {content.remedy}"
    if content is None and head and is_text(head):
        return f"{path} is plain text by its content, not {expected}. Rename the file."
    if "too much memory" in reason:
        return (
            f"{path} is packed with a window of {_read_window(head)}, and up to "
            f"{_MAX_ZSTD_WINDOW_MIB} MiB is read. Pack it anew: zstd -d --long=31 -c FILE | "
            "zstd -o NEW."
        )
    if "Dictionary mismatch" in reason:
        return f"{path} needs the dictionary that it was packed with. Pack it anew without."
    if content is not None and any(text in reason for text in _BEYOND):
        return (
            f"{path} goes on after its {expected} data with something else ({reason}). Remove "
            "that, or exclude the file."
        )
    return f"{path} is damaged ({reason}). Replace or exclude the file."


@lru_cache(1024)  # a file that is skipped line by line would be looked at as often
def _look(path: Path) -> str | None:
    """What the file is by its first bytes, packed and unpacked, if its name does not say so."""
    ending, head = read_ending(path), _read_head(path)
    content = find_content(head)
    if content is not None and content.kind != (ending.compression or ending.format):
        return f"{path} is {content.what} by its content. {content.remedy}"
    if ending.compression is not None and content is not None:
        inner = _look_inside(path)
        if inner is not None:
            return f"{path} is {inner.what} by its content, within the compression. Unpack it."
    return None


def _look_inside(path: Path) -> Content | None:
    file = SourceFile(path=path, name="", num_bytes=0, source=0, option="")
    with suppress(BadDocumentError), open_file(file) as stream:
        return find_content(stream.read(HEAD_BYTES))
    return None


def _read_head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def _read_window(head: bytes) -> str:
    """The window of a Zstandard file's first frame (RFC 8878, 3.1.1.1), as text."""
    size = 0
    if head.startswith(_ZSTD_MAGIC) and len(head) >= 18:
        descriptor = head[4]
        is_single_segment = descriptor & 0x20
        if is_single_segment:  # the window is the content
            begin = 5 + (0, 1, 2, 4)[descriptor & 3]
            width = (1, 2, 4, 8)[descriptor >> 6]
            size = int.from_bytes(head[begin : begin + width], "little")
        else:
            base = 1 << (10 + (head[5] >> 3))
            size = base + base // 8 * (head[5] & 7)
    size_mib = size // 2**20
    if size_mib <= _MAX_ZSTD_WINDOW_MIB:  # of a later frame
        return f"more than {_MAX_ZSTD_WINDOW_MIB} MiB"
    return f"{size_mib:,} MiB"


class _XzReader(io.RawIOBase):
    """The streams of an xz file, one after another, and nothing else: `lzma.open` ends without a
    word at bytes that are none."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        self._has_begun = False
        """Whether bytes of the present stream are read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while True:
            if self._decoder.eof:
                rest = self._skip_padding(self._decoder.unused_data)
                if not rest:
                    return 0
                if rest[: len(_XZ_MAGIC)] != _XZ_MAGIC[: len(rest)]:  # the decoder would wait
                    raise lzma.LZMAError("Input format not supported by decoder")
                self._decoder, self._has_begun = lzma.LZMADecompressor(lzma.FORMAT_XZ), True
            elif self._decoder.needs_input:
                rest = self._raw.read(BUFFER_BYTES)
                if not rest and not self._has_begun:
                    return 0
                if not rest:
                    raise EOFError("Truncated compressed stream")
                self._has_begun = True
            else:
                rest = b""
            content = self._decoder.decompress(rest, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)

    def _skip_padding(self, rest: bytes) -> bytes:
        """What follows the zeros between streams; empty at the end of the file."""
        while not (rest := rest.lstrip(b"\0")):
            rest = self._raw.read(BUFFER_BYTES)
            if not rest:
                break
        return rest
