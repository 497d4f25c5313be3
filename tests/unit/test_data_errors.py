"""Bad data: each an error of one line that names file and line, or skipped and counted."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.loader import PackedDataLoader
from recipes.data.tokenizer import save_bpe_tokenizer
from tests.unit.data_samples import write_compressed, write_parquet

TEXT, IDS = {"text": "fine words"}, {"ids": [1, 2, 3]}
GOOD = 12
"""Documents before and after the bad one."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    save_bpe_tokenizer(folder, ["fine words"], vocab_size=270)
    return HuggingFaceTokenizer(tokenizer_path=str(folder))


def lines_with(bad: bytes, record: dict[str, Any] = TEXT, name: str = "a.jsonl") -> Any:
    """A file of JSON lines, the 13th of them bad, with a blank one before it."""

    def write(folder: Path) -> Path:
        good = (json.dumps(record).encode() + b"\n") * GOOD
        content = b"\n" + good + bad + b"\n" + good
        if name.endswith((".gz", ".zst")):
            return write_compressed(folder / name, content)
        (folder / name).write_bytes(content)
        return folder / name

    return write


def column_with(bad: Any, good: Any, kind: Any = None) -> Any:
    """A Parquet file whose 13th row is bad."""

    def write(folder: Path) -> Path:
        import pyarrow

        column = pyarrow.array([good] * GOOD + [bad] + [good] * GOOD, kind)
        return write_parquet(folder / "a.parquet", {"text": column, "ids": column})

    return write


def damaged(name: str, change: Callable[[bytes], bytes]) -> Any:
    """A good file, then changed."""

    def write(folder: Path) -> Path:
        # Text that does not compress, so that damage in the middle is in the middle.
        lines = b"".join(
            json.dumps({"text": f"{i * 7919 % 100003} {i * 104729 % 99991}"}).encode() + b"\n"
            for i in range(300)
        )
        if name.endswith(".parquet"):
            path = write_parquet(folder / name, {"text": ["fine words"] * 50}, row_group_size=50)
        else:
            path = write_compressed(folder / name, lines)
        path.write_bytes(change(path.read_bytes()))
        return path

    return write


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


