"""What stock transformers does with an exported tokenizer is what training did to a document."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

import recipes.platform  # noqa: F401  first: torchtitan resolves its device once

# isort: split

from torchtitan.components.tokenizer import HuggingFaceTokenizer

from recipes.data.encoder import BosRule, Encoder
from recipes.export.tokenizer import check_can_be_written, write_tokenizer
from recipes.export.verify import check_tokenizer
from tests.unit.test_data_pieces import gemma, gpt_2, llama_2, llama_3, prefix_space

TEXT = " one <s> two  three\n caf\u00e9's</s> "
# tokenizer_class -> a tokenizer of its kind
CLASSES = {
    "GPT2TokenizerFast": gpt_2,
    "GPTNeoXTokenizerFast": prefix_space,
    "LlamaTokenizerFast": llama_2,
    "GemmaTokenizerFast": gemma,
    "PreTrainedTokenizerFast": llama_3,
}
TEMPLATES = {
    None: None,
    "BOS": ("<s> $A", "<s> $A <s> $B"),
    "EOS": ("$A </s>", "$A </s> $B </s>"),
    "both": ("<s> $A </s>", "<s> $A </s> $B </s>"),
}


def save_tokenizer(folder: Path, name: str, template: str | None, **config: Any) -> None:
    """The training tokenizer in `folder`."""
    tokenizer = CLASSES[name]()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if template:
        single, pair = TEMPLATES[template]
        ids = [
            (token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>") if token in single
        ]
        added = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
        given = tokenizer.post_processor
        tokenizer.post_processor = processors.Sequence([given, added]) if given else added
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def load(folder: Path, bos: BosRule) -> Encoder:
    return Encoder(HuggingFaceTokenizer(tokenizer_path=str(folder)), bos)


@pytest.mark.parametrize("bos", ["always", "never", "auto"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_a_text_gets_bos_by_default_if_documents_did_and_never_eos(
    name: str, config: dict[str, bool], template: str | None, bos: BosRule, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path / "ours", name, template, **config)
    (tmp_path / "exported").mkdir()
    encoder = load(tmp_path / "ours", bos)
    write_tokenizer(tmp_path / "exported", encoder)
    has_bos = {
        "always": True,
        "never": False,
        "auto": template in ("BOS", "both") or config.get("add_bos_token", False),
    }[bos]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "exported")
    plain, default = (theirs.encode(TEXT, add_special_tokens=asked) for asked in (False, True))
    document = encoder.encode(TEXT.replace("</s> ", " |")).tolist()
    trained = theirs.encode(TEXT.replace("</s> ", " |")) + [theirs.eos_token_id]
    assert document == trained
    assert plain == encoder.tokenize(TEXT).tolist()
    assert default == [theirs.bos_token_id] * has_bos + plain
    # The same tokenizer can be trained with again: it says of itself what was said for it.
    again = load(tmp_path / "exported", "auto")
    assert again.adds_bos == has_bos and again.encode("one").tolist()[-1] == theirs.eos_token_id
    # What transformers 4 and llama.cpp go by.
    written = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())
    assert (written["add_bos_token"], written["add_eos_token"]) == (has_bos, False)


@pytest.mark.parametrize("name", CLASSES)
def test_a_tokenizer_without_a_configuration_is_exported_with_one(
    name: str, tmp_path: Path
) -> None:
    """Training needs only tokenizer.json and special_tokens_map.json, of which transformers 5 does
    not read the latter."""
    ours, exported = tmp_path / "ours", tmp_path / "exported"
    save_tokenizer(ours, name, None)
    (ours / "tokenizer_config.json").unlink()
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    (ours / "special_tokens_map.json").write_text(json.dumps(names))
    exported.mkdir()
    encoder = load(ours, "always")
    check_can_be_written(encoder)
    write_tokenizer(exported, encoder)
    theirs = AutoTokenizer.from_pretrained(exported)
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")
    plain = encoder.tokenize(TEXT).tolist()
    assert theirs.encode(TEXT) == [theirs.bos_token_id, *plain]
    assert load(exported, "auto").encode("one").tolist()[-1] == theirs.eos_token_id


def test_files_that_cannot_be_exported_are_named_before_training(
    tmp_path: Path,
) -> None:
    save_tokenizer(tmp_path / "ours", "GPT2TokenizerFast", None)
    encoder = load(tmp_path / "ours", "never")
    (tmp_path / "ours" / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer\.path \(.*ours\) cannot be exported: "):
        check_can_be_written(encoder)


def test_a_tokenizer_that_says_it_already_stays_as_it_is(tmp_path: Path) -> None:
    for name, template in (("GPT2TokenizerFast", None), ("PreTrainedTokenizerFast", "BOS")):
        ours, exported = tmp_path / name, tmp_path / f"exported {name}"
        save_tokenizer(ours, name, template)
        exported.mkdir()
        write_tokenizer(exported, load(ours, "auto"))
        assert (exported / "tokenizer.json").read_bytes() == (ours / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("trained", "message"), [
    ("always", r"add_special_tokens=True to \[.*\] after 0 tokens, where training has \["),
    ("never", r"add_special_tokens=True to \["),
])  # fmt: skip
def test_a_folder_that_says_otherwise_about_bos_is_noticed(
    trained: BosRule, message: str, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path / "ours", "GPT2TokenizerFast", None)
    other: BosRule = "never" if trained == "always" else "always"
    (tmp_path / "exported").mkdir()
    write_tokenizer(tmp_path / "exported", load(tmp_path / "ours", other))
    encoder = load(tmp_path / "ours", trained)
    bos_id = encoder.bos_id if encoder.adds_bos else None
    rows = [encoder.tokenize(TEXT).tolist()]
    with pytest.raises(ValueError, match=message) as raised:
        check_tokenizer(tmp_path / "exported", [TEXT], rows, bos_id)
    assert "\n" not in str(raised.value)


def test_what_runs_code_or_overrides_tokenizer_json_stays_behind(tmp_path: Path) -> None:
    save_tokenizer(
        tmp_path / "ours", "LlamaTokenizerFast", "BOS", auto_map={"AutoTokenizer": ["a.B", None]},
        add_prefix_space=False, chat_template="{{ messages }}",
    )  # fmt: skip
    (tmp_path / "exported").mkdir()
    encoder = load(tmp_path / "ours", "auto")
    write_tokenizer(tmp_path / "exported", encoder)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert theirs.encode(TEXT, add_special_tokens=False) == encoder.tokenize(TEXT).tolist()
    assert theirs.chat_template == "{{ messages }}"
