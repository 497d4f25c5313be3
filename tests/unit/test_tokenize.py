"""Documents to Parquet of token ids, and back into the loader."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import tomli
from tokenizers import Tokenizer

from recipes.config.parts import build_data
from recipes.config.rules import check_files, check_settings
from recipes.config.settings import resolve_settings
from recipes.data.config import DataConfig, SourceConfig, source_names
from recipes.data.documents import load_documents
from recipes.data.encoder import Encoder
from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.run.lock import RunLock
from recipes.tokenize import parts as parts_module
from recipes.tokenize import plan as plan_module
from recipes.tokenize.command import main
from recipes.tokenize.parts import Part, read_count, write_part
from recipes.tokenize.plan import format_sources, plan_parts
from tests.unit.data_samples import EOS, WordTokenizer, write_jsonl

FOLDER = Path(WordTokenizer.tokenizer_path)
TEXTS = ["ab", "", "c\0", "\0d\0\0", "\u4f60"]
IDS = [[97, 98, EOS], [EOS], [99, EOS], [EOS, 100, EOS], [0x4F60, EOS]]


def corpus(path: Path, texts: list[str], **options) -> DataConfig:
    write_jsonl(path, [{"text": text} for text in texts])
    return DataConfig(sources=[SourceConfig(path=str(path))], num_streams=1, **options)


def plan(data: DataConfig, output: Path) -> list[Part]:
    """The parts of its one source."""
    (parts,) = plan_parts(data, FOLDER, output)
    for part in parts:
        part.path.parent.mkdir(parents=True, exist_ok=True)
    return parts


def read(data: DataConfig, encoder: Encoder) -> list[list[int]]:
    """The ids of each document of training, as the loader has them, in the sources' order."""
    return [
        encoder.encode(documents.parse(block, raw)).tolist()
        for documents in load_documents(data, "train")
        for block in range(len(documents))
        for _, raw in documents.read(block)
    ]


def parse_sources(text: str, **options) -> DataConfig:
    sources = [SourceConfig(**source) for source in tomli.loads(text)["data"]["sources"]]
    return DataConfig(sources=sources, num_streams=1, **options)


def test_a_part_holds_the_ids_that_its_documents_have_in_training(tmp_path):
    data, output = corpus(tmp_path / "a.jsonl", TEXTS), tmp_path / "out"
    (part,) = plan(data, output)
    encoder = Encoder(WordTokenizer())
    assert write_part(part, encoder).count == (5, sum(map(len, IDS)), 0)
    assert pq.read_table(part.path)["input_ids"].to_pylist() == IDS
    assert read(data, encoder) == IDS
    assert read(parse_sources(format_sources(data, output)), encoder) == IDS
    assert read_count(part) == (5, sum(map(len, IDS)), 0)


