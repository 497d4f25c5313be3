"""BOS and EOS: once each where they belong, with the kinds of tokenizers there are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data.encoder import Encoder
from recipes.data.records import BadDocumentError
from recipes.data.tokenizer import check_tokenizer

BOS, EOS, ONE, TWO = 0, 1, 2, 3
VOCAB = {"<s>": BOS, "</s>": EOS, "one": ONE, "two": TWO, "a": 4, "[CLS]": 5}
LLAMA, BOTH, T5, BERT = "<s> $A", "<s> $A </s>", "$A </s>", "[CLS] $A"


def make_tokenizer(
    folder: Path, template: str | None = None, state: dict[str, Any] | None = None, **config: Any
) -> HuggingFaceTokenizer:
    """Words; `template` is what the post-processor makes of a text, `state` what else is saved in
    tokenizer.json."""
    tokenizer = Tokenizer(models.WordLevel(VOCAB, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "[CLS]"])
    if template is not None:
        special = [(token, VOCAB[token]) for token in template.split() if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(template, None, special)
    content = json.loads(tokenizer.to_str()) | (state or {})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {"eos_token": "</s>", "bos_token": "<s>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return HuggingFaceTokenizer(tokenizer_path=str(folder))


@pytest.mark.parametrize(
    ("template", "config", "has_bos"),
    [
        (None, {}, False),
        (LLAMA, {}, True),
        (BOTH, {}, True),
        (T5, {}, False),
        (None, {"add_bos_token": True}, True),
        (LLAMA, {"add_bos_token": True, "add_eos_token": True}, True),
    ],
)
@pytest.mark.parametrize("text", ["one two", "<s>one two", "one two</s>", "<s> <s> one two </s>"])
def test_text_is_framed_once_whatever_the_tokenizer_adds_or_the_text_spells(
    tmp_path: Path, template: str | None, config: dict[str, Any], has_bos: bool, text: str
) -> None:
    tokenizer = make_tokenizer(tmp_path, template, **config)
    for rule, bos in (("auto", has_bos), ("always", True), ("never", False)):
        encoder = Encoder(tokenizer, rule)
        assert encoder.adds_bos == bos
        assert encoder.encode(text).tolist() == [BOS] * bos + [ONE, TWO, EOS]


def test_a_tokenizer_without_bos_adds_none_even_if_its_file_says_so(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, T5, bos_token=None, add_bos_token=True)
    for rule in ("auto", "never"):
        assert Encoder(tokenizer, rule).encode("one two").tolist() == [ONE, TWO, EOS]


@pytest.mark.parametrize(
    "tokens", [[ONE, TWO], [BOS, ONE, TWO], [ONE, TWO, EOS], [BOS, ONE, TWO, EOS, EOS]]
)
def test_token_ids_are_framed_like_text(tmp_path: Path, tokens: list[int]) -> None:
    tokenizer = make_tokenizer(tmp_path, LLAMA)
    value = np.array(tokens)
    assert Encoder(tokenizer, "auto").encode(value).tolist() == [BOS, ONE, TWO, EOS]
    assert Encoder(tokenizer, "never").encode(value).tolist() == [ONE, TWO, EOS]
    assert value.tolist() == tokens


def test_what_stands_within_a_document_stays(tmp_path: Path) -> None:
    encoder = Encoder(make_tokenizer(tmp_path, LLAMA))
    assert encoder.encode("one </s> <s> two").tolist() == [BOS, ONE, EOS, BOS, TWO, EOS]


@pytest.mark.parametrize("template", [None, BOTH])
def test_an_empty_document_is_nothing_but_eos(tmp_path: Path, template: str | None) -> None:
    encoder = Encoder(make_tokenizer(tmp_path, template), "always")
    for empty in ("", "</s>", np.zeros(0, np.int64), np.array([BOS, EOS])):
        tokens = encoder.encode(empty)
        assert tokens.tolist() == [EOS] and tokens.dtype == np.int64


def test_bos_and_eos_of_one_id_both_stand_where_they_belong(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, bos_token="</s>")
    assert Encoder(tokenizer).encode("one").tolist() == [ONE, EOS]
    assert Encoder(tokenizer, "always").encode("one</s>").tolist() == [EOS, ONE, EOS]


@pytest.mark.parametrize(
    ("options", "bos", "message"),
    [
        ({"eos_token": None}, "auto", r"^tokenizer\.path: the tokenizer has no EOS, the label"),
        ({"bos_token": None}, "always", r"^data\.bos \(always\) needs a tokenizer with BOS\. Na"),
        ({"template": BERT}, "auto", r"^tokenizer\.path: the tokenizer adds the tokens \[5\] to"),
        ({"template": "<s> <s> $A"}, "auto", r"adds the tokens \[0, 0\] to each text, more than"),
        ({"template": "</s> $A"}, "auto", r"adds the tokens \[1\] to each text, more than BOS and"),
        (
            {"template": LLAMA, "bos_token": None},
            "never",
            r"adds the tokens \[0\] .* or name them as",
        ),
    ],
)
def test_a_tokenizer_that_cannot_frame_documents_is_an_error(
    tmp_path: Path, options: dict[str, Any], bos: Any, message: str
) -> None:
    tokenizer = make_tokenizer(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        Encoder(tokenizer, bos)


@pytest.mark.parametrize("token", [-1, 6, 2**62])
def test_a_token_id_that_the_tokenizer_has_not_is_bad(tmp_path: Path, token: int) -> None:
    encoder = Encoder(make_tokenizer(tmp_path))
    with pytest.raises(BadDocumentError, match=rf"the token id {token}, but .* 0 to 5\. Name"):
        encoder.encode(np.array([ONE, token]))


PADDING = {"direction": "Right", "pad_id": 4, "pad_type_id": 0, "pad_token": "a"}
STATES: dict[str, tuple[dict[str, Any], str]] = {
    "padded to a multiple": (
        {"padding": PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": 8}},
        r"^tokenizer\.path: the tokenizer fills up texts to its own length\. Set \"padding\"",
    ),
    "padded to the longest, which changes nothing by itself": (
        {"padding": PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": None}},
        r"^tokenizer\.path: the tokenizer fills up texts to its own length\. Set \"padding\"",
    ),
    "padded to a length": (
        {"padding": PADDING | {"strategy": {"Fixed": 4}, "pad_to_multiple_of": None}},
        r"^tokenizer\.path: the tokenizer fills up texts to its own length\. Set \"padding\"",
    ),
    "cut": (
        {
            "truncation": {
                "direction": "Right",
                "max_length": 4,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        },
        r"^tokenizer\.path: the tokenizer cuts texts at its own length\. Set \"truncation\"",
    ),
    "dropout": (
        {"model": {"type": "BPE", "dropout": 0.1, "vocab": VOCAB, "merges": []}},
        r"^tokenizer\.path: the tokenizer leaves out merges at random \(.*Set \"dropout\" of",
    ),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("template", [None, BOTH])
def test_a_saved_state_that_would_be_part_of_documents_is_an_error_with_its_own_remedy(
    state: str, template: str | None, tmp_path: Path
) -> None:
    content, message = STATES[state]
    tokenizer = make_tokenizer(tmp_path, template, state=content)
    with pytest.raises(ValueError, match=message) as error:
        Encoder(tokenizer)
    assert "\n" not in str(error.value)


NEW = {"content": "<x>", "special": True}
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "additional_special_tokens": ("tokenizer_config.json", {"additional_special_tokens": ["<x>"]}),
    "extra_special_tokens": ("tokenizer_config.json", {"extra_special_tokens": {"x": "<x>"}}),
    "the map": ("special_tokens_map.json", {"additional_special_tokens": [NEW]}),
    "added_tokens.json": ("added_tokens.json", {"<x>": 6}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_token_that_only_transformers_would_add_is_an_error(name: str, tmp_path: Path) -> None:
    """It would make other tokens of a text that spells it."""
    file, content = FILES[name]
    is_config = file == "tokenizer_config.json"
    tokenizer = make_tokenizer(tmp_path, **content if is_config else {})
    if not is_config:
        (tmp_path / file).write_text(json.dumps(content))
    message = (
        rf"^tokenizer\.path: .*{file} adds the token <x>, which tokenizer\.json has not\. Save"
    )
    with pytest.raises(ValueError, match=message):
        Encoder(tokenizer)


def test_a_token_that_tokenizer_json_has_may_be_named_again(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[CLS]": 5}))
    Encoder(make_tokenizer(tmp_path, additional_special_tokens=["[CLS]", {"content": "<s>"}]))


def test_special_tokens_that_are_cut_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split_special_tokens\)\. Set it to false"):
        Encoder(make_tokenizer(tmp_path, split_special_tokens=True))


@pytest.mark.parametrize("own", [True, False])
def test_two_answers_on_the_prefix_space_are_an_error(own: bool, tmp_path: Path) -> None:
    """Versions and classes of transformers take one or the other."""
    level = {"type": "ByteLevel", "add_prefix_space": own, "trim_offsets": True, "use_regex": True}
    state = {"pre_tokenizer": level}
    with pytest.raises(
        ValueError, match=r"^tokenizer\.path: add_prefix_space is .*Correct the wrong"
    ):
        Encoder(make_tokenizer(tmp_path, state=state, add_prefix_space=not own))
    Encoder(make_tokenizer(tmp_path, state=state, add_prefix_space=own))
    Encoder(make_tokenizer(tmp_path, state=state))


def test_a_dropout_of_zero_is_none(tmp_path: Path) -> None:
    model = {"type": "BPE", "dropout": 0.0, "vocab": VOCAB, "merges": []}
    assert Encoder(make_tokenizer(tmp_path, state={"model": model})).encode("a").tolist() == [
        4,
        EOS,
    ]


DECODER = {"1": {"content": "</s>", "special": True}}


@pytest.mark.parametrize(
    ("config", "tokens", "eos", "bos"),
    [
        ({"eos_token": None, "bos_token": None}, {"eos_token": "</s>"}, EOS, None),
        ({"eos_token": None}, {"eos_token": {"content": "</s>", "lstrip": False}}, EOS, BOS),
        ({"eos_token": "a"}, {"eos_token": "</s>", "bos_token": "[CLS]"}, EOS, 5),
        ({"eos_token": "</s>", "added_tokens_decoder": DECODER}, {"eos_token": "a"}, EOS, BOS),
        ({"eos_token": {"content": "</s>", "__type": "AddedToken"}}, {"pad_token": "a"}, EOS, BOS),
        ({"eos_token": None}, {"eos_token": "two"}, TWO, BOS),
        ({"eos_token": None}, {"eos_token": "<eos>"}, 6, BOS),
    ],
)
def test_bos_and_eos_are_the_tokens_that_transformers_finds_in_the_folder(
    config: dict[str, Any], tokens: dict[str, Any], eos: int, bos: int | None, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = make_tokenizer(tmp_path, **config)
    check_tokenizer(str(tmp_path))
    encoder = Encoder(tokenizer)
    assert (encoder.eos_id, encoder.bos_id) == (eos, bos)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.bos_token_id) == (eos, bos)
    text = "one two [CLS] <eos> a"
    expected = theirs.encode(text, add_special_tokens=False)
    assert encoder.tokenize(text).tolist() == expected


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("tokens", [1.5, True, "<x>", 7])
def test_further_tokens_that_are_no_list_are_an_error(
    tokens: Any, file: str, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(tmp_path)
    (tmp_path / file).write_text(
        json.dumps({"eos_token": "</s>", "additional_special_tokens": tokens})
    )
    with pytest.raises(ValueError, match=rf"{file} has .* as additional_special_tokens, which is"):
        Encoder(tokenizer)


def test_a_configuration_that_is_nested_too_deeply_is_an_error(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"^tokenizer\.path: .*config\.json is not valid JSON \("):
        check_tokenizer(str(tmp_path))


@pytest.mark.parametrize("token", [5, [], {"lstrip": True}, "", "\ud800"])
def test_a_name_of_no_token_is_an_error(token: Any, tmp_path: Path) -> None:
    make_tokenizer(tmp_path, eos_token=None)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": token}))
    with pytest.raises(
        ValueError, match=r"^tokenizer\.path: .* as eos_token, which is no token\. W"
    ):
        check_tokenizer(str(tmp_path))
