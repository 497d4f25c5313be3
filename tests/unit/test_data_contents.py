"""Hostile files: each works, or says in one line what it is."""

import bz2
import gzip
import io
import json
import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import load_documents
from recipes.data.records import BadDocumentError

LINES = b'{"text": "alpha"}\n{"text": "beta"}\n'
PATH = "data.sources[0].path: {path} "


def read(path: Path, content: bytes, **options: Any) -> list[Any]:
    """The documents of a file, in order; of a bad one its complaint."""
    path.write_bytes(content)
    data = DataConfig(sources=[SourceConfig(path=str(path), **options)], num_streams=1)
    try:
        (documents,) = load_documents(data, "train")
    except ValueError as error:
        return [error]
    found: list[Any] = []
    for block in range(len(documents)):
        for key, raw in documents.read(block):
            try:
                value = documents.parse(block, raw)
                found.append(value.tolist() if isinstance(value, np.ndarray) else value)
            except BadDocumentError as error:
                found.append(documents.complain(block, key, error))
    return found


def complaint(path: Path, content: bytes, **options: Any) -> str:
    """Of the one bad document of a file, the last."""
    *good, error = read(path, content, **options)
    assert isinstance(error, ValueError) and not any(isinstance(e, ValueError) for e in good)
    assert "\n" not in str(error) and str(error).endswith(".")
    return str(error)


