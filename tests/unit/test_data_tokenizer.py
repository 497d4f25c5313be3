"""The tokenizer folder, embedded or the user's."""

import filecmp
import json
import threading
from pathlib import Path

import pytest
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data import corpus, tokenizer
from recipes.data.config import EMBEDDED_TOKENIZER
from recipes.data.tokenizer import check_tokenizer, resolve_tokenizer_path, save_bpe_tokenizer

FILES = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def small_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of 30 files and an empty cache; returns the cache folder."""
    library = tmp_path / "library"
    library.mkdir()
    for i in range(30):
        (library / f"m{i}.py").write_text(f"def function_{i}(value):\n    return value + {i}\n" * 5)
    monkeypatch.setattr(corpus, "stdlib_folder", lambda: library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenizer, "_VOCAB_SIZE", 300)
    return tmp_path / "cache" / "nitp"


def test_the_real_embedded_corpus_gives_a_tokenizer_that_torchtitan_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # A tenth of the corpus: training on all of it takes seconds and shows no more.
    files = corpus.find_corpus_files()
    monkeypatch.setattr(tokenizer, "find_corpus_files", lambda: files[::10])
    check_tokenizer(EMBEDDED_TOKENIZER)
    folder = resolve_tokenizer_path(EMBEDDED_TOKENIZER)
    assert sorted(path.name for path in Path(folder).iterdir()) == FILES
    loaded = HuggingFaceTokenizer(tokenizer_path=folder)
    assert loaded.get_vocab_size() == 8192
    assert loaded.eos_id == loaded.tokenizer.token_to_id("<|endoftext|>") == 0
    assert loaded.bos_id is None
    text = (
        "  def f(x):\n\treturn 'na\u00efve \u4f60\u597d \U0001f600'\r\n\x00"
        + files[0][1].read_text()
    )
    tokens = loaded.encode(text, add_bos=False, add_eos=False)
    assert loaded.decode(tokens) == text
    assert loaded.eos_id not in tokens
    assert len(tokens) < len(text) / 2
    assert loaded.encode("", add_bos=True, add_eos=False) == []


def test_the_folder_says_what_hugging_face_reads(tmp_path: Path) -> None:
    save_bpe_tokenizer(tmp_path / "t", ["some text, some text"], vocab_size=260)
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["eos_token"] == "<|endoftext|>"
    assert "bos_token" not in config


def test_training_twice_gives_the_same_files(small_corpus: Path, tmp_path: Path) -> None:
    first = Path(resolve_tokenizer_path(EMBEDDED_TOKENIZER))
    first = first.rename(tmp_path / "first")
    second = Path(resolve_tokenizer_path(EMBEDDED_TOKENIZER))
    match, mismatch, errors = filecmp.cmpfiles(first, second, FILES, shallow=False)
    assert (sorted(match), mismatch, errors) == (FILES, [], [])


def test_the_second_call_trains_nothing(
    small_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve_tokenizer_path(EMBEDDED_TOKENIZER)
    monkeypatch.delattr(tokenizer, "save_bpe_tokenizer")
    assert resolve_tokenizer_path(EMBEDDED_TOKENIZER) == folder


def test_another_corpus_or_setting_gets_another_folder(
    small_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {resolve_tokenizer_path(EMBEDDED_TOKENIZER)}
    (corpus.stdlib_folder() / "m0.py").write_text("changed = True\n")
    folders.add(resolve_tokenizer_path(EMBEDDED_TOKENIZER))
    monkeypatch.setattr(tokenizer, "_VOCAB_SIZE", 301)
    folders.add(resolve_tokenizer_path(EMBEDDED_TOKENIZER))
    assert len(folders) == 3


def test_it_is_not_trained_on_documents_held_out_by_a_tenth(
    small_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def save(folder: Path, texts: list[str], vocab_size: int) -> None:
        seen.extend(texts)
        folder.mkdir()

    monkeypatch.setattr(tokenizer, "save_bpe_tokenizer", save)
    resolve_tokenizer_path(EMBEDDED_TOKENIZER)
    files = corpus.find_corpus_files()
    expected = [path.read_text() for name, path in files if not tokenizer.is_validation(name, 0.1)]
    assert seen == expected
    assert 0 < len(seen) < len(files)


def test_concurrent_ranks_agree_on_one_complete_folder(small_corpus: Path) -> None:
    folders: list[str] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait()
        folders.append(resolve_tokenizer_path(EMBEDDED_TOKENIZER))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4 and len(set(folders)) == 1
    assert [path.name for path in small_corpus.iterdir()] == [Path(folders[0]).name]
    assert sorted(path.name for path in Path(folders[0]).iterdir()) == FILES


def test_an_interrupted_training_leaves_nothing_that_counts(
    small_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path, texts: object, vocab_size: int) -> None:
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokenizer, "save_bpe_tokenizer", interrupt)
        resolve_tokenizer_path(EMBEDDED_TOKENIZER)
    HuggingFaceTokenizer(tokenizer_path=resolve_tokenizer_path(EMBEDDED_TOKENIZER))


def test_a_folder_that_torchtitan_cannot_use_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^tokenizer\.path \(.*none\) is not a folder\. Give a "):
        check_tokenizer(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"^tokenizer\.path \(.*\) has no tokenizer\.json\. Give "):
        check_tokenizer(str(tmp_path))
    save_bpe_tokenizer(tmp_path / "good", ["some text"], vocab_size=260)
    check_tokenizer(str(tmp_path / "good"))
    assert resolve_tokenizer_path(str(tmp_path / "good")) == str(tmp_path / "good")
    (tmp_path / "good" / "tokenizer_config.json").write_text("{}")
    check_tokenizer(str(tmp_path / "good"))
    (tmp_path / "good" / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^tokenizer\.path .* names an eos_token, .* Add"):
        check_tokenizer(str(tmp_path / "good"))
    (tmp_path / "good" / "tokenizer_config.json").write_text('{"eos_token":')
    with pytest.raises(
        ValueError, match=r"^tokenizer\.path: .*config\.json is not valid JSON \(.*"
    ):
        check_tokenizer(str(tmp_path / "good"))
    (tmp_path / "good" / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"^tokenizer\.path: .*config\.json is not a JSON object"):
        check_tokenizer(str(tmp_path / "good"))


def test_a_user_without_a_home_directory_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without a name
    message = r"^tokenizer.path \(.*\) .* no home directory. Set XDG_CACHE_HOME"
    with pytest.raises(ValueError, match=message):
        resolve_tokenizer_path(EMBEDDED_TOKENIZER)
