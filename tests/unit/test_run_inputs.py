"""A run goes on with the tokenizer and the data that it began with, wherever they lie."""

import json
import os
import shutil
from pathlib import Path

import pytest

from recipes.config.settings import Settings, SettingsError, resolve_settings
from recipes.data import inputs as inputs_module
from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.export.request import load_run_settings
from recipes.run.folder import check_run_folder, save_config
from recipes.run.inputs import check_inputs, check_weights_tokenizer, save_run_inputs

DEBUG = "train_configs/debug.toml"
LINES = "".join(json.dumps({"text": f"document number {i}"}) + "\n" for i in range(40))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    save_bpe_tokenizer(tmp_path / "tokenizer", ["some words"], vocab_size=270)
    for name in ("corpus/a.jsonl", "corpus/b.jsonl", "held/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES)
    return tmp_path


def settings(
    home: Path, *more: str, tokenizer: str = "tokenizer", corpus: str = "corpus"
) -> Settings:
    return resolve_settings(
        DEBUG,
        [
            f"--job.dump_folder={home / 'run'}",
            f"--tokenizer.path={home / tokenizer}",
            f"--data.sources=[{{path='{home / corpus}/*.jsonl'}}]",
            f"--validation.sets=[{{name='c', path='{home / 'held'}/*.jsonl'}}]",
            *more,
        ],
    )


def start(given: Settings) -> None:
    """What the first step of a run leaves."""
    Path(given.values["job"]["dump_folder"]).mkdir(exist_ok=True)
    save_run_inputs(given)
    save_config(given)


def check(given: Settings) -> list[str]:
    return [*check_run_folder(given), *check_inputs(given)]


def refusal(given: Settings) -> str:
    with pytest.raises(SettingsError) as error:
        check(given)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


def edit(path: Path, old: str, new: str) -> None:
    """In place, at the same size."""
    assert len(old) == len(new) and old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_new_run_has_nothing_to_compare_and_an_unchanged_one_nothing_to_report(home):
    assert check(settings(home)) == []
    assert not (home / "run").exists(), "checking writes nothing"
    start(settings(home))
    assert check(settings(home)) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer.json", '"id": 0', '"id": 9'),
        ("tokenizer_config.json", "endoftext", "endoftexu"),
        ("special_tokens_map.json", "endoftext", "endoftexu"),
    ],
)
def test_another_tokenizer_of_the_same_size_is_refused_by_name(home, name, old, new):
    start(settings(home))
    file = home / "tokenizer" / name
    times = file.stat()
    edit(file, old, new)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    path = home / "tokenizer"
    assert f"tokenizer.path ({path}) has another {name} than when the" in refusal(settings(home))
    with pytest.raises(ValueError, match=rf"has another {name} than when"):
        load_run_settings(home / "run")


def test_a_file_that_is_added_to_a_tokenizer_is_refused_by_name(home):
    start(settings(home))
    (home / "tokenizer" / "added_tokens.json").write_text("{}")
    assert "has another added_tokens.json than when" in refusal(settings(home))


def test_a_tokenizer_that_is_copied_moved_or_touched_is_the_same(home):
    start(settings(home))
    for file in (home / "tokenizer").iterdir():
        os.utime(file, (0, 0))
    (home / "tokenizer" / "README.md").write_text("words")
    assert check(settings(home)) == []
    (home / "tokenizer").rename(home / "moved")
    (change,) = check(settings(home, tokenizer="moved"))
    assert change == f'tokenizer.path ("{home}/tokenizer" -> "{home}/moved")'


def test_text_that_is_edited_in_place_is_refused_by_name(home):
    start(settings(home))
    edit(home / "corpus" / "b.jsonl", "number 20", "number 99")
    text = refusal(settings(home))
    assert text.startswith(f"data.sources[0] is not what it was when the run in {home}/run began")
    assert f"{home}/corpus/b.jsonl has the same size but other content. Restore that" in text
    anew = settings(home, '--checkpoint.exclude_from_loading=["dataloader"]')
    assert any("has the same size but other content" in change for change in check(anew))