def scramble(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(64) + content[middle + 64 :]


def scramble_pages(content: bytes) -> bytes:
    return content[:4] + bytes(40) + content[44:]


def empty(name: str) -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(b"")
        return folder / name

    return write


PATH, FIELD, TOKENS = "data.sources[0].path: ", "data.sources[0].text (text) ", "tokenizer.path: "
IDS_FIELD = "data.sources[0].tokens (ids) "
BAD = {
    "truncated JSON": (lines_with(b'{"text": "a'), PATH + "{path}:14 is not valid JSON (Invalid"),
    "no JSON": (lines_with(b"words"), PATH + "{path}:14 is not valid JSON (Expecting value"),
    "two records": (lines_with(b'{"text": "a"} {}'), PATH + "{path}:14 is not valid JSON (Extra"),
    "list": (lines_with(b"[1]"), PATH + "{path}:14 is not a JSON object. Write the line as"),
    "string": (lines_with(b'"text"'), PATH + "{path}:14 is not a JSON object."),
    "null": (lines_with(b"null"), PATH + "{path}:14 is not a JSON object."),
    "deep": (lines_with(b"[" * 100000), PATH + "{path}:14 is JSON nested too deeply"),
    "no UTF-8": (
        lines_with(b'{"text": "\xff"}'),
        PATH + "{path}:14 is not valid JSON ('utf-8' cod",
    ),
    "zeros": (lines_with(b"\0" * 100), PATH + "{path}:14 is not valid JSON ("),
    "half a surrogate pair": (
        lines_with(rb'{"text": "a\ud800"}'),
        FIELD + "of {path}:14 is not Unicode text. Correct",
    ),
    "no field": (
        lines_with(b'{"body": "a", "id": 1}'),
        FIELD + "is not a field of {path}:14, which has: body, id. Name the field",
    ),
    "empty record": (lines_with(b"{}"), FIELD + "is not a field of {path}:14, which has: none."),
    "number for text": (
        lines_with(b'{"text": 5}'),
        FIELD + "must be a field with strings, but {path}:14 has int. Name",
    ),
    "list for text": (lines_with(b'{"text": ["a"]}'), FIELD + "must be a field with strings, but"),
    "compressed line": (
        lines_with(b"{bad", name="a.jsonl.gz"),
        PATH + "{path}:14 is not valid JSON (Expecting property name",
    ),
    "string for tokens": (
        lines_with(b'{"ids": "1 2"}', IDS),
        IDS_FIELD + "must be a field with lists of integers, but {path}:14 has str. Name",
    ),
    "fractions": (
        lines_with(b'{"ids": [1, 2.0]}', IDS),
        IDS_FIELD + "must be a field with lists of integers, but {path}:14 has a list with float",
    ),
    "booleans": (lines_with(b'{"ids": [1, true]}', IDS), IDS_FIELD + "must be a field with lists"),
    "null within": (lines_with(b'{"ids": [1, null]}', IDS), IDS_FIELD + "must be a field with"),
    "huge token": (
        lines_with(b'{"ids": [99999999999999999999]}', IDS),
        IDS_FIELD
        + "must be a field with lists of integers, but {path}:14 has a number beyond 2**63 (99999",
    ),
    "token beyond the vocabulary": (
        lines_with(b'{"ids": [1, 265]}', IDS),
        TOKENS + "{path}:14 has the token id 265, but the tokenizer's are 0 to 264. Name",
    ),
    "negative token": (
        lines_with(b'{"ids": [-100]}', IDS),
        TOKENS + "{path}:14 has the token id -1",
    ),
    "column of numbers": (
        column_with(1, 1),
        FIELD + "must be a field with strings, but {path}:1 has int. Name the field",
    ),
    "column of lists with null": (
        column_with([1, None], [1, 2]),
        IDS_FIELD + "must be a field with lists of integers, but {path}:13 has list<",
    ),
    "column of lists of fractions": (
        column_with([0.5], [1.0, 2.0]),
        IDS_FIELD + "must be a field with lists of integers, but {path}:1 has list<",
    ),
    "column beyond the vocabulary": (
        column_with([70000], [1, 2]),
        TOKENS + "{path}:13 has the token id 70000, but",
    ),
    "cut off gzip": (
        damaged("a.jsonl.gz", halve),
        PATH + "{path} is damaged (Truncated compressed",
    ),
    "cut off zstd": (damaged("a.jsonl.zst", halve), PATH + "{path} is damaged (Truncated compre"),
    "broken gzip": (damaged("a.jsonl.gz", scramble), PATH + "{path}"),
    "broken zstd": (damaged("a.jsonl.zst", scramble), PATH + "{path}"),
    "no gzip": (
        damaged("a.jsonl.gz", lambda _: b"words"),
        PATH + "{path} is plain text by its content, not gzip. Rename the file.",
    ),
    "no zstd": (
        damaged("a.jsonl.zst", lambda _: b"words"),
        PATH + "{path} is plain text by its content, not zstd. Rename the file.",
    ),
    "cut off Parquet": (damaged("a.parquet", halve), PATH + "{path} is damaged ("),
    "broken Parquet": (damaged("a.parquet", scramble_pages), PATH + "{path} is damaged ("),
    "empty": (empty("a.jsonl"), PATH + "{path} holds no documents. Remove or exclude the file."),
    "empty gzip": (empty("a.jsonl.gz"), PATH + "{path} holds no documents. Remove or"),
    "empty Parquet": (empty("a.parquet"), PATH + "{path} is damaged ("),
    "Parquet without rows": (
        lambda folder: write_parquet(folder / "a.parquet", {"text": []}),
        PATH + "{path} holds no documents. Remove or exclude the file.",
    ),
    "Parquet without the field": (
        lambda folder: write_parquet(folder / "a.parquet", {"body": ["a"]}),
        FIELD + "is not a field of {path}, which has: body. Name the field",
    ),
    "text that is no UTF-8": (
        lambda folder: (folder / "a.txt").write_bytes(b"ab\xff") and folder / "a.txt",
        PATH + "{path} is not UTF-8 text (byte 2). Convert or exclude the file.",
    ),
}
assert len(BAD) >= 20


def draw(data: DataConfig, tokenizer: HuggingFaceTokenizer, count: int) -> PackedDataLoader:
    loader: Any = PackedDataLoader.Config(data=data).build(
        dp_world_size=1, dp_rank=0, tokenizer=tokenizer, seq_len=64, local_batch_size=2
    )
    for _ in zip(range(count), loader, strict=False):
        pass
    return loader


def config_of(name: str, *paths: Path, **options: Any) -> DataConfig:
    has_tokens = BAD[name][1].startswith((IDS_FIELD, TOKENS))
    tokens = "ids" if has_tokens else None
    sources = [SourceConfig(path=str(path), tokens=tokens) for path in paths]
    return DataConfig(sources=sources, num_streams=1, **options)


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_an_error_of_one_line_that_says_where(
    name: str, tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    write, message = BAD[name]
    path = write(tmp_path)
    with pytest.raises(ValueError) as error:
        draw(config_of(name, path), tokenizer, 3000)
    assert str(error.value).startswith(message.replace("{path}", str(path)))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith((".", ")"))


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_skipped_if_so_wished_counted_and_logged(
    name: str, tmp_path: Path, tokenizer: HuggingFaceTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    write, message = BAD[name]
    write(tmp_path)
    record = IDS if message.startswith((IDS_FIELD, TOKENS)) else TEXT
    (tmp_path / "z.jsonl").write_text((json.dumps(record) + "\n") * 50)
    (tmp_path / "0.jsonl").write_text((json.dumps(record) + "\n") * 50)
    with caplog.at_level(logging.WARNING):
        loader = draw(config_of(name, tmp_path / "*", on_error="skip"), tokenizer, 60)
    skipped = loader.num_skipped["0"]
    assert skipped > 0
    complaints = [entry.message for entry in caplog.records if "Skipped" in entry.message]
    assert 1 <= len(complaints) <= skipped.bit_length()
    start = message.split("{path}")[0]
    assert any(f"bad documents so far. The last: {start}" in line for line in complaints)


def test_the_count_of_skipped_documents_goes_on_after_a_resume(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    path = lines_with(b"{bad")(tmp_path)
    data = config_of("no JSON", path, on_error="skip")
    whole, first = draw(data, tokenizer, 30), draw(data, tokenizer, 17)
    second: Any = PackedDataLoader.Config(data=replace(data, num_workers=1)).build(
        dp_world_size=1, dp_rank=0, tokenizer=tokenizer, seq_len=64, local_batch_size=2
    )
    second.load_state_dict(first.state_dict())
    for _ in zip(range(13), second, strict=False):
        pass
    assert whole.num_skipped == second.num_skipped
    assert whole.num_skipped["0"] > first.num_skipped["0"] > 0
    states = [loader.state_dict() for loader in (whole, second)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_field_that_no_document_has_is_an_error_even_if_bad_documents_are_skipped(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n' * 500)
    data = DataConfig(
        sources=[SourceConfig(path=str(tmp_path / "a.jsonl"))], num_streams=1, on_error="skip"
    )
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.text \(text\) is not a field of"):
        draw(data, tokenizer, 1)


def test_a_token_field_of_plain_text_is_an_error(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    (tmp_path / "a.txt").write_text("1 2 3")
    source = SourceConfig(path=str(tmp_path / "a.txt"), tokens="ids")
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.tokens \(ids\) is a field of rec"):
        draw(DataConfig(sources=[source], num_streams=1), tokenizer, 1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
def test_a_file_that_vanishes_is_an_error_even_if_bad_documents_are_skipped(
    name: str, tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    # What a disk or network does wrong may go right the next time: the order would depend on it.
    path = tmp_path / name
    if name.endswith("gz"):
        write_compressed(path, b'{"text": "a"}\n' * 9)
    elif name.endswith("parquet"):
        write_parquet(path, {"text": ["a"] * 9})
    else:
        path.write_bytes(b'{"text": "a"}\n' * 9)
    data = DataConfig(sources=[SourceConfig(path=str(path))], num_streams=1, on_error="skip")
    loader: Any = PackedDataLoader.Config(data=data).build(
        dp_world_size=1, dp_rank=0, tokenizer=tokenizer, seq_len=2, local_batch_size=2
    )
    path.unlink()
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.path cannot be read: .*No such fi"):
        next(iter(loader))
