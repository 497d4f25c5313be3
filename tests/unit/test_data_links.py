"""One document once: links, loops, patterns that match a file twice, and copies by their names."""

import os
from pathlib import Path

import pytest

from recipes.data.config import DataConfig, SourceConfig
from recipes.data.documents import Documents, load_documents
from recipes.data.sources import check_sources, find_files
from tests.unit.data_samples import write_compressed, write_jsonl


def data_of(*paths: object, **options: object) -> DataConfig:
    sources = [SourceConfig(path=str(path)) for path in paths]
    return DataConfig(sources=sources, **{"num_streams": 1, **options})


def names_of(*paths: object) -> list[str]:
    return [file.name for file in find_files(data_of(*paths))]


def texts_of(documents: Documents) -> list[object]:
    return [
        documents.parse(block, raw)
        for block in range(len(documents))
        for _, raw in documents.read(block)
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """corpus/v2/a.jsonl, of 200 documents."""
    folder = tmp_path / "corpus"
    write_jsonl(folder / "v2" / "a.jsonl", [{"text": f"{i}"} for i in range(200)])
    return folder


def link_folder(corpus: Path) -> None:
    (corpus / "latest").symlink_to("v2")


def link_folder_elsewhere(corpus: Path) -> None:
    (corpus / "v2").rename(corpus.parent / "outside")
    (corpus / "v2").symlink_to(corpus.parent / "outside")
    (corpus / "x").symlink_to(corpus.parent / "outside")


def link_file(corpus: Path) -> None:
    (corpus / "b.jsonl").symlink_to("v2/a.jsonl")


def link_hard(corpus: Path) -> None:
    (corpus / "v3").mkdir()
    os.link(corpus / "v2" / "a.jsonl", corpus / "v3" / "a.jsonl")


def link_chain(corpus: Path) -> None:
    (corpus / "b.jsonl").symlink_to("c.jsonl")
    (corpus / "c.jsonl").symlink_to("latest/a.jsonl")
    link_folder(corpus)


def link_loops(corpus: Path) -> None:
    # Followed as far as the system allows, this is 2**40 folders.
    (corpus / "again").symlink_to(".")
    (corpus / "v2" / "up").symlink_to("..")


def link_nothing(corpus: Path) -> None:
    pass


@pytest.mark.parametrize(
    "change",
    [link_folder, link_folder_elsewhere, link_file, link_hard, link_chain, link_loops],
)
@pytest.mark.parametrize("pattern", ["**/*.jsonl", "**/**/*.jsonl", "**", "**/*"])
def test_a_file_with_several_names_is_there_once_by_the_name_without_links(
    change: object, pattern: str, corpus: Path
) -> None:
    change(corpus)
    assert names_of(corpus / pattern) == ["v2/a.jsonl"]
    data = data_of(corpus / pattern, validation_fraction=0.2)
    train, held_out = (texts_of(*load_documents(data, split)) for split in ("train", "validation"))
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(str(i) for i in range(200))


@pytest.mark.parametrize("pattern", ["**/*.jsonl", "**/**/*.jsonl", "*/**/*.jsonl", "v2/*"])
def test_two_patterns_for_a_folder_match_it_once(pattern: str, corpus: Path) -> None:
    assert names_of(corpus / pattern)[0].endswith("a.jsonl")
    assert len(names_of(corpus / pattern)) == 1


def test_what_only_a_link_leads_to_is_there_by_the_link(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "all").symlink_to(corpus)
    (tmp_path / "mine" / "one.jsonl").symlink_to(corpus / "v2" / "a.jsonl")
    assert names_of(tmp_path / "mine" / "*.jsonl") == ["one.jsonl"]
    assert names_of(tmp_path / "mine" / "**" / "*.jsonl") == ["all/v2/a.jsonl"]
    assert names_of(tmp_path / "mine" / "*" / "*" / "*") == ["all/v2/a.jsonl"]


def test_equal_files_are_two_sources_of_documents(corpus: Path) -> None:
    (corpus / "copy.jsonl").write_bytes((corpus / "v2" / "a.jsonl").read_bytes())
    assert names_of(corpus / "**" / "*.jsonl") == ["copy.jsonl", "v2/a.jsonl"]


def test_hidden_names_need_a_pattern_with_a_dot(corpus: Path) -> None:
    write_jsonl(corpus / ".git" / "a.jsonl", [])
    write_jsonl(corpus / ".b.jsonl", [])
    (corpus / ".#lock").symlink_to("nowhere")
    assert names_of(corpus / "**" / "*.jsonl") == ["v2/a.jsonl"]
    assert names_of(corpus / ".*.jsonl") == [".b.jsonl"]


def test_a_pattern_may_have_sets_single_letters_and_folders_after_the_stars(corpus: Path) -> None:
    for name in ("part-0", "part-1", "part-x", "part-10"):
        write_jsonl(corpus / name / "deep" / "train" / "a.jsonl", [])
    found = ["part-0/deep/train/a.jsonl", "part-1/deep/train/a.jsonl"]
    assert names_of(corpus / "part-[0-9]" / "**" / "train" / "*.jsonl") == found
    assert names_of(corpus / "part-?" / "deep" / "*" / "a.jsonl") == [
        *found,
        "part-x/deep/train/a.jsonl",
    ]
    assert names_of(corpus / "part-0" / "deep" / "train" / "a.jsonl") == ["a.jsonl"]


@pytest.mark.parametrize("target", ["nowhere", "gone.jsonl"])
@pytest.mark.parametrize(
    "pattern", ["*.jsonl", "gone.jsonl", "**/*.jsonl", "*", "**/gone.jsonl", "*/a.jsonl"]
)
def test_a_link_that_leads_nowhere_is_named(pattern: str, target: str, corpus: Path) -> None:
    (corpus / "gone.jsonl").symlink_to(target)  # the second to itself
    with pytest.raises(ValueError) as error:
        check_sources(data_of(corpus / pattern))
    assert str(error.value) == (
        f"data.sources[0].path ({corpus / pattern}) meets the link {corpus / 'gone.jsonl'}, which "
        f"leads nowhere ({target}). Restore what it leads to, or remove it."
    )
    assert names_of(corpus / "v2" / "*.jsonl") == ["a.jsonl"], "not where the pattern looks"


def test_a_folder_that_cannot_be_read_is_an_error(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.path \(.*\) cannot be read: .*den"):
        check_sources(data_of(corpus / "**" / "*.jsonl"))


@pytest.mark.parametrize("change", [link_nothing, link_folder, link_file, link_hard])
def test_two_sources_of_one_file_are_an_error_whatever_their_names_for_it(
    change: object, corpus: Path
) -> None:
    change(corpus)
    others = ["**/*.jsonl", "v2/a.jsonl", "latest/a.jsonl", "b.jsonl", "v3/*"]
    others = [other for other in others if other == "**/*.jsonl" or [*corpus.glob(other)]]
    assert len(others) == 2 + (change != link_nothing)
    for other in others:
        with pytest.raises(
            ValueError, match=r"^data\.sources\[1\]\.path .* which data\.sources\[0\]"
        ) as e:
            check_sources(data_of(corpus / "v2" / "*", corpus / other))
        assert str(e.value).endswith(
            "Name each file in one source, and give that the weight of both."
        )


def test_two_sources_of_one_split_of_a_hub_data_set_are_an_error(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*sources: SourceConfig) -> None:
        check_sources(DataConfig(sources=list(sources)))

    one = SourceConfig(path="hf://owner/name")
    for other in (
        one,
        SourceConfig(path="hf://owner/name", split="train", streaming=True, text="body"),
        SourceConfig(path="hf://owner/name@main"),
    ):
        with pytest.raises(
            ValueError, match=r"^data\.sources\[1\]\.path .* matches the split train"
        ):
            check(one, other)
    check(one, SourceConfig(path="hf://owner/name", split="test"))
    check(one, SourceConfig(path="hf://owner/name", subset="de"))
    monkeypatch.chdir(corpus)
    with pytest.raises(ValueError, match=r"^data\.sources\[1\]\.path \(hf://v2/\.\./v2\) matches"):
        check(SourceConfig(path="hf://./v2"), SourceConfig(path="hf://v2/../v2"))


@pytest.mark.parametrize("twin", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2"])
def test_documents_compressed_and_not_are_an_error(twin: str, corpus: Path) -> None:
    write_compressed(corpus / "v2" / twin, b'{"text": "0"}\n')
    with pytest.raises(ValueError, match=rf"matches both .*a\.jsonl and .*{twin}, the same docum"):
        check_sources(data_of(corpus / "v2" / "*"))
    assert names_of(corpus / "v2" / "*.jsonl") == ["a.jsonl"]


@pytest.mark.parametrize("twin", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("folder", ["v2", "linked"])
def test_two_sources_of_one_file_compressed_and_not_are_an_error(
    twin: str, folder: str, corpus: Path
) -> None:
    write_compressed(corpus / "v2" / twin, b'{"text": "0"}\n')
    (corpus / "linked").symlink_to("v2")
    paths = corpus / "v2" / "a.jsonl", corpus / folder / twin
    for first, second in (paths, paths[::-1]):
        with pytest.raises(
            ValueError, match=r"^data\.sources\[1\]\.path .* which data\.sources\[0"
        ):
            check_sources(data_of(first, second))