def test_files_of_another_size_new_ones_and_those_gone_are_refused_by_name(home):
    start(settings(home))
    (home / "corpus" / "a.jsonl").rename(home / "corpus" / "z.jsonl")
    (home / "corpus" / "b.jsonl").write_text(LINES + LINES)
    text = refusal(settings(home))
    assert "a.jsonl is not there any more" in text and "z.jsonl is new" in text
    assert f"b.jsonl has {2 * len(LINES)} bytes, not {len(LINES)}" in text


def test_data_that_are_touched_or_copied_elsewhere_are_the_same(home):
    start(settings(home))
    for file in (home / "corpus").iterdir():
        os.utime(file, (0, 0))
    assert check(settings(home)) == []
    shutil.copytree(home / "corpus", home / "copy")
    (change,) = check(settings(home, corpus="copy"))
    assert change.startswith("data.sources (")
    edit(home / "copy" / "a.jsonl", "number 3", "number 4")
    assert "copy/a.jsonl has the same size but other content" in refusal(
        settings(home, corpus="copy")
    )


def test_other_options_of_a_source_are_another_configuration_wherever_it_lies(home):
    start(settings(home))
    other = settings(home, f"--data.sources=[{{path='{home}/corpus/*.jsonl', limit=3}}]")
    assert "holds a run with another configuration: data.sources" in refusal(other)


def test_of_a_held_out_set_a_change_is_reported(home):
    start(settings(home))
    edit(home / "held" / "c.jsonl", "number 7", "number 8")
    (change,) = check(settings(home))
    assert change == (
        f'validation.sets "c": {home}/held/c.jsonl has the same size but other content'
    )
    assert check(settings(home, "--validation.sets=[]"))[0].startswith("validation.sets")


@pytest.fixture
def small_samples(monkeypatch) -> None:
    monkeypatch.setattr(inputs_module, "_BUDGET_BYTES", 0)
    monkeypatch.setattr(inputs_module, "_MIN_SAMPLE_BYTES", 96)


def test_of_a_large_file_a_sample_is_compared_and_it_is_said(home, small_samples):
    start(settings(home))
    file = home / "corpus" / "a.jsonl"
    os.utime(file, (0, 0))
    (change,) = check(settings(home))
    assert change == (
        f"data.sources[0]: the time of {file}; size and a sample of the content are the same"
    )
    start(settings(home))
    assert check(settings(home)) == [], "it is said once"
    for old, new in (("number 0", "number 9"), ("number 39", "number 38")):
        edit(file, old, new)
        assert "a.jsonl has the same size but other content" in refusal(settings(home))
        edit(file, new, old)
        os.utime(file, (0, 0))


def test_no_file_is_read_that_has_size_and_time_of_the_record(home, monkeypatch):
    read: list[str] = []
    digest = inputs_module._digest

    def count(file, sample_bytes):
        read.append(file.name)
        return digest(file, sample_bytes)

    monkeypatch.setattr(inputs_module, "_digest", count)
    start(settings(home))
    assert sorted(read) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    read.clear()
    check(settings(home))
    start(settings(home))
    assert read == []
    os.utime(home / "corpus" / "b.jsonl", (0, 0))
    check(settings(home))
    start(settings(home))
    assert read == ["b.jsonl", "b.jsonl"]


def test_the_first_the_last_and_the_middle_of_a_file_are_in_a_sample():
    for size in (1, 10, 11, 200_000, 10**7):
        for sample in (10, 12_288, 200_000):
            places = [*inputs_module._spread(size, sample)]
            assert places[0][0] == 0 and sum(places[-1]) == size
            assert sum(length for _, length in places) <= max(sample, 1)
            assert all(begin + length <= size for begin, length in places)
    assert 10**7 // 2 in {
        begin + length // 2 for begin, length in inputs_module._spread(10**7, 12_288)
    }


def test_a_hub_data_set_in_a_folder_is_known_by_its_files(home):
    given = settings(home, f"--data.sources=[{{path='hf://{home}/corpus'}}]")
    start(given)
    assert check(given) == []
    edit(home / "corpus" / "b.jsonl", "number 20", "number 99")
    assert "b.jsonl has the same size but other content" in refusal(given)


def test_a_damaged_record_is_refused_by_name(home):
    start(settings(home))
    for content in ("{", "[]", '{"sample_bytes": 1}', '{"a": 1}'):
        (home / "run" / "inputs.json").write_text(content)
        assert "run/inputs.json cannot be read (" in refusal(settings(home))