def test_long_and_many_documents_are_in_row_groups_that_the_loader_can_shuffle(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(parts_module, "_GROUP_DOCUMENTS", 3)
    monkeypatch.setattr(parts_module, "_GROUP_TOKENS", 8)
    texts = ["a", "b", "c", "d" * 9, "e", "f", "g", "h"]
    (part,) = plan(corpus(tmp_path / "a.jsonl", texts), tmp_path / "out")
    write_part(part, Encoder(WordTokenizer()))
    file = pq.ParquetFile(part.path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [3, 1, 3, 1]
    assert pq.read_table(part.path)["input_ids"].to_pylist() == [
        [*map(ord, text), EOS] for text in texts
    ]


@pytest.mark.parametrize("written", ["always", "never"])
@pytest.mark.parametrize("trained", ["always", "never"])
def test_bos_is_there_as_training_says_however_the_parts_were_written(tmp_path, written, trained):
    folder = tmp_path / "tokenizer"
    save_bpe_tokenizer(folder, ["ab"], vocab_size=258)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    def load(bos):
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return Encoder(
            SimpleNamespace(tokenizer_path=str(folder), default_add_bos=False, tokenizer=backend),
            bos,
        )

    data, output = corpus(tmp_path / "a.jsonl", ["ab", "<s>ab", "b"], bos=written), tmp_path / "out"
    (part,) = plan(data, output)
    write_part(part, load(written))
    tokenized = parse_sources(format_sources(data, output), bos=trained)
    encoder = load(trained)
    a_b = [encoder.tokenize("ab").tolist(), encoder.tokenize("b").tolist()]
    bos = [encoder.bos_id] if trained == "always" else []
    expected = [[*bos, *ids, encoder.eos_id] for ids in (a_b[0], a_b[0], a_b[1])]
    assert read(tokenized, encoder) == expected


def test_a_complete_part_is_kept_and_a_damaged_one_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "_MAX_PARTS", 2)
    data, output = corpus(tmp_path / "a.jsonl", ["x" * 3000] * 8), tmp_path / "out"
    first, second = plan(data, output)
    assert (read_count(first), read_count(second)) == (None, None)
    encoder = Encoder(WordTokenizer())
    for part in (first, second):
        write_part(part, encoder)
    unfinished = second.path.with_name(second.path.name + ".tmp")
    second.path.rename(unfinished)
    assert plan(data, output) == [first, second]
    assert not unfinished.exists()
    count = read_count(first)
    assert count is not None and read_count(second) is None
    second.path.write_bytes(first.path.read_bytes()[:-9])  # the power failed
    assert read_count(second) is None
    assert count.num_documents + write_part(second, encoder).count.num_documents == 8


def test_a_file_that_is_not_what_was_written_gets_no_name(tmp_path, monkeypatch):
    (part,) = plan(corpus(tmp_path / "a.jsonl", TEXTS), tmp_path / "out")
    write = parts_module._write

    def write_one_id_wrong(path, *arguments):
        result = write(path, *arguments)
        ids = [*IDS[:-1], [0x4F61, EOS]]
        pq.write_table(pyarrow.table({"input_ids": ids}), path)
        return result

    monkeypatch.setattr(parts_module, "_write", write_one_id_wrong)
    with pytest.raises(OSError, match="does not hold what was written"):
        write_part(part, Encoder(WordTokenizer()))
    assert not part.path.exists()


@pytest.mark.parametrize("change", ["documents", "field", "bos", "num_streams", "tokenizer"])
def test_parts_of_something_else_are_refused(tmp_path, change):
    path, output, folder = tmp_path / "a.jsonl", tmp_path / "out", FOLDER
    options: dict = {}
    source = SourceConfig(path=str(path))
    write_jsonl(path, [{"text": text, "body": text} for text in TEXTS])
    (part,) = plan(DataConfig(sources=[source], num_streams=1), output)
    write_part(part, Encoder(WordTokenizer()))
    if change == "documents":
        write_jsonl(path, [{"text": text, "body": text} for text in [*TEXTS, "more"]])
    elif change == "field":
        source = SourceConfig(path=str(path), text="body")
    elif change == "tokenizer":
        folder = tmp_path / "other"
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
    else:
        options = {"bos": "never"} if change == "bos" else {"num_streams": 2}
    data = DataConfig(sources=[source], **{"num_streams": 1, **options})
    ((again,),) = plan_parts(data, folder, output)
    with pytest.raises(ValueError, match="made of other documents, by another tokenizer"):
        read_count(again)


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the hub's layout, `./hub` here: two training files of 3 documents, and a test
    file."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hub"
    for i in range(2):
        write_jsonl(folder / f"train-{i}.jsonl", [{"text": text * (i + 1)} for text in "abc"])
    write_jsonl(folder / "test.jsonl", [{"text": "d"}])
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_is_tokenized_from_what_a_worker_process_is_sent(hub_folder, streaming):
    source = SourceConfig(path="hf://./hub", streaming=streaming, limit=5)
    data, output = DataConfig(sources=[source], num_streams=1), hub_folder.parent / "out"
    parts = pickle.loads(pickle.dumps(plan(data, output)))
    encoder = Encoder(WordTokenizer())
    for part in parts:
        write_part(part, encoder)
    expected = [[97, EOS], [98, EOS], [99, EOS], [97, 97, EOS], [98, 98, EOS]]
    assert read(data, encoder) == expected
    assert read(parse_sources(format_sources(data, output)), encoder) == expected
    assert [read_count(part) for part in plan(data, output)] == [read_count(p) for p in parts]


@pytest.mark.parametrize("streaming", [False, True])
def test_parts_of_a_hub_data_set_whose_files_have_changed_are_refused(hub_folder, streaming):
    source = SourceConfig(path="hf://./hub", streaming=streaming)
    data, output = DataConfig(sources=[source], num_streams=1), hub_folder.parent / "out"
    for part in plan(data, output):
        write_part(part, Encoder(WordTokenizer()))
    write_jsonl(hub_folder / "train-1.jsonl", [{"text": text} for text in "xyz"])
    with pytest.raises(ValueError, match="made of other documents"):
        read_count(plan(data, output)[0])


def test_a_strange_file_among_the_parts_is_refused(tmp_path):
    data, output = corpus(tmp_path / "a.jsonl", TEXTS), tmp_path / "out"
    (part,) = plan(data, output)
    strange = part.path.with_name("part-00001.parquet")
    strange.touch()
    with pytest.raises(ValueError, match=r"part-00001\.parquet is no part of data\.sources\[0\]"):
        plan(data, output)


def test_a_bad_document_is_an_error_with_its_line_or_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    data = corpus(path, TEXTS)
    path.write_text('{"text": "a"}\n{"text": 3}\n{"text": "b"}\n')
    encoder = Encoder(WordTokenizer())
    (part,) = plan(data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"a\.jsonl:2 has int"):
        write_part(part, encoder)
    (part,) = plan(DataConfig(sources=data.sources, on_error="skip"), tmp_path / "skipping")
    assert write_part(part, encoder).count == (2, 4, 1)
    assert pq.read_table(part.path)["input_ids"].to_pylist() == [[97, EOS], [98, EOS]]


def test_a_part_without_documents_is_no_file(tmp_path, monkeypatch):
    """The loader takes a Parquet file without rows for a mistake."""
    data = corpus(tmp_path / "a.jsonl", ["x" * 20_000, "y"])  # longer than a block
    parts = plan(data, tmp_path / "out")
    counts = [write_part(part, Encoder(WordTokenizer())).count.num_documents for part in parts]
    assert 0 in counts and sum(counts) == 2
    assert [part.path.exists() for part in parts] == [count > 0 for count in counts]
    assert [*(tmp_path / "out").rglob("*.tmp")] == []
    assert np.sum([len(pq.read_table(p.path)) for p in parts if p.path.exists()]) == 2


def test_the_command_makes_what_is_missing_in_processes_and_prints_what_reads_it(
    tmp_path, monkeypatch, capsys
):
    folder, output = tmp_path / "tokenizer", tmp_path / "out"
    save_bpe_tokenizer(folder, ["some text, some text"], vocab_size=270)
    data = corpus(tmp_path / "a.jsonl", [f"text {i} " * 300 for i in range(16)])
    monkeypatch.setattr(plan_module, "_MAX_PARTS", 3)
    command = [
        "--job.config_file=train_configs/debug.toml", f"--tokenizer.path={folder}",
        f"--data.sources=[{{path='{data.sources[0].path}', name='a', weight=2.0}}]",
        "--data.num_streams=1", f"--output={output}", "--workers=2",
    ]  # fmt: skip
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "0 of 3 parts are there." in text and "per worker" in text and "| a | 16 | " in text
    files = sorted((output / "0-a").glob("*.parquet"))
    made = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "2 of 3 parts are there." in text
    again = {file: file.stat().st_mtime_ns for file in files}
    assert [again[file] == made[file] for file in files] == [True, False, True]

    tokenized = parse_sources(text[text.index("[[data.sources]]") :])
    assert (tokenized.sources[0].name, tokenized.sources[0].weight) == ("a", 2.0)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [[*backend.encode(f"text {i} " * 300).ids, EOS] for i in range(16)]
    encoder = Encoder(
        SimpleNamespace(tokenizer_path=str(folder), default_add_bos=False, tokenizer=backend)
    )
    assert read(tokenized, encoder) == expected

    assert main([*command, "--nitp.weight=2"]) == 2
    assert (
        "nitp.weight (2) has no effect here, where job.config_file, mo" in capsys.readouterr().err
    )
    with RunLock(str(output)):
        assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --output ({output}) belongs to another job: ")
    assert "job.dump_folder" not in error

    source = Path(data.sources[0].path)
    os.utime(source, (0, 0))
    assert main(command) == 0 and "3 of 3 parts are there." in capsys.readouterr().out
    source.write_text(source.read_text().replace("text 7 ", "text 8 ", 1))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --output ({output}) has token ids of other content: of data")
    assert f"{source} has the same size but other content. Name another folder" in error

    with open(data.sources[0].path, "a") as file:
        file.write("no JSON\n")
    command = [argument for argument in command if not argument.startswith("--output")]
    assert main([*command, f"--output={tmp_path / 'bad'}"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 1
    assert "a.jsonl:17 is not valid JSON" in errors[-1]


def test_the_public_mixture_is_the_papers_run_on_four_sources_of_the_hub(tmp_path):
    settings = resolve_settings("train_configs/mix.toml", [])
    save_bpe_tokenizer(tmp_path / "t", ["text"], vocab_size=258)
    settings.values["tokenizer"]["path"] = str(tmp_path / "t")
    check_settings(settings)
    check_files(settings)
    data = build_data(settings)
    assert source_names(data) == ["english", "chinese", "code", "mathematics"]
    assert sum(source.weight for source in data.sources) == pytest.approx(1.0)
    paper = resolve_settings("train_configs/nitp_dense_0.5b.toml", []).values
    for table in set(paper) - {"data", "job", "tokenizer"}:
        assert settings.values[table] == paper[table]
