"""Sources, names and the held-out split."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.data import corpus
from recipes.data.config import DataConfig, SourceConfig, source_names
from recipes.data.documents import Documents, compute_fingerprint, load_documents
from recipes.data.sources import check_sources, find_files, is_validation
from tests.unit.data_samples import write_jsonl


def data_of(*paths: object, **options: object) -> DataConfig:
    sources = [SourceConfig(path=str(path)) for path in paths]
    return DataConfig(sources=sources, **{"num_streams": 1, **options})


def names_of(documents: Documents) -> list[str]:
    return [
        documents.name(block, key)
        for block in range(len(documents))
        for key, _ in documents.read(block)
    ]


def test_a_glob_recurses_and_its_names_do_not_depend_on_the_folder_before_it(
    tmp_path: Path,
) -> None:
    for place in ("here", "there"):
        write_jsonl(tmp_path / place / "b.jsonl", [{"text": "b"}])
        write_jsonl(tmp_path / place / "deep" / "er" / "a.jsonl", [{"text": "a"}])
        (tmp_path / place / "folder.jsonl").mkdir()
    names = [
        names_of(*load_documents(data_of(tmp_path / place / "**" / "*.jsonl"), "train"))
        for place in ("here", "there")
    ]
    assert names[0] == names[1] == ["b.jsonl@0", "deep/er/a.jsonl@0"]


def test_the_two_splits_are_disjoint_and_together_complete(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(2000)])
    data = data_of(path, validation_fraction=0.1)
    train, held_out = (names_of(*load_documents(data, split)) for split in ("train", "validation"))
    assert sorted(train + held_out) == sorted(names_of(*load_documents(data_of(path), "train")))
    assert 150 < len(held_out) < 250
    assert all(is_validation(name, 0.1) for name in held_out)


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
        ("s3://bucket/a", "data.sources[0].path (s3://bucket/a) is not a known source. Give a"),
        ("hf://", "data.sources[0].path (hf://) is not a known source. Give a"),
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


def test_the_checks_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, recipes.data.sources, recipes.data.tokenizer; "
        "print({'torch', 'numpy', 'pyarrow', 'tokenizers'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert output.strip() == b"set()"


def test_the_validation_split_holds_the_sources_one_after_another(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": str(i)} for i in range(100)])
    data = data_of(tmp_path / "b.jsonl", tmp_path / "a.jsonl", validation_fraction=0.2)
    (validation,) = load_documents(data, "validation")
    files = [name[0] for name in names_of(validation)]
    assert files == sorted(files, reverse=True) and {*files} == {"a", "b"}
    assert [documents.option for documents in load_documents(data, "train")] == [
        "data.sources[0]",
        "data.sources[1]",
    ]


def test_a_split_with_too_few_documents_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}] * 3)
    with pytest.raises(ValueError, match=r"^data\.validation_fraction \(0\.0\) leaves no doc"):
        load_documents(data_of(path), "validation")
    with pytest.raises(ValueError, match=r"^data\.num_streams \(4\) must .*\[0\] \(3\)"):
        load_documents(data_of(path, num_streams=4), "train")
    (tmp_path / "blank.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"^data\.sources\[0\] has no documents\. Name"):
        load_documents(data_of(tmp_path / "blank.jsonl"), "train")


def test_sources_are_called_by_their_names_or_numbers() -> None:
    sources = [SourceConfig(path="a"), SourceConfig(path="b", name="code")]
    assert source_names(DataConfig(sources=sources)) == ["0", "code"]


def test_the_fingerprint_knows_files_and_options_but_not_where_the_files_lie(
    tmp_path: Path,
) -> None:
    def fingerprint(folder: str, **options: object) -> str:
        source = SourceConfig(path=str(tmp_path / folder / "*.jsonl"), **options)
        data = DataConfig(sources=[source], num_streams=1)
        return compute_fingerprint(data, load_documents(data, "train"))

    for folder in ("here", "there"):
        write_jsonl(tmp_path / folder / "a.jsonl", [{"text": "a"}] * 3)
    known = fingerprint("here")
    assert fingerprint("there") == fingerprint("here", name="else") == known
    others = [fingerprint("here", weight=2.0), fingerprint("here", limit=2)]
    write_jsonl(tmp_path / "here" / "b.jsonl", [{"text": "b"}])
    others.append(fingerprint("here"))
    assert len({known, *others}) == 4


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1),
        ("num_streams", 0),
        ("shuffle_buffer", 0),
        ("num_epochs", 0),
        ("validation_fraction", 1.0),
        ("num_workers", -1),
    ],
)
def test_a_number_out_of_range_is_an_error_that_names_it(option: str, value: float) -> None:
    with pytest.raises(ValueError) as error:
        DataConfig(**{option: value})
    assert str(error.value).startswith(f"data.{option} ({value}) must be ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.0}, "weight (0.0) must be a number greater than 0"),
        ({"weight": float("nan")}, "weight (nan) must be a number greater than 0"),
        ({"limit": 0}, "limit (0) must be at least 1"),
        ({"name": "my data"}, "name (my data) must consist of letters, digits"),
        ({"text": "body", "tokens": "ids"}, "text (body) must be left out, as data.sources[1]."),
        ({"text": "text", "tokens": "ids"}, "text (text) must be left out, as data.sources[1]."),
        ({"text": ""}, "text () must not be empty"),
        ({"tokens": ""}, "tokens () must not be empty"),
        ({"split": "test"}, "split (test) must be left out, as path does not begin hf://"),
        ({"subset": "en"}, "subset (en) must be left out, as path does not begin hf://"),
        ({"streaming": True}, "streaming (True) must be left out, as path does not begin hf://"),
    ],
)
def test_a_source_option_out_of_range_or_without_effect_is_an_error(
    options: dict, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        DataConfig(sources=[SourceConfig(path="a"), SourceConfig(path="b", **options)])
    assert str(error.value).startswith(f"data.sources[1].{message}")


def test_two_sources_of_one_name_are_an_error() -> None:
    source = SourceConfig(path="a", name="web")
    with pytest.raises(ValueError, match=r'^data\.sources: 2 sources are called "web"\. Give'):
        DataConfig(sources=[source, replace(source, path="b")])


def test_a_name_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    """Documents are named by it: in the log, in checkpoints and where they are held out."""
    (tmp_path / "caf\udce9.txt").write_text("a")
    (tmp_path / "caf\u00e9.txt").write_text("a")
    check_sources(DataConfig(sources=[SourceConfig(path=f"{tmp_path}/caf\u00e9.txt")]))
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.path .*caf\\udce9.txt.* not UTF-8"):
        check_sources(DataConfig(sources=[SourceConfig(path=f"{tmp_path}/*.txt")]))


def test_an_empty_path_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.path is empty\. Give a file"):
        find_files(DataConfig(sources=[SourceConfig(path="")]))
