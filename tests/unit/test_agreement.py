"""Ranks that would not train the same run are told apart by what they differ in."""

from pathlib import Path
from typing import Any

import pytest

from recipes.config.settings import SettingsError
from recipes.data.config import DataConfig, SourceConfig, ValidationSetConfig
from recipes.run import agreement
from recipes.run.agreement import check_ranks_agree

SETTINGS = {"training": {"steps": 5, "seq_len": 64}, "nitp": {"weight": 0.5}}


class Ranks:
    """Takes the place of torch.distributed: this process is one rank after the other."""

    def __init__(self, folder: Path) -> None:
        self.data = DataConfig(sources=[SourceConfig(path=f"{folder}/a.jsonl")])
        self.sets = [ValidationSetConfig(name="held_out", path=f"{folder}/b.jsonl")]
        self.tokenizer = folder / "tokenizer"
        self.gathered: list[list[Any]] = []
        """What each rank has brought to each gathering."""

    def get_world_size(self) -> int:
        return len(self.gathered)

    def all_gather_object(self, found: list[Any], own: Any) -> None:
        self.gathered[-1].append(own)
        index = len(self.gathered[-1]) - 1
        found[:] = [rank[min(index, len(rank) - 1)] for rank in self.gathered]

    def bring(self, settings: dict[str, dict[str, Any]] = SETTINGS) -> None:
        """The next rank, which sees those before it."""
        self.gathered.append([])
        check_ranks_agree(settings, self.data, self.sets, tokenizer=str(self.tokenizer))


@pytest.fixture
def ranks(tmp_path, monkeypatch) -> Ranks:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "special_tokens_map.json", "README.md"):
        (tmp_path / "tokenizer" / name).write_text("first")
    ranks = Ranks(tmp_path)
    monkeypatch.setattr(agreement, "dist", ranks)
    ranks.bring()
    # Only ranks that differ go on to say in what; the first is asked by name.
    facts = agreement._collect_facts(SETTINGS, ranks.data, ranks.sets, str(ranks.tokenizer))
    ranks.gathered[0].append(facts)
    return ranks


def refusal(ranks: Ranks, *settings: dict[str, dict[str, Any]]) -> str:
    with pytest.raises(SettingsError) as error:
        ranks.bring(*settings)
    return str(error.value)


def test_equal_ranks_agree(ranks):
    ranks.bring()
    ranks.bring()


def test_an_option_that_differs_is_named_with_both_values(ranks):
    ranks.bring()
    text = refusal(ranks, SETTINGS | {"nitp": {"weight": 0.25}})
    assert text.startswith("Ranks 0 and 2 differ in nitp.weight (0.5 / 0.25). Start all ranks")


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl"])
def test_a_file_of_another_length_is_named(ranks, tmp_path, name):
    """Of the source, and of the held-out set."""
    with (tmp_path / name).open("a") as stream:
        stream.write("more\n")
    assert f"{name} (14 / 19). Start" in refusal(ranks)


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "added_tokens.json"])
def test_another_tokenizer_of_the_same_size_is_named(ranks, name):
    (ranks.tokenizer / name).write_text("other")
    assert f"Ranks 0 and 1 differ in digest of tokenizer.path's {name} (" in refusal(ranks)


def test_a_tokenizer_elsewhere_and_what_is_beside_it_make_no_difference(ranks, tmp_path):
    (ranks.tokenizer / "README.md").write_text("other")
    ranks.tokenizer = ranks.tokenizer.rename(tmp_path / "moved")
    ranks.bring()


def test_another_version_is_named(ranks, monkeypatch):
    monkeypatch.setattr(agreement, "version", lambda name: "9.9" if name == "torch" else "0.3.0")
    text = refusal(ranks)
    assert "Ranks 0 and 1 differ in version of torch (2.14.1" in text and "/ 9.9). Start" in text


def test_of_many_differences_three_are_named(ranks):
    text = refusal(
        ranks, {"training": {"steps": 6, "seq_len": 65}, "nitp": {"weight": 1}, "x": {"y": 1}}
    )
    assert text.count(" / ") == 3 and " and 1 more. Start" in text
