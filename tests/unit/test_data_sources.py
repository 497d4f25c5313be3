"""Sources, formats, names and the held-out split."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recipes.data import corpus
from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import Documents, load_documents
from recipes.data.sources import check_sources, find_files, is_validation


def data_of(*paths: object, text: str = "text", **options: object) -> DataConfig:
    sources = [SourceConfig(path=str(path), text=text) for path in paths]
    return DataConfig(sources=sources, **options)


def texts_of(documents: Documents) -> list[str]:
    return [documents.text(index) for index in range(len(documents))]


def names_of(documents: Documents) -> list[str]:
    return [documents.name(index) for index in range(len(documents))]


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_jsonl_documents_are_its_lines_that_are_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        '{"text": "one"}\r\n\n  \n{"text": "zw\u00f6lf", "id": 2}\n{"text": null}'.encode()
    )
    documents = load_documents(data_of(path), "train")
    assert texts_of(documents) == ["one", "zw\u00f6lf", ""]
    assert names_of(documents) == ["a.jsonl:1", "a.jsonl:4", "a.jsonl:5"]


def test_parquet_documents_are_its_rows_across_row_groups(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    texts = [f"row {i}" for i in range(25)] + [None]
    table = pyarrow.table({"id": list(range(26)), "body": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    documents = load_documents(data_of(tmp_path / "a.parquet", text="body"), "train")
    assert texts_of(documents) == [*texts[:-1], ""]
    assert names_of(documents)[-1] == "a.parquet:26"
    assert documents.blocks().tolist() == [i // 10 for i in range(26)]


def test_any_other_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# a\n\nb\u00e9\n", encoding="utf-8")
    assert texts_of(load_documents(data_of(tmp_path / "notes.md"), "train")) == ["# a\n\nb\u00e9\n"]


def test_a_glob_recurses_and_its_names_do_not_depend_on_the_folder_before_it(
    tmp_path: Path,
) -> None:
    for place in ("here", "there"):
        write_jsonl(tmp_path / place / "b.jsonl", [{"text": "b"}])
        write_jsonl(tmp_path / place / "deep" / "er" / "a.jsonl", [{"text": "a"}])
        (tmp_path / place / "folder.jsonl").mkdir()
    names = [
        names_of(load_documents(data_of(tmp_path / place / "**" / "*.jsonl"), "train"))
        for place in ("here", "there")
    ]
    assert names[0] == names[1] == ["b.jsonl:1", "deep/er/a.jsonl:1"]


def test_documents_of_several_sources_follow_each_other_with_blocks_of_their_own(
    tmp_path: Path,
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "0"}, {"text": "1"}])
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "b.txt").write_text("2")
    paths = (tmp_path / "a.jsonl", tmp_path / "empty.jsonl", tmp_path / "b.txt")
    documents = load_documents(data_of(*paths), "train")
    assert texts_of(documents) == ["0", "1", "2"]
    assert documents.blocks().tolist() == [0, 1, 2]


def test_the_two_splits_are_disjoint_and_together_complete(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(2000)])
    data = data_of(path, validation_fraction=0.1)
    train, held_out = (load_documents(data, split) for split in ("train", "validation"))
    assert sorted(names_of(train) + names_of(held_out)) == sorted(
        names_of(load_documents(data_of(path), "train"))
    )
    assert 150 < len(held_out) < 250
    assert all(is_validation(name, 0.1) for name in names_of(held_out))


def test_the_split_is_fixed_for_all_time_and_nested_in_that_of_a_larger_fraction() -> None:
    names = [f"a.jsonl:{i}" for i in range(1, 40)]
    tenth = [name for name in names if is_validation(name, 0.1)]
    assert tenth == [f"a.jsonl:{i}" for i in (6, 7, 8, 13, 16, 29)]
    assert set(tenth) <= {name for name in names if is_validation(name, 0.3)}
    assert not any(is_validation(name, 0.0) for name in names)


def test_the_embedded_corpus_is_the_library_without_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ["abc.py", "json/decoder.py", "unittest/case.py"]
    dropped = [
        "test/test_abc.py",
        "lib2to3/tests/a.py",
        "idlelib/idle_test/a.py",
        "site-packages/numpy/a.py",
        "json/__pycache__/a.py",
        "_sysconfigdata__linux.py",
        "config-3.11-x86_64/python-config.py",
        "LICENSE.txt",
    ]
    for name in kept + dropped:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    monkeypatch.setattr(corpus, "stdlib_folder", lambda: tmp_path)
    data = data_of("embedded://python")
    assert [file.name for file in find_files(data)] == kept
    record = corpus.compute_record()
    assert (record.num_documents, record.num_bytes) == (3, sum(len(f"# {n}\n") for n in kept))
    (tmp_path / "abc.py").write_text("# ABC.py\n")
    assert corpus.compute_record().hash != record.hash


def test_a_python_without_py_files_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "stdlib_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"holds no \.py files \(a zipped Python\?\)\. Use a Py"):
        check_sources(data_of("embedded://python"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none/*.jsonl", r"data.sources[0].path (none/*.jsonl) matches no file. Give an existing"),
        ("none.txt", r"data.sources[0].path (none.txt) matches no file."),
        ("folder", "data.sources[0].path (folder) is a folder. Give a file or a glob such as"),
        ("hf://name", "data.sources[0].path (hf://name) is not a known source."),
    ],
)
def test_a_source_that_names_no_file_is_an_error(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        check_sources(data_of(path))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_no_source_and_a_file_named_twice_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.sources is empty\. Add"):
        check_sources(DataConfig())
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"^data\.sources\[1\]\.path .* data\.sources\[0\] has al"):
        check_sources(data_of(path, tmp_path / "*.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "data.sources[0].path: {path}:3 is not valid JSON (Expecting"),
        ("[1]", "data.sources[0].path: {path}:3 is not a JSON object. Write"),
        (
            '{"body": "x", "id": 1}',
            "data.sources[0].text (text) is not a field of {path}:3, which has: body, id. Name",
        ),
        ('{"text": 5}', "data.sources[0].text (text) must be a field with strings, but {path}:3 "),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n')
    documents = load_documents(data_of(path), "train")
    with pytest.raises(ValueError) as error:
        documents.text(1)
    assert str(error.value).startswith(message.replace("{path}", str(path)))
    assert "\n" not in str(error.value)


def test_a_wrong_field_name_shows_before_the_run(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    lines = write_jsonl(tmp_path / "a.jsonl", [{"body": "a"}])
    pq.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "a.parquet")
    for path in (lines, tmp_path / "a.parquet"):
        with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.text \(text\) is not a field"):
            load_documents(data_of(path), "train")


def test_files_of_another_format_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file\. Rename"):
        load_documents(data_of(tmp_path / "a.parquet"), "train")
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    documents = load_documents(data_of(tmp_path / "a.txt"), "train")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text \(byte 2\)\. Convert"):
        documents.text(0)


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"^data\.validation_fraction \(0\.0\) leaves no document"):
        load_documents(data_of(path), "validation")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"^data\.sources hold no documents"):
        load_documents(data_of(tmp_path / "empty.jsonl"), "train")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1),
        ("num_streams", 0),
        ("num_epochs", 0),
        ("validation_fraction", 1.0),
        ("num_workers", -1),
    ],
)
def test_a_number_out_of_range_is_an_error_that_names_it(option: str, value: float) -> None:
    with pytest.raises(ValueError) as error:
        DataConfig(**{option: value})
    assert str(error.value).startswith(f"data.{option} ({value}) must be ")


def test_the_checks_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, recipes.data.sources, recipes.data.tokenizer; "
        "print({'torch', 'numpy', 'pyarrow', 'tokenizers'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert output.strip() == b"set()"


def test_blocks_of_a_split_are_those_of_its_documents(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(100)])
    documents = load_documents(data_of(path, validation_fraction=0.2), "validation")
    numbers = [int(name.rpartition(":")[2]) - 1 for name in names_of(documents)]
    np.testing.assert_array_equal(documents.blocks(), numbers)
