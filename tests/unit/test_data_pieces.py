"""Long texts in pieces: the tokens of the whole, for every kind of tokenizer, at a bounded cost."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data.corpus import stdlib_folder
from recipes.data.encoder import Encoder
from recipes.data.order import Order
from recipes.data.packing import PackedSource
from recipes.data.pieces import tokenize_pieces
from tests.unit.data_samples import Texts

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FOREIGN = "\u4f60\u597d na\u00efve e\u0301 \ufb01n \U0001f600 </s> "


@functools.cache
def prose() -> str:
    """100,000 characters of code and its comments."""
    files = sorted(stdlib_folder().glob("*.py"))[:20]
    return "".join(file.read_text(encoding="utf-8") for file in files)[:100_000]


def train(model: Any, trainer: Any, **parts: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    numbers = " ".join(map(str, range(100, 1000))) + " "
    tokenizer.train_from_iterator([prose()[:30_000], FOREIGN * 20, numbers * 20], trainer)
    return tokenizer


def train_bpe(**parts: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=ALPHABET, show_progress=False)
    return train(models.BPE(), trainer, decoder=decoders.ByteLevel(), **parts)


def gpt_2() -> Tokenizer:
    processor = processors.ByteLevel(trim_offsets=True)
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train_bpe(pre_tokenizer=pre_tokenizer, post_processor=processor)


def prefix_space() -> Tokenizer:
    return train_bpe(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))


def llama_3() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return train_bpe(pre_tokenizer=pre_tokenizers.Sequence([split, level]))


def llama_2() -> Tokenizer:
    """No pre-tokenizer: a text is one word. Gemma's is the same without the prefix."""
    trainer = trainers.BpeTrainer(
        vocab_size=1700, special_tokens=["<unk>", *BYTES], show_progress=False
    )
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = train(model, trainer, pre_tokenizer=pre_tokenizers.Metaspace())
    content = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    space = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
    return tokenizer


def gemma() -> Tokenizer:
    tokenizer = llama_2()
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    return tokenizer


def unigram() -> Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=600, show_progress=False, unk_token="<unk>")
    pre_tokenizer = pre_tokenizers.Metaspace()
    return train(
        models.Unigram(), trainer, pre_tokenizer=pre_tokenizer, normalizer=normalizers.NFKC()
    )


def word_piece() -> Tokenizer:
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[UNK]"], show_progress=False
    )
    return train(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        normalizer=normalizers.BertNormalizer(),
    )


def unigram_with_ties() -> Tokenizer:
    """Within a word, the rounding of sums from its beginning decides between equal scores."""
    scores = [("<unk>", -50.0), ("=", -1.0949115677297283), ("==", -2.1898231354589126)]
    return Tokenizer(models.Unigram([*scores, ("====", -4.379646270918913)], 0))


KINDS = [gpt_2, prefix_space, llama_3, llama_2, gemma, unigram, unigram_with_ties, word_piece]
TEXTS: dict[str, Callable[[], str]] = {
    "prose": prose,
    "foreign": lambda: FOREIGN * 2000,
    "one letter": lambda: "x" * 50_001,
    "two letters": lambda: "ab" * 25_001,
    "spaces": lambda: " " * 30_000 + "a" + " " * 30_001,
    "lines": lambda: "\n" * 30_000 + "\r\n" * 10_000,
    "rules": lambda: ("=" * 79 + "\n") * 600,
    "digits": lambda: "".join(str(i * i * 7919 % 99991) for i in range(10_000)),
    "zeros": lambda: "\0" * 30_000,
    "mixed": lambda: (FOREIGN + prose()[:5000] + "  " * 1500 + "7" * 2500) * 4,
    "short": lambda: "a few words",
    "empty": lambda: "",
}


@functools.cache
def backend(kind: Callable[[], Tokenizer]) -> Tokenizer:
    tokenizer = kind()
    tokenizer.add_special_tokens([AddedToken("</s>", lstrip=True)])
    return tokenizer