# --------------------------------------------------------------------- weights of a folder


def weights(home: Path, *more: str) -> Settings:
    return settings(
        home,
        "--checkpoint.initial_load_in_hf",
        f"--checkpoint.initial_load_path={home / 'weights'}",
        *more,
    )


def rewrite(folder: Path, change) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


@pytest.fixture
def base(home: Path) -> Path:
    shutil.copytree(home / "tokenizer", home / "weights")
    return home


def test_weights_with_the_same_tokenizer_or_none_are_accepted_in_silence(base):
    assert check_weights_tokenizer(weights(base)) == []
    rewrite(base / "weights", lambda state: state.update(post_processor=None))
    assert check_weights_tokenizer(weights(base)) == []
    shutil.rmtree(base / "weights")
    assert check_weights_tokenizer(weights(base)) == []


def test_weights_whose_tokens_have_other_ids_are_refused(base):
    def swap(state):
        vocab = state["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    rewrite(base / "weights", swap)
    with pytest.raises(SettingsError) as error:
        check_weights_tokenizer(weights(base))
    assert str(error.value).startswith(
        f"tokenizer.path ({base}/tokenizer) has other token ids: 'a' has the id"
    )
    assert "beside the weights of checkpoint.initial_load_path" in str(error.value)
    start(weights(base))
    assert check_weights_tokenizer(weights(base)) == [], "the run has begun"


def test_a_vocabulary_of_other_tokens_is_refused(base):
    shutil.rmtree(base / "weights")
    save_bpe_tokenizer(base / "weights", ["quite different text"], vocab_size=270)
    with pytest.raises(SettingsError, match="has other token ids: "):
        check_weights_tokenizer(weights(base))


@pytest.mark.parametrize("longer", ["tokenizer", "weights"])
def test_a_tokenizer_may_have_more_tokens_or_fewer(base, longer):
    def extend(state):
        state["added_tokens"].append(state["added_tokens"][0] | {"id": 270, "content": "<new>"})

    rewrite(base / longer, extend)
    assert check_weights_tokenizer(weights(base)) == []


def test_an_added_token_that_is_put_to_use_under_another_name_is_reported(base):
    def name(state):
        state["added_tokens"].append(state["added_tokens"][0] | {"id": 270, "content": "<free>"})

    rewrite(base / "weights", name)
    rewrite(
        base / "tokenizer",
        lambda state: (name(state), state["added_tokens"][1].update(content="<tool>")),
    )
    (note,) = check_weights_tokenizer(weights(base))
    assert "added tokens have other names (id 265 is '<tool>', not '<free>')" in note


def test_texts_that_are_cut_otherwise_are_reported(base):
    def cut(state):
        state["normalizer"] = {"type": "NFC"}
        state["model"]["merges"].reverse()

    rewrite(base / "tokenizer", cut)
    (note,) = check_weights_tokenizer(weights(base))
    assert "texts are cut by another list of merges and another normalizer" in note


def test_another_eos_is_reported(base):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = base / "weights" / name
        path.write_text(path.read_text().replace("<|endoftext|>", "Ab"))
    (note,) = check_weights_tokenizer(weights(base))
    assert "eos_token is '<|endoftext|>', not 'Ab'" in note


def test_a_tokenizer_beside_weights_that_cannot_be_read_is_refused(base):
    (base / "weights" / "tokenizer.json").write_text("{")
    with pytest.raises(SettingsError, match=r"cannot be compared: .*weights/tokenizer.json: "):
        check_weights_tokenizer(weights(base))


def test_a_run_that_starts_from_the_checkpoint_of_another_tokenizer_is_told(home):
    start(settings(home))
    step = home / "run" / "checkpoint" / "step-2"
    shutil.copytree(home / "tokenizer", home / "other")
    rewrite(home / "other", lambda state: state.update(normalizer={"type": "NFC"}))
    for tokenizer, expected in (("tokenizer", 0), ("other", 1)):
        branch = settings(
            home,
            f"--checkpoint.initial_load_path={step}",
            f"--job.dump_folder={home / 'branch'}",
            tokenizer=tokenizer,
        )
        notes = check_weights_tokenizer(branch)
        assert len(notes) == expected
    assert notes[0].startswith(f"tokenizer.path ({home}/other) has another tokenizer.json than the")
