"""Fields within fields: `data.text`, in every format of records that has them."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import load_documents
from tests.unit.data_samples import write_compressed, write_jsonl

RECORDS: list[dict[str, Any]] = [
    {"data": {"text": "one", "meta": {"ids": [1, 2]}}, "id": 1},
    {"data": {"text": None, "meta": None}, "id": 2},
    {"data": None, "id": 3},
    {"data": {"text": "four", "meta": {"ids": []}}, "id": 4},
]
TEXTS, IDS = ["one", "", "", "four"], [[1, 2], [], [], []]


def write_parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=3)
    return path


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    return write_jsonl(path, records)


def write_gzip(path: Path, records: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    return write_compressed(path, lines.encode())


WRITERS = [("a.jsonl", write_lines), ("a.jsonl.gz", write_gzip), ("a.parquet", write_parquet)]


def values_of(path: object, **options: Any) -> list[Any]:
    source = SourceConfig(path=str(path), **options)
    (documents,) = load_documents(DataConfig(sources=[source], num_streams=1), "train")
    values = [
        documents.parse(block, raw)
        for block in range(len(documents))
        for _, raw in documents.read(block)
    ]
    return [value if isinstance(value, str) else value.tolist() for value in values]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_dotted_name_is_a_field_within_fields_and_null_on_the_way_is_empty(
    name: str, write: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / name, RECORDS)
    assert values_of(path, text="data.text") == TEXTS
    assert values_of(path, tokens="data.meta.ids") == IDS


@pytest.mark.parametrize(("name", "write"), WRITERS)
@pytest.mark.parametrize("inner_first", [False, True])
def test_a_field_of_that_very_name_comes_first(
    inner_first: bool, name: str, write: Any, tmp_path: Path
) -> None:
    record = {"data.text": "literal", "data": {"text": "inner"}}
    if inner_first:
        record = dict(reversed(record.items()))
    path = write(tmp_path / name, [record])
    assert values_of(path, text="data.text") == ["literal"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_has_nested_fields_too(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl(tmp_path / "corpus" / "a.jsonl", RECORDS)
    path = f"hf://{tmp_path / 'corpus'}"
    assert values_of(path, text="data.text", streaming=streaming) == TEXTS
    assert values_of(path, tokens="data.meta.ids", streaming=streaming) == IDS
    with pytest.raises(ValueError, match=r"\(data\.no\) is not a field of .*: data\.text, data\."):
        values_of(path, text="data.no", streaming=streaming)


def test_a_table_has_dots_in_the_names_of_its_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,data.text\n1,one\n")
    assert values_of(tmp_path / "a.csv", text="data.text") == ["one"]


@pytest.mark.parametrize(("name", "write"), WRITERS)
@pytest.mark.parametrize("field", ["data.body", "text", "id.text", "data.text.more", "data.", "."])
def test_a_field_that_is_not_there_is_an_error_that_lists_those_within_fields(
    field: str, name: str, write: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / name, RECORDS)
    with pytest.raises(ValueError) as error:
        values_of(path, text=field)
    place = path if name.endswith("parquet") else f"{path}:1"
    assert str(error.value) == (
        f"data.sources[0].text ({field}) is not a field of {place}, which has: data.text, "
        "data.meta.ids, id. Name the field that holds the text."
    )


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"^data\.sources\[0\]\.text \(text\) is the name of 2 fie"
    ):
        values_of(tmp_path / "a.parquet")
