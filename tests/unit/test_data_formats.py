"""Formats: which documents a file or a hub data set holds, and under which names."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import Documents, load_documents
from recipes.data.formats import load_blocks
from recipes.data.sources import find_files
from tests.unit.data_samples import write_compressed, write_jsonl, write_parquet


def load(path: object, num_streams: int = 1, **options: Any) -> Documents:
    """The only source's documents."""
    source = SourceConfig(path=str(path), **options)
    data = DataConfig(sources=[source], num_streams=num_streams)
    (documents,) = load_documents(data, "train")
    return documents


def names_and_values(documents: Documents) -> list[tuple[str, Any]]:
    found = []
    for block in range(len(documents)):
        for key, raw in documents.read(block):
            value = documents.parse(block, raw)
            if isinstance(value, np.ndarray):
                assert value.dtype == np.int64
                value = value.tolist()
            found.append((documents.name(block, key), value))
    return found


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the hub's layout: 3 training files of 5 documents, a test file of one."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "corpus"
    for file in range(3):
        records = [{"text": f"{file}.{i}", "ids": [file, i]} for i in range(5)]
        write_jsonl(folder / f"train-{file}.jsonl", records)
    write_jsonl(folder / "test.jsonl", [{"text": "a test", "ids": []}])
    return folder


def test_json_lines_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        '{"text": "one"}\r\n\n  \n{"text": "zw\u00f6lf", "id": 2}\n{"text": null}'.encode()
    )
    documents = load(path)
    assert names_and_values(documents) == [
        ("a.jsonl@0", "one"),
        ("a.jsonl@21", "zw\u00f6lf"),
        ("a.jsonl@49", ""),
    ]
    lines = [documents.complain(0, key, ValueErrorAt()).args[0] for key, _ in documents.read(0)]
    assert lines == [f"{path}:{number}" for number in (1, 4, 5)]


class ValueErrorAt:
    """Stands for a complaint that says nothing but where."""

    def at(self, place: str) -> str:
        return place


