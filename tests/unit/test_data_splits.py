"""Rows of hub data sets: each once, whatever slices, folders and files name them."""

import re
from pathlib import Path

import pytest

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.sources import check_sources
from recipes.data.splits import split_hub_path


def hub(split: str | None = None, path: str = "hf://owner/name", **more: str) -> SourceConfig:
    return SourceConfig(path=path, split=split, **more)


def check(*sources: SourceConfig) -> None:
    check_sources(DataConfig(sources=list(sources)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train[:50%]", "train[25%:]"),
        ("train", "train[:10]"),
        ("train[:]", "train"),
        (None, "train[90%:]"),
        ("train[:50%]", "train[100:]"),  # not to be told without the number of rows
        ("train[-10:]", "train[:10]"),
        ("train[:50%](pct1_dropremainder)", "train[50%:]"),
        ("test+train[:20%]", "train[10%:30%]"),
        ("all", "test"),
        ("train[10:20]", "train[1_9:30]"),
    ],
)
def test_slices_that_overlap_or_may_are_an_error(first, second):
    for one, other in ((first, second), (second, first)):
        with pytest.raises(
            ValueError, match=r"^data\.sources\[1\]\.path .* which data\.sources\[0"
        ):
            check(hub(one), hub(other))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train[:50%]", "train[50%:]"),
        ("train[:100]", "train[100:200]"),
        ("train", "test"),
        ("train[10%:20%]+test", "train[:10%]+train[20%:]"),
        ("train[:50%](pct1_dropremainder)", "train[50%:](pct1_dropremainder)"),
    ],
)
def test_slices_that_are_apart_pass(first, second):
    check(hub(first), hub(second))


@pytest.mark.parametrize("split", ["train+train", "train[:50%]+train[25%:]", "all+test"])
def test_rows_twice_in_one_split_are_an_error(split):
    message = rf"^data\.sources\[0\]\.split \({re.escape(split)}\) names rows twice"
    with pytest.raises(ValueError, match=message):
        check(hub(split))


def test_the_default_subset_has_a_name_too():
    with pytest.raises(ValueError, match=r"which data\.sources\[0\] has"):
        check(hub(), hub(subset="default"))
    check(hub(), hub(subset="de"))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """corpus/train.jsonl, linked/train.jsonl -> it, other.jsonl."""
    (tmp_path / "corpus").mkdir()
    for name in ("corpus/train.jsonl", "other.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "linked").symlink_to("corpus")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ["hf://corpus", "hf://./corpus", "hf://linked", "hf://./"])
@pytest.mark.parametrize("glob", ["corpus/*.jsonl", "linked/*", "**/*.jsonl"])
def test_a_hub_folder_and_a_glob_over_its_files_are_an_error(corpus, path, glob):
    files = SourceConfig(path=glob, text="text")
    for sources, number in (((files, hub(path=path)), 1), ((hub(path=path), files), 0)):
        with pytest.raises(ValueError, match=rf"^data\.sources\[{number}\]\.path \(hf://.*matches"):
            check(*sources)
    check(hub(path="hf://corpus"), SourceConfig(path="other.jsonl"))


@pytest.mark.parametrize("path", ["hf://./nowhere", "hf:///nowhere", "hf://./corpus/train.jsonl"])
def test_a_hub_folder_that_is_not_there_is_an_error(corpus, path):
    with pytest.raises(ValueError, match=r"names no folder of this machine"):
        check(hub(path=path))


def test_a_folder_may_have_the_sign_of_a_revision_in_its_name(corpus):
    (corpus / "data@2").mkdir()
    assert split_hub_path("hf://data@2") == ("data@2", None)
    assert split_hub_path("hf://./data@2") == ("./data@2", None)
    assert split_hub_path("hf://owner/name@v1") == ("owner/name", "v1")
