"""A pass over the data costs a pass, whatever the lengths of its documents: bytes are counted."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.data.blocks import Block
from recipes.data.config import DataConfig, SourceConfig
from recipes.data.formats import load_blocks
from recipes.data.sources import find_files


class CountingPath(type(Path())):  # type: ignore[misc]
    """A path whose files count what is read of them."""

    num_bytes = 0

    def open(self, mode: str = "r", buffering: int = -1) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(CountingFile(self), buffering)


class CountingFile(io.FileIO):
    def readinto(self, buffer: memoryview) -> int:
        count = super().readinto(buffer)
        CountingPath.num_bytes += count
        return count

    def readall(self) -> bytes:
        raise AssertionError("a file is not read whole")


@pytest.fixture(autouse=True)
def start_at_zero() -> Iterator[None]:
    CountingPath.num_bytes = 0
    yield


def load(path: Path, num_streams: int) -> list[Block]:
    data = DataConfig(sources=[SourceConfig(path=str(path))], num_streams=num_streams)
    (file,) = find_files(data)
    file = replace(file, path=CountingPath(file.path))
    return load_blocks("data.sources[0]", data.sources[0], [file], data)


def long_line(place: int) -> list[dict[str, str]]:
    lines = [{"text": "short"} for _ in range(2000)]
    lines.insert(place, {"html": "x" * 20_000_000, "text": "short"})
    return lines


def all_long() -> list[dict[str, str]]:
    return [{"text": "x" * 2_000_000} for _ in range(10)]


def all_short() -> list[dict[str, str]]:
    return [{"text": "x" * (i * 7919 % 300)} for i in range(20_000)]


@pytest.mark.parametrize("num_streams", [1, 64])
@pytest.mark.parametrize(
    "lines", [long_line(0), long_line(1000), long_line(2000), all_long(), all_short()]
)
def test_a_pass_reads_each_byte_at_most_twice(
    lines: list[dict[str, str]], num_streams: int, tmp_path: Path
) -> None:
    """Once in the block in which it lies, and once at the end of a line that begins before."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    blocks = load(path, num_streams)
    assert len(blocks) >= 64
    found = [block.parse(raw) for block in blocks for _, raw in block.read()]
    assert found == [line["text"] for line in lines]
    assert CountingPath.num_bytes <= 2.1 * path.stat().st_size


def test_a_block_within_a_line_reads_no_more_than_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 20_000_000}) + "\n")
    first, *others = load(path, 64)
    assert len(others) == 4095
    for block in others:
        before = CountingPath.num_bytes
        assert not [*block.read()]
        assert CountingPath.num_bytes - before <= 20_000_100 / 4095 + 2