@pytest.mark.parametrize("end", ["\n", "", "\n\n"])
def test_each_json_line_lies_in_the_one_block_in_which_it_begins(tmp_path: Path, end: str) -> None:
    random = np.random.RandomState(0)
    texts = ["x" * length for length in [0, 9000, *random.randint(0, 900, 400), 20000, 1]]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + end)
    documents = load(path)
    assert len(documents) == -(-path.stat().st_size // 4096) > 40
    assert [value for _, value in names_and_values(documents)] == texts


def test_large_data_have_blocks_of_a_mebibyte_and_small_data_many_per_stream(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "x" * 1009}) + "\n"
    assert len(line) == 1022
    path.write_text(line * 2000)
    assert len(load(path, num_streams=1)) == 64
    assert len(load(path, num_streams=4)) == 256
    assert len(load(path, num_streams=64)) == -(-2000 * 1022 // 4096)
    path.write_text("")
    with path.open("r+b") as stream:
        stream.write(line.encode())
        stream.truncate(200 * 2**20)  # the rest is a hole in the file
    data = DataConfig(sources=[SourceConfig(path=str(path))], num_streams=1)
    blocks = load_blocks("data.sources[0]", data.sources[0], find_files(data), data)
    assert len(blocks) == 200


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("parts", [1, 2])
def test_compressed_files_hold_what_they_held_before(
    tmp_path: Path, ending: str, parts: int
) -> None:
    lines = b'{"text": "one"}\n\n{"text": "two"}\n'
    path = write_compressed(tmp_path / f"a.jsonl.{ending}", lines)
    path.write_bytes(path.read_bytes() * parts)  # both formats may be concatenated
    expected = [("1", "one"), ("3", "two"), ("4", "one"), ("6", "two")][: 2 * parts]
    assert names_and_values(load(path)) == [(f"{path.name}:{n}", text) for n, text in expected]
    text = write_compressed(tmp_path / f"notes.txt.{ending}", "b\u00e9\n".encode())
    assert names_and_values(load(text)) == [(text.name, "b\u00e9\n")]


def test_json_endings_mean_json_lines_too(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "c4.json.gz", b'{"text": "one"}\n')
    assert names_and_values(load(path)) == [("c4.json.gz:1", "one")]


def test_parquet_documents_are_its_rows_across_row_groups(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(25)] + [None]
    path = write_parquet(tmp_path / "a.parquet", {"id": [*range(26)], "body": texts})
    documents = load(path, text="body")
    assert len(documents) == 3
    assert names_and_values(documents) == [
        (f"a.parquet:{i + 1}", text or "") for i, text in enumerate(texts)
    ]


def test_any_other_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# a\n\nb\u00e9\n", encoding="utf-8")
    assert names_and_values(load(tmp_path / "notes.md")) == [("notes.md", "# a\n\nb\u00e9\n")]


def test_token_columns_are_read_from_each_format_of_records(tmp_path: Path) -> None:
    import pyarrow

    ids: list[list[int] | None] = [[5, 6, 7], [], [8], None]
    values = [[5, 6, 7], [], [8], []]
    lines = write_jsonl(tmp_path / "a.jsonl", [{"ids": tokens} for tokens in ids])
    assert [value for _, value in names_and_values(load(lines, tokens="ids"))] == values
    for number, kind in enumerate(
        [
            pyarrow.list_(pyarrow.int32()),
            pyarrow.large_list(pyarrow.uint16()),
            pyarrow.list_(pyarrow.int64()),
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        write_parquet(path, {"ids": pyarrow.array(ids, kind)}, row_group_size=3)
        assert [value for _, value in names_and_values(load(path, tokens="ids"))] == values


def test_a_glob_may_mix_formats(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "0"}, {"text": "1"}])
    write_compressed(tmp_path / "b.jsonl.zst", b'{"text": "2"}\n')
    write_parquet(tmp_path / "c.parquet", {"text": ["3", "4"]})
    (tmp_path / "d.txt").write_text("5")
    assert [value for _, value in names_and_values(load(tmp_path / "*"))] == [*"012345"]


@pytest.mark.parametrize("limit", [1, 2, 3, 9, 10, 11, 13, 99])
def test_a_limit_keeps_the_first_documents_of_the_source(tmp_path: Path, limit: int) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(3)])
    write_parquet(tmp_path / "b.parquet", {"text": [str(i) for i in range(3, 13)]}, 4)
    found = names_and_values(load(tmp_path / "*", limit=limit))
    assert [value for _, value in found] == [str(i) for i in range(min(limit, 13))]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_has_the_documents_of_its_split(hub_folder: Path, streaming: bool) -> None:
    documents = load(f"hf://{hub_folder}", streaming=streaming)
    found = names_and_values(documents)
    assert [value for _, value in found] == [f"{file}.{i}" for file in range(3) for i in range(5)]
    last = f"hf://{hub_folder}/3:5" if streaming else f"hf://{hub_folder}:15"
    assert found[-1][0] == last
    assert len({name for name, _ in found}) == 15
    assert len(documents) == (3 if streaming else 15)
    tests = load(f"hf://{hub_folder}", streaming=streaming, split="test")
    assert [value for _, value in names_and_values(tests)] == ["a test"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_has_tokens_and_a_limit_too(hub_folder: Path, streaming: bool) -> None:
    documents = load(f"hf://{hub_folder}", tokens="ids", streaming=streaming, limit=7)
    expected = [[file, i] for file in range(2) for i in range(5)][:7]
    assert [value for _, value in names_and_values(documents)] == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (
            "",
            {"split": "dev"},
            r"^data\.sources\[0\]\.path \(.*, split dev\) cannot be .*dev",
        ),
        ("", {"subset": "no"}, r"cannot be loaded: BuilderConfig 'no' not found"),
        ("/none", {}, r"^data\.sources\[0\]\.path \(.*none\) names no folder"),
        (
            "",
            {"text": "body"},
            r"^data\.sources\[0\]\.text \(body\) is not a .*: text, ids",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_an_error(
    hub_folder: Path, streaming: bool, path: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(f"hf://{hub_folder}{path}", streaming=streaming, **options)
    assert "\n" not in str(error.value)


class Intruder:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def write_script(folder: Path, trace: Path) -> None:
    write_jsonl(folder / "a.jsonl", [{"text": "a"}])
    (folder / f"{folder.name}.py").write_text(f"open({str(trace)!r}, 'w')")


def write_pickle(folder: Path, trace: Path) -> None:
    (folder / "train.pkl").write_bytes(pickle.dumps(Intruder(trace)))


def write_archive(folder: Path, trace: Path) -> None:
    content = pickle.dumps(Intruder(trace))
    with tarfile.open(folder / "train.tar", "w") as archive:
        entry = tarfile.TarInfo("0.pyd")  # which webdataset unpickles
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def write_card(folder: Path, trace: Path) -> None:
    write_jsonl(folder / "a.jsonl", [{"text": "a"}])
    tag = f"configs: !!python/object/apply:os.mkdir [{trace}]"
    (folder / "README.md").write_text(f"---\n{tag}\n---\n")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_script, r"cannot be loaded: Dataset scripts are no longer supported"),
        (write_pickle, r"cannot be loaded: No \(supported\) data files found"),
        (write_archive, r"^data\.sources\[0\]\.path \(.*\) has the format webdataset\. Use .* arr"),
        (write_card, r"cannot be loaded: could not determine a constructor for the tag"),
    ],
)
def test_neither_code_nor_pickles_of_a_data_set_run(
    write: Any, message: str, streaming: bool, tmp_path: Path
) -> None:
    folder, trace = tmp_path / "corpus", tmp_path / "trace"
    folder.mkdir()
    write(folder, trace)
    with pytest.raises(ValueError, match=message) as error:
        load(f"hf://{folder}", streaming=streaming)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_a_data_set_that_cannot_be_made_names_the_cause(tmp_path: Path) -> None:
    """Files whose fields have other types: the library's own error does not say why."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [{"text": "a"}])
    write_jsonl(folder / "b.jsonl", [{"text": ["b"]}])
    with pytest.raises(ValueError, match=r"cannot be loaded: .*: .*list<item: string>") as error:
        load(f"hf://{folder}")
    assert "\n" not in str(error.value)