def compress(content: bytes, compression: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.output_stream(sink, compression=compression) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def write_columns(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


def archive(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.jsonl", content)
    return stream.getvalue()


PACKED = {
    "gz": gzip.compress(LINES),
    "zst": compress(LINES, "zstd"),
    "bz2": bz2.compress(LINES),
    "xz": lzma.compress(LINES),
}
OTHERS = {
    "gzip-compressed by its content. Let its name end in .gz.": PACKED["gz"],
    "Zstandard-compressed by its content. Let its name end in .zst.": PACKED["zst"],
    "bzip2-compressed by its content. Let its name end in .bz2.": PACKED["bz2"],
    "xz-compressed by its content. Let its name end in .xz.": PACKED["xz"],
    "LZ4-compressed by its content. Decompress it": compress(LINES, "lz4"),
    "a zip archive, or an office file by its content. Unpack": archive(LINES),
    "Parquet by its content. Let its name end in .parquet.": write_columns(text=["a"]),
    "a tar archive by its content": b"a.txt" + bytes(252) + b"ustar\0" + bytes(300),
    "an Arrow file by its content. Convert": b"ARROW1\0\0abcde",
    "a NumPy array by its content": b"\x93NUMPY\x01\0v\0",
    "an SQLite database by its content": b"SQLite format 3\0" + bytes(90),
    "a PDF file by its content. Extract": b"%PDF-1.4\n%\xe2\xe3\n",
    "a pointer of Git LFS, not the file by": b"version https://git-lfs.github.com/spec/v1\noid",
    "filled with zero bytes, as after a crash": bytes(1000),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
@pytest.mark.parametrize("message", OTHERS)
def test_a_file_that_is_not_what_its_name_says_is_named_by_what_it_is(
    tmp_path: Path, message: str, name: str
) -> None:
    path = tmp_path / name
    is_right = ("gzip" in message and ".gz" in name) or ("Parquet b" in message and "parq" in name)
    if is_right:
        assert read(path, OTHERS[message])[0] in ("a", "alpha")
    else:
        expected = PATH.format(path=path) + f"is {message}"
        assert complaint(path, OTHERS[message]).startswith(expected)


def test_an_html_page_is_a_text_but_no_records(tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><html>404</html>"
    assert read(tmp_path / "a.txt", page) == [page.decode()]
    for name in ("a.jsonl", "a.csv", "a.parquet", "a.jsonl.zst"):
        assert "is an HTML page by its content. Download" in complaint(tmp_path / name, page)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.tsv", "a.jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_wide_characters_are_named_with_and_without_a_byte_order_mark(
    tmp_path: Path, name: str, encoding: str
) -> None:
    text = LINES.decode() if "json" in name else "text\nalpha\nbeta\n"
    content = text.encode(encoding)
    error = complaint(tmp_path / name, gzip.compress(content) if ".gz" in name else content)
    assert f"{name} is {encoding[:6].upper()} text by its content" in error
    assert "Unpack it." in error if ".gz" in name else "iconv -f UTF-" in error


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.tsv"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, ending: str) -> None:
    content = {"a.jsonl": LINES, "a.txt": b"alpha"}.get(name, b"text\nalpha\n").decode()
    marked = content.encode("utf-8-sig")
    found = read(tmp_path / (name + ending), gzip.compress(marked) if ending else marked)
    assert found[0] == "alpha"


def test_a_byte_order_mark_alone_is_no_document(tmp_path: Path) -> None:
    assert "has no documents" in complaint(tmp_path / "a.jsonl", b"\xef\xbb\xbf\n")


# ------------------------------------------------------------------------ JSON


@pytest.mark.parametrize(
    "field", [b"9" * 5000, b"-" + b"9" * 5000, b"NaN", b"-Infinity", rb'"\ud800"', b"1e999"]
)
def test_a_field_that_nobody_reads_may_hold_what_it_likes(tmp_path: Path, field: bytes) -> None:
    line = b'{"text": "alpha", "n": ' + field + b', "m": {"n": 1, "n": 2}}\n'
    assert read(tmp_path / "a.jsonl", line) == ["alpha"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ' + b"9" * 5000 + b"}", "must be a field with strings, but"),
        (b'{"text": "a", "text": "b"}', "a.jsonl:1 has the field text more than once. Remove"),
        (b'{"text": "a", "n": ' + b"[" * 9000 + b"]" * 9000 + b"}", "is JSON nested too deeply"),
        (b'[{"text": "a"}, {"text": "b"}]', "is an array of JSON objects. Write one object a"),
        (b'[\n{"text": "a"},\n{"text": "b"}\n]', "An array of objects is not read: write one"),
        (b'{\n "text": "a"\n}', "An object must be one line: jq -c . writes it so."),
        (LINES.replace(b"\n", b"\r"), "Lines must end with a newline, not with a carriage return"),
        (b'{"text": "a\xff"}', "is not valid JSON ('utf-8' codec can't decode byte 0xff"),
    ],
)
def test_json_that_is_not_read_is_told_apart(tmp_path: Path, line: bytes, message: str) -> None:
    *_, error = read(tmp_path / "a.jsonl", line + b"\n")[:1]
    assert message in str(error) and "\n" not in str(error)


def test_of_fields_within_fields_the_one_on_the_way_must_be_there_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    once = b'{"other": {"text": 1, "text": 2}, "data": {"text": "alpha"}}\n'
    assert read(path, once, text="data.text") == ["alpha"]
    for line in (b'{"data": {"text": "a", "text": "b"}}', b'{"data": 1, "data": {"text": "a"}}'):
        assert "more than once" in complaint(path, line, text="data.text")


# ------------------------------------------------------------------------ compression


@pytest.mark.parametrize("ending", PACKED)
def test_parts_of_a_compressed_file_are_read_and_what_follows_them_told_apart(
    tmp_path: Path, ending: str
) -> None:
    path, packed = tmp_path / f"a.jsonl.{ending}", PACKED[ending]
    assert read(path, packed * 3) == ["alpha", "beta"] * 3
    assert f"{path} is damaged (Truncated " in complaint(path, packed[:-5])
    assert f"{path} is damaged (Truncated " in complaint(path, packed + packed[:-5])
    assert f"{path} goes on after its " in complaint(path, packed + b"more words")
    assert f"{path} is plain text by its content, not " in complaint(path, LINES)
    assert f"{path} holds no documents" in complaint(path, b"")


def test_the_zeros_between_and_after_streams_of_xz_are_no_data(tmp_path: Path) -> None:
    content = PACKED["xz"] + bytes(8) + PACKED["xz"] + bytes(2**16 + 4)
    assert read(tmp_path / "a.jsonl.xz", content) == ["alpha", "beta"] * 2


def test_an_xz_file_larger_than_any_buffer_is_read_whole(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    texts = [random.bytes(3000).hex() for _ in range(200)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    half = len(content) // 2
    packed = lzma.compress(content[:half]) + lzma.compress(content[half:])
    assert read(tmp_path / "a.jsonl.xz", packed) == texts


@pytest.mark.parametrize(
    ("frame", "window"),
    [
        (b"\x00\xa8", "2,048 MiB"),  # window descriptor, exponent 21
        (b"\x00\x89", "144 MiB"),  # exponent 17, mantissa 1
        (b"\xa0" + (2**30).to_bytes(4, "little"), "1,024 MiB"),  # single segment of so many bytes
    ],
)
def test_a_window_that_is_too_large_is_named_with_the_way_to_pack_anew(
    tmp_path: Path, frame: bytes, window: str
) -> None:
    content = b"\x28\xb5\x2f\xfd" + frame + bytes(20)
    error = complaint(tmp_path / "a.jsonl.zst", content)
    assert f"is packed with a window of {window}, and up to 128 MiB is read. Pack it anew" in error
    error = complaint(tmp_path / "a.jsonl.zst", PACKED["zst"] + content)
    assert "is packed with a window of more than 128 MiB" in error


def test_a_frame_that_needs_a_dictionary_is_no_damage(tmp_path: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd\x01\x58\x07" + bytes(30)  # a dictionary of one byte's number
    error = complaint(tmp_path / "a.jsonl.zst", frame)
    assert "a.jsonl.zst needs the dictionary that it was packed with. Pack it anew" in error


# ------------------------------------------------------------------------ token ids


def column(values: list[Any], kind: pyarrow.DataType) -> bytes:
    return write_columns(ids=pyarrow.array(values, pyarrow.list_(kind)))


@pytest.mark.parametrize("kind", ["uint64", "int8", "uint8", "int16", "uint32"])
def test_integers_of_any_width_are_token_ids(tmp_path: Path, kind: str) -> None:
    content = column([[1, 2], None, [100]], getattr(pyarrow, kind)())
    assert read(tmp_path / "a.parquet", content, tokens="ids") == [[1, 2], [], [100]]


def test_an_id_beyond_63_bits_is_named_by_its_true_value(tmp_path: Path) -> None:
    content = column([[1], [3, 2**64 - 1]], pyarrow.uint64())
    error = complaint(tmp_path / "a.parquet", content, tokens="ids")
    assert "a.parquet:2 has a number beyond 2**63 (18446744073709551615)." in error
    error = complaint(tmp_path / "a.jsonl", b'{"ids": [1, 18446744073709551615]}', tokens="ids")
    assert "a.jsonl:1 has a number beyond 2**63 (18446744073709551615)." in error


@pytest.mark.parametrize(
    "ids",
    [
        pyarrow.array([[1.0]]),
        pyarrow.array([[True]]),
        pyarrow.array([[[1]]]),
        pyarrow.array([1, 2]),
        pyarrow.array([["1"]]),
        pyarrow.array([[1, None]]),
        pyarrow.array([[1]], pyarrow.list_(pyarrow.decimal128(5, 0))),
    ],
)
def test_other_columns_are_no_token_ids(tmp_path: Path, ids: pyarrow.Array) -> None:
    *_, error = read(tmp_path / "a.parquet", write_columns(ids=ids), tokens="ids")[:1]
    assert "must be a field with lists of integers, but" in str(error)


def test_dictionaries_are_columns_like_others(tmp_path: Path) -> None:
    inner = pyarrow.array([5, 6, 5]).dictionary_encode()
    ids = pyarrow.ListArray.from_arrays([0, 2, 3], inner)
    assert read(tmp_path / "a.parquet", write_columns(ids=ids), tokens="ids") == [[5, 6], [5]]
    texts = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    assert read(tmp_path / "b.parquet", write_columns(text=texts)) == ["a", "b", "a"]


# ------------------------------------------------------------------------ tables


@pytest.mark.parametrize("ending", ['ends here"', '"ends" here', "ends here"])
def test_a_quote_in_tsv_is_a_character(tmp_path: Path, ending: str) -> None:
    texts = [f"row {i}" for i in range(40)]
    texts[5], texts[9], texts[11] = '"opens here', ending, '"all of it"'
    content = "id\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts))
    assert read(tmp_path / "a.tsv", content.encode()) == texts


@pytest.mark.parametrize("field", ['"say ""x"""', '"a\tb"', '"a\nb"', '""'])
def test_what_csv_would_quote_is_an_error_in_tsv(tmp_path: Path, field: str) -> None:
    content = f"id\ttext\n0\tplain\n1\t{field}\n2\tmore\n"
    bad = [d for d in read(tmp_path / "a.tsv", content.encode()) if isinstance(d, ValueError)]
    assert re.search(r"a\.tsv:[34] has", str(bad[0]))


def test_a_quote_that_swallows_the_rest_of_a_csv_is_named_by_its_row(tmp_path: Path) -> None:
    rows = "".join(f"row {i},{i}\n" for i in range(20))
    content = f'text,n\n{rows}"opens,20\n{rows}'.encode()
    *good, error = read(tmp_path / "a.csv", content)
    assert len(good) == 20 and "a.csv:22 and what follows is not readable" in str(error)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_end_as_any_system_ends_lines(tmp_path: Path, name: str, end: str) -> None:
    rows = [["text", "n"], ["a\0b", "1"], ["c\u2028d\x0b\x85", "2"], ["x" * 300_000, "3"]]
    separator = "," if name == "a.csv" else "\t"
    content = "".join(separator.join(row) + end for row in rows).encode()
    assert read(tmp_path / name, content) == [row[0] for row in rows[1:]]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_row_that_is_no_utf8_is_one_bad_document(tmp_path: Path, name: str) -> None:
    separator = b"," if name == "a.csv" else b"\t"
    content = b"text,n\na,1\n\xff,2\nb,\xff\n".replace(b",", separator)
    first, bad, last = read(tmp_path / name, content)
    assert (first, last) == ("a", "b") and f"{name}:3 is not Unicode text" in str(bad)
