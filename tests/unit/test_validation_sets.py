"""Held-out sets: which rows each rank reads, what is counted of them, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.config.parts import build_validation_sets
from recipes.config.paths import anchor_paths
from recipes.config.rules import check_settings
from recipes.config.settings import SettingsError, resolve_settings, save_settings
from recipes.data.config import DataConfig, SourceConfig, ValidationSetConfig
from recipes.data.encoder import Encoder
from recipes.data.sources import check_sources
from recipes.data.token_bytes import build_token_bytes
from recipes.data.tokenizer import save_bpe_tokenizer
from recipes.data.validation_sets import (
    ValidationSet,
    ValidationSetLoader,
    load_validation_sets,
)
from tests import reference_rows
from tests.unit.data_samples import write_jsonl, write_parquet

SEQ_LEN = 16
# Characters of 1, 2, 3 and 4 bytes; an empty document; one of several rows, one of one token.
TEXTS = ["naïve café", "", "日本語のテキスト " * 4, "x", "🙂🙃 a", "αβγδ " * 9]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    """So few merges that most characters beyond ASCII are several tokens."""
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    save_bpe_tokenizer(folder, ["cafe naive text of a set", *TEXTS[-1:]], vocab_size=270)
    return HuggingFaceTokenizer(tokenizer_path=str(folder))


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "a text to train on"}])
    return DataConfig(sources=[SourceConfig(path=str(path))], num_streams=1)


def load(
    data: DataConfig,
    config: ValidationSetConfig,
    tokenizer: HuggingFaceTokenizer,
    rank: int = 0,
    num_ranks: int = 1,
    batch_size: int = 1,
) -> ValidationSet:
    (held_out,) = load_validation_sets(
        data, [config], tokenizer, seq_len=SEQ_LEN, dp_rank=rank, dp_world_size=num_ranks,
        local_batch_size=batch_size,
    )  # fmt: skip
    return held_out


def write_set(folder: Path, texts: Sequence[str] = TEXTS) -> ValidationSetConfig:
    path = write_jsonl(folder / "set.jsonl", [{"text": text} for text in texts])
    return ValidationSetConfig(name="mixed", path=str(path))


def encode_all(tokenizer: HuggingFaceTokenizer, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    backend = tokenizer.tokenizer
    return [[*backend.encode(text).ids, backend.token_to_id("<|endoftext|>")] for text in texts]


# ---------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(("num_ranks", "batch_size"), [(1, 1), (1, 4), (2, 3), (3, 1), (64, 2)])
def test_all_ranks_together_read_each_label_once_in_as_many_batches_each(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer,
    num_ranks: int, batch_size: int,
) -> None:  # fmt: skip
    config = write_set(tmp_path)
    ranks = [
        load(data, config, tokenizer, rank, num_ranks, batch_size) for rank in range(num_ranks)
    ]
    loaders = [
        ValidationSetLoader.Config(held_out=held_out).build(local_batch_size=batch_size)
        for held_out in ranks
    ]
    for _ in range(2):  # at each validation
        rows = []
        for batches in zip(*loaders, strict=True):
            for row in range(batch_size):
                for inputs, labels in batches:
                    assert labels.dtype == torch.int64 and labels.shape == (batch_size, SEQ_LEN)
                    rows.append([
                        inputs["input"][row].tolist(), inputs["positions"][row].tolist(),
                        labels[row].tolist(),
                    ])  # fmt: skip
        documents = encode_all(tokenizer)
        filler = [[0, 0]] * SEQ_LEN  # completes the last row of the reference
        expected = [row for row, _ in reference_rows.pack(iter([*documents, *filler]), SEQ_LEN)]
        num_tokens = sum(len(document) - 1 for document in documents)
        num_full, num_left = divmod(num_tokens, SEQ_LEN)
        assert num_left and rows[:num_full] == expected[:num_full]
        assert [part[:num_left] for part in rows[num_full]] == [
            part[:num_left] for part in expected[num_full]
        ]
        filling = [rows[num_full][2][num_left:], *(row[2] for row in rows[num_full + 1 :])]
        assert {label for labels in filling for label in labels} == {-100}
        assert rows[num_full][1][num_left] == 0, "the filling is no part of the last document"
    for held_out in ranks:
        assert held_out.num_documents == 5 and held_out.num_labels == num_tokens


def test_no_label_of_a_document_is_lost_that_ends_with_its_row(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    held_out = load(data, write_set(tmp_path, ["x" * SEQ_LEN] * 3), tokenizer)
    assert held_out.rows_N3L.shape == (3, 3, SEQ_LEN) and held_out.num_documents == 3
    assert (held_out.rows_N3L[:, 2] != -100).all()


# --------------------------------------------------------------------------------------- bytes


def test_bytes_are_those_of_the_text_that_is_predicted(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    """By hand. Without BOS nothing predicts the first token, here the first byte of each text."""
    texts = ["é", "🙂b", "日本", ""]
    assert [len(ids) for ids in encode_all(tokenizer, texts)] == [3, 6, 7, 1], "one token a byte"
    held_out = load(data, write_set(tmp_path, texts), tokenizer)
    assert held_out.num_bytes == 1 + 4 + 5
    assert held_out.num_labels == 2 + 5 + 6, "EOS is predicted, and no text"
    assert held_out.bits_per_byte(1.0) == pytest.approx(13 / 0.6931471805599453 / 10)


def test_bos_lets_the_first_token_be_predicted_and_truncation_nothing_after_the_cut(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    folder = tmp_path / "with_bos"
    save_bpe_tokenizer(folder, [], vocab_size=257)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<s>"])
    backend.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|endoftext|>", "bos_token": "<s>"}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / file).write_text(json.dumps(names))
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(folder))
    config, num_bytes = write_set(tmp_path), sum(len(text.encode()) for text in TEXTS)
    always = replace(data, bos="always")
    assert load(always, config, tokenizer).num_bytes == num_bytes
    held_out = load(replace(always, long_documents="truncate"), config, tokenizer)
    # [BOS] and SEQ_LEN - 1 bytes are read, SEQ_LEN bytes predicted.
    assert held_out.num_bytes == sum(min(len(text.encode()), SEQ_LEN) for text in TEXTS)


def test_token_ids_have_the_rows_and_bytes_of_their_texts(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    text = load(data, write_set(tmp_path), tokenizer)
    path = write_parquet(tmp_path / "ids.parquet", {"ids": encode_all(tokenizer)})
    config = ValidationSetConfig(name="ids", path=str(path), tokens="ids")
    ids = load(data, config, tokenizer)
    assert np.array_equal(text.rows_N3L, ids.rows_N3L)
    assert (text.num_bytes, text.num_labels) == (ids.num_bytes, ids.num_labels)


def save_llama_like(folder: Path, decoder: decoders.Decoder | None) -> HuggingFaceTokenizer:
    """As SentencePiece has it: a space before the text, unknown characters as bytes."""
    folder.mkdir()
    characters = ["▁", *"abcdefghijklmnopqrstuvwxyz", "é"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *bytes_, *characters, "▁a", "▁ab"])}
    merges = [("▁", "a"), ("▁a", "b")]
    backend = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoder
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("[tool]", normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return HuggingFaceTokenizer(tokenizer_path=str(folder))


LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)]
)


@pytest.mark.parametrize("text", ["ab abc", "a🙂 é日", "b ab [tool]ab", " a", "日"])
def test_byte_fallback_and_spaces_of_a_decoder_count_as_they_are_decoded(
    tmp_path: Path, text: str
) -> None:
    """With BOS all that is decoded; without, what follows the first token."""
    tokenizer = save_llama_like(tmp_path / "t", LLAMA)
    backend = tokenizer.tokenizer
    for bos in ("always", "never"):
        encoder = Encoder(tokenizer, bos)
        token_bytes = build_token_bytes(backend, encoder)
        assert token_bytes is not None
        tokens = encoder.encode(text)
        row_3L = np.stack([tokens[:-1], np.arange(len(tokens) - 1), tokens[1:]])
        whole, first = (len(backend.decode(ids).encode()) for ids in (tokens, tokens[:1]))
        assert whole == len(text.encode()) + text.count("[tool]a"), "a space is put in there"
        assert token_bytes.count(row_3L) == whole - first, bos


def test_without_a_decoder_there_are_no_bits_per_byte_and_the_log_says_so(
    tmp_path: Path, data: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = save_llama_like(tmp_path / "t", None)
    held_out = load(data, write_set(tmp_path, ["ab"]), tokenizer)
    assert held_out.num_bytes is None and held_out.bits_per_byte(1.0) is None
    assert "no bits_per_byte: the tokenizer has no decoder" in caplog.text


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("texts", [[""], ["", ""]])
def test_a_set_without_tokens_is_an_error_that_names_it(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer, texts: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"^validation\.sets\[0\] \(mixed\) has no tokens"):
        load(data, write_set(tmp_path, texts), tokenizer)


def test_bad_documents_are_named_or_passed_over_and_counted(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = write_jsonl(tmp_path / "set.jsonl", [{"text": "x" * SEQ_LEN}, {"text": 3}, {"text": 4}])
    config = ValidationSetConfig(name="mixed", path=str(path))
    with pytest.raises(ValueError, match=r"^validation\.sets\[0\]\.text \(text\) .*set\.jsonl:2"):
        load(data, config, tokenizer)
    assert load(replace(data, on_error="skip"), config, tokenizer).num_documents == 1
    assert "Validation set mixed: skipped 2 bad documents" in caplog.text


def test_a_wrong_field_names_the_set(
    tmp_path: Path, data: DataConfig, tokenizer: HuggingFaceTokenizer
) -> None:
    config = replace(write_set(tmp_path), text="body")
    with pytest.raises(ValueError, match=r"^validation\.sets\[0\]\.text \(body\) is not a field"):
        load(replace(data, on_error="skip"), config, tokenizer)


def test_what_training_reads_is_no_held_out_set_and_sets_may_share(tmp_path: Path) -> None:
    lines, other = (
        write_jsonl(tmp_path / name, [{"text": "a"}]) for name in ("a.jsonl", "b.jsonl")
    )
    (tmp_path / "link.jsonl").symlink_to(lines)
    hub = write_jsonl(tmp_path / "hub" / "train.jsonl", [{"text": "a"}])

    def check(source: str, *sets: dict[str, str]) -> None:
        configs = [
            ValidationSetConfig(**({"name": str(i)} | entry)) for i, entry in enumerate(sets)
        ]
        check_sources(DataConfig(sources=[SourceConfig(path=source)]), configs)

    check(str(lines), {"path": str(other)}, {"path": str(other)})
    folder = f"hf://{hub.parent}"
    check(folder, {"path": folder, "split": "validation"})
    for source, path in (
        (str(lines), str(lines)),
        (str(lines), str(tmp_path / "*.jsonl")),
        (str(lines), str(tmp_path / "link.jsonl")),
        (folder, folder),
        (folder, str(hub)),
        (str(hub), folder),
        ("hf://owner/name", "hf://owner/name@main"),
    ):
        message = r"^validation\.sets\[1\]\.path .*data\.sources\[0\] has: training would read"
        with pytest.raises(ValueError, match=message):
            check(source, {"path": str(other)}, {"path": path})


BAD = [
    ("[{path = 'x'}]", "validation.sets.name is not set in every [[validation.sets]]."),
    ("[{name = 'a'}]", "validation.sets.path is not set in every [[validation.sets]]."),
    ("[{name = 'a', path = 'x'}, {name = 'a', path = 'y'}]",
     'validation.sets: 2 sets are called "a". Give each its own name.'),
    ("[{name = 'a/b', path = 'x'}]",
     "validation.sets[0].name (a/b) must consist of letters, digits and . _ -. Rename it."),
    ("[{name = '', path = 'x'}]",
     "validation.sets[0].name () must consist of letters, digits and . _ -. Rename it."),
    ("[{name = 'a', path = 'x', text = 't', tokens = 'u'}]",
     "validation.sets[0].text (t) must be left out, as validation.sets[0].tokens is given."),
    ("[{name = 'a', path = 'x', limit = 0}]", "validation.sets[0].limit (0) must be at least 1."),
    ("[{name = 'a', path = 'x', split = 'test'}]",
     "validation.sets[0].split (test) must be left out, as path does not begin hf://."),
    ("[{name = 'a', path = 'x', weight = 2.0}]", "validation.sets.weight is not an option."),
    ("[{name = 'a', path = ''}]", 'validation.sets.path ("") is no path.'),
]  # fmt: skip
ENABLED = ["--model.flavor=debug", "--data.sources=[{path = 's'}]", "--validation.enable"]


@pytest.mark.parametrize(("sets", "message"), BAD)
def test_bad_tables_are_one_line_each(sets: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_settings(resolve_settings(None, [*ENABLED, f"--validation.sets={sets}"]))
    assert str(caught.value).startswith(f"command line: {message}") and "\n" not in str(
        caught.value
    )


def test_with_sets_alone_a_number_of_steps_has_no_effect() -> None:
    sets = "--validation.sets=[{name = 'a', path = 'x'}]"
    check_settings(resolve_settings(None, [*ENABLED, sets, "--validation.steps=-1"]))
    with pytest.raises(SettingsError, match=r"validation\.steps \(2\) has no effect while valida"):
        resolve_settings(None, [*ENABLED, sets, "--validation.steps=2"])
    with_held_out = [*ENABLED, sets, "--validation.steps=2", "--data.validation_fraction=0.1"]
    check_settings(resolve_settings(None, with_held_out))


def test_validation_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"validation\.enable \(true\) needs documents that"):
        check_settings(resolve_settings(None, ENABLED))


def test_a_file_with_sets_is_saved_and_read_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saved = tmp_path / "run.toml", tmp_path / "saved.toml"
    run.write_text(
        '[model]\nflavor = "debug"\n[[data.sources]]\npath = "s.txt"\n[validation]\nenable = true\n'
        '[[validation.sets]]\nname = "pile"\npath = "$SETS/pile.jsonl"\nlimit = 7\n'
        '[[validation.sets]]\nname = "ids"\npath = "~/ids.parquet"\ntokens = "input_ids"\n'
        '[[validation.sets]]\nname = "here"\npath = "here.txt"\n'
    )
    monkeypatch.setenv("SETS", "sets")
    monkeypatch.setenv("HOME", "/home/me")
    settings = resolve_settings(str(run), [])
    settings = replace(settings, values=anchor_paths(settings.values))
    save_settings(settings, saved)
    again = resolve_settings(str(saved), [])
    assert again.values == settings.values
    assert build_validation_sets(again) == [
        ValidationSetConfig(name="pile", path=f"{Path.cwd()}/sets/pile.jsonl", limit=7),
        ValidationSetConfig(name="ids", path="/home/me/ids.parquet", tokens="input_ids"),
        ValidationSetConfig(name="here", path=f"{Path.cwd()}/here.txt"),
    ]
