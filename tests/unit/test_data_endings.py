"""Endings: records are read as records or refused by name, never as raw text."""

import csv
import io
import json
import lzma
from pathlib import Path

import pytest

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import Documents, load_documents
from recipes.data.records import BadDocumentError
from recipes.data.sources import check_sources
from tests.unit.data_samples import write_compressed, write_parquet

TEXTS = ["one", 'tw"o,\tand\nmore', "", "zw\u00f6lf"]
TAB_TEXTS = ["one", '"tw"o, and more', "", "zw\u00f6lf"]
"""TSV has neither tabs nor line ends in a text, and quotes as they are."""


def load(path: object, **options: object) -> Documents:
    source = SourceConfig(path=str(path), **options)
    (documents,) = load_documents(DataConfig(sources=[source], num_streams=1), "train")
    return documents


def values_of(documents: Documents) -> list[object]:
    return [
        documents.parse(block, raw)
        for block in range(len(documents))
        for _, raw in documents.read(block)
    ]


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "content": text}) + "\n" for text in texts).encode()


def comma_table(texts: list[str]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerows([["id", "content"], *([str(i), text] for i, text in enumerate(texts))])
    return stream.getvalue().encode()


def tab_table(texts: list[str]) -> bytes:
    rows = zip(["id", 1, 2, 3, 4], texts, strict=True)
    return "".join(f"{i}\t{text}\r\n" for i, text in rows).encode()


RECORDS = {
    ".jsonl": json_lines(TEXTS),
    ".ndjson": json_lines(TEXTS),
    ".ndj": json_lines(TEXTS),
    ".ldjson": json_lines(TEXTS),
    ".jl": json_lines(TEXTS),
    ".jsonlines": json_lines(TEXTS),
    ".json": json_lines(TEXTS),
    ".csv": comma_table(TEXTS),
    ".tsv": tab_table(["content", *TAB_TEXTS]),
}


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("compression", ["", ".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz"])
@pytest.mark.parametrize("ending", RECORDS)
def test_records_are_read_as_records_in_any_case_and_compression(
    ending: str, compression: str, upper: bool, tmp_path: Path
) -> None:
    name = ending + compression
    path = tmp_path / f"a{name.upper() if upper else name}"
    write(path, RECORDS[ending], compression)
    assert values_of(load(path, text="content")) == (TAB_TEXTS if ending == ".tsv" else TEXTS)


def write(path: Path, content: bytes, compression: str) -> None:
    if compression == ".xz":
        path.write_bytes(lzma.compress(content))
    elif compression:
        short = {".gzip": ".gz", ".zstd": ".zst"}.get(compression, compression)
        write_compressed(path.with_name(f"draft{short}"), content).rename(path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["a.pq", "a.PARQUET", "a.Pq"])
def test_parquet_has_two_endings(name: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / name, {"content": TEXTS})
    assert values_of(load(tmp_path / name, text="content")) == TEXTS


def test_the_case_of_ndjson(tmp_path: Path) -> None:
    """4 files of 10 documents are 40 documents, not 4."""
    for part in range(4):
        lines = [{"content": f"{part}.{i}"} for i in range(10)]
        (tmp_path / f"{part}.ndjson").write_text("".join(json.dumps(x) + "\n" for x in lines))
    documents = load(tmp_path / "*.ndjson", text="content")
    assert values_of(documents) == [f"{part}.{i}" for part in range(4) for i in range(10)]


@pytest.mark.parametrize("option", ["text", "tokens"])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.py", "a.TXT.gz", "a.jsonl5", "a.data"])
def test_a_field_of_anything_else_is_an_error(option: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"content": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"content": "a"}\n')
    with pytest.raises(ValueError) as error:
        load(tmp_path / "*", **{option: "content"})
    assert str(error.value) == (
        f"data.sources[0].{option} (content) is a field of records, but {tmp_path / name} is plain "
        "text by its ending. Use JSONL, Parquet or CSV, or exclude the file."
    )


def test_text_that_is_given_means_records_even_if_it_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    assert values_of(load(tmp_path / "a.txt")) == ["words"]
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.text \(text\) is a field of recor"):
        load(tmp_path / "a.txt", text="text")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jsonl.lz4", "has the ending .lz4, which is not read. Decompress it, or use gzip"),
        ("a.jsonl.BR", "has the ending .br, which is not read. Decompress"),
        ("a.tar.gz", "has the ending .tar, which is not read. Unpack"),
        ("a.tgz", "has the ending .tgz, which is not read. Unpack"),
        ("a.ZIP", "has the ending .zip, which is not read. Unpack"),
        ("a.arrow", "has the ending .arrow, which is not read. Convert it to"),
        ("a.xlsx", "has the ending .xlsx, which is not read. Convert it to"),
        ("a.bin", "has the ending .bin, which is not read. Convert it to"),
        ("a.pdf", "has the ending .pdf, which is not read. Extract its text."),
        ("a.jsonl.gz.zst", "is compressed twice by its ending. Decompress it."),
        ("a.parquet.gz", "is a compressed Parquet file by its ending. Decompress it."),
        ("a.jsonl.part", "has .jsonl in its name but another ending. Rename it if it is complete."),
        ("a.jsonl~", "has .jsonl in its name but another ending. Rename it if it is complete."),
        ("a.PARQUET~", "has .parquet in its name but another ending. Rename it if it is complete."),
        ("a.NDJSON.1", "has .ndjson in its name but another ending. Rename it if it is complete."),
    ],
)
def test_endings_that_are_not_read_are_refused_by_name(
    name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"words")
    path = tmp_path / name
    with pytest.raises(ValueError) as error:
        check_sources(DataConfig(sources=[SourceConfig(path=str(path))]))
    assert str(error.value).startswith(
        f"data.sources[0].path ({path}) must match documents, but {path} {message}"
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz"])
def test_a_table_has_no_token_ids(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"ids\n1\n")
    with pytest.raises(ValueError, match=r"tokens \(ids\) is a field of records, but .* no lists"):
        load(tmp_path / name, tokens="ids")


def test_rows_of_a_table_have_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,id\r\n"a\nb",1\n\n"c,""d""",2\nNA,3')
    documents = load(path)
    found = [(documents.name(0, key), documents.parse(0, raw)) for key, raw in documents.read(0)]
    assert found == [("a.csv:2", "a\nb"), ("a.csv:5", 'c,"d"'), ("a.csv:6", "NA")]


FIELD, PATH = "data.sources[0].text (text) ", "data.sources[0].path: "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", PATH + "{path} holds no documents."),
        (b"body,id\na,1\n", FIELD + "is not a field of {path}, which has: body, id. Name the"),
        (b"text,text\na,b\n", FIELD + "is the name of 2 fields of {path}. Rename all but"),
        (b"text;id\na;b\n", FIELD + "is not a field of {path}, which has: text;id. Name"),
        (b"text,id\n", PATH + "{path} holds no documents."),
        (b"text,id\na\n", PATH + "{path}:2 has 1 fields, but the header 2. Correct or remove"),
        (b'text,id\n\na,"b\n', PATH + "{path}:3 and what follows is not readable (unexpected end"),
        (b'text,id\n"a"b,1\n', PATH + "{path}:2 and what follows is not readable ("),
        (b"text,id\n\xff,1\n", FIELD + "of {path}:2 is not Unicode text. Correct"),
        (b"\n\n", PATH + "{path} holds no documents."),
    ],
)
def test_a_bad_table_is_an_error_of_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(error.value).startswith(message.replace("{path}", str(path)))
    assert "\n" not in str(error.value)


def test_a_row_of_another_length_is_one_bad_document(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,id\na,1\nb\nc,3\n")
    source = SourceConfig(path=str(path))
    data = DataConfig(sources=[source], num_streams=1, on_error="skip")
    (documents,) = load_documents(data, "train")
    rows = [raw for _, raw in documents.read(0)]
    assert [rows[0], rows[2]] == ["a", "c"] and isinstance(rows[1], Exception)


@pytest.mark.parametrize("content", [b"words", b"", lzma.compress(b'{"text": "a"}\n')[:-9]])
def test_a_damaged_xz_file_is_an_error_of_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(content)
    expected = r"^data\.sources\[0\]\.path: .*xz (is damaged|is plain text|holds no)"
    with pytest.raises((ValueError, BadDocumentError), match=expected):
        values_of(load(path))