class Counting:
    """A backend that counts the characters it encodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.model = tokenizer, tokenizer.model
        self.num_chars = 0

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        self.num_chars += len(text)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_are_the_tokens_of_the_whole(kind: Any, text: str) -> None:
    whole = backend(kind).encode(TEXTS[text](), add_special_tokens=False).ids
    pieces = [*tokenize_pieces(backend(kind), TEXTS[text](), 2**13, 2**9)]
    assert np.concatenate(pieces).tolist() == whole
    if text == "prose" and kind != unigram_with_ties:  # all of it is one word
        assert len(pieces) >= 10


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != unigram_with_ties])
def test_pieces_cost_what_is_asked_for_and_all_of_them_little_more_than_the_text(kind: Any) -> None:
    counting = Counting(backend(kind))
    pieces = tokenize_pieces(counting, prose(), 2**13, 2**9)
    next(pieces)
    assert counting.num_chars <= 4 * 2**13
    for _ in pieces:
        pass
    assert counting.num_chars <= 1.5 * len(prose())


class Remembering:
    """A backend whose tokens depend on all that comes before: windows seldom agree."""

    model = None

    def encode(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        places = range(len(text))
        return SimpleNamespace(
            ids=[place % 11 for place in places],
            offsets=[(place, place + 1) for place in places],
            word_ids=[*places],
        )


@pytest.mark.parametrize("num_chars", [10_000, 30_001])
def test_windows_that_do_not_agree_are_not_joined(num_chars: int) -> None:
    pieces = [*tokenize_pieces(Remembering(), "x" * num_chars, 2**11, 2**8)]
    assert np.concatenate(pieces).tolist() == [place % 11 for place in range(num_chars)]


class Whole:
    """A tokenizer around a backend, with a folder."""

    default_add_bos = False

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.tokenizer_path, self.tokenizer = str(folder), tokenizer


@pytest.mark.parametrize("truncates", [False, True])
def test_a_row_of_a_long_document_costs_a_window_and_rows_continue_at_any_token(
    truncates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    encoder = Encoder(Whole(tmp_path, backend(gpt_2)))
    long = prose() * 12
    expected = encoder.encode(long)
    counting = Counting(backend(gpt_2))
    monkeypatch.setattr(encoder, "_backend", counting)
    documents = Texts([long, "end"])
    order = Order(2, 1, shuffle=False)
    source = PackedSource(documents, encoder, order, seq_len=512, num_epochs=1, truncates=truncates)
    stream = source.open_stream(0)
    row = stream.next_row()
    assert row is not None and row.row_3L[0].tolist() == expected[:512].tolist()
    assert counting.num_chars <= 2 * 2**18
    if truncates:
        assert source.count_tokens(1).tolist() == [512 + len(encoder.encode("end")) - 1]
        return
    inputs, cursors = [row.row_3L[0]], [row.cursor]
    while (row := stream.next_row()) is not None:
        inputs.append(row.row_3L[0])
        cursors.append(row.cursor)
    drawn = len(inputs) * 512
    assert np.concatenate(inputs).tolist() == expected[:drawn].tolist()
    assert drawn <= len(expected) - 1 < drawn + 512
    assert counting.num_chars <= 1.1 * len(long)
    middle = len(cursors) // 2
    again = source.open_stream(0, cursors[middle]).next_row()
    assert again is not None and (again.row_3L[0] == inputs[middle + 1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_documents_ids_are_those_of_transformers(kind: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = kind()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    template = processors.TemplateProcessing("<s> $A </s>", None, special)
    tokenizer.post_processor = template
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for rule, head in (("auto", [special[0][1]]), ("always", [special[0][1]]), ("never", [])):
        encoder = Encoder(HuggingFaceTokenizer(tokenizer_path=str(tmp_path)), rule)
        for text in ("a few words", "  ", prose(), TEXTS["mixed"]() * 10):
            expected = theirs.encode(text, add_special_tokens=False)
            assert encoder.tokenize(text).tolist() == expected
            own = expected[:-1] if expected[-1:] == [encoder.eos_id] else expected
            framed = [*head, *own] if own else []
            assert encoder.encode(text).tolist() == [*framed, encoder.eos_id]
