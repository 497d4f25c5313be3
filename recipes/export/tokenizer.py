"""The tokenizer of an exported folder: by default transformers does to a text what training did.

Training reads tokenizer.json and nothing else of how a text is cut. transformers has classes that
build it anew by rules of their own, which differ between its versions, and that take BOS from
tokenizer_config.json (most of version 4) or from tokenizer.json (version 5). Here all of them find
the same.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from recipes.data.encoder import Encoder
from recipes.export.record import digest_files, digest_json
from recipes.export.writer import write_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)

# Of tokenizer_config.json: code of the folder it comes from, and what overrides tokenizer.json.
_DROPPED = ("auto_map", "add_prefix_space")
_PROBE = "a"


def write_tokenizer(folder: Path, encoder: Encoder) -> None:
    """The files of the tokenizer that `encoder` uses, set so that by default a text begins with BOS
    if documents do, and never ends with EOS: a prompt is to be continued."""
    for name in TOKENIZER_FILES:
        if (encoder.folder / name).is_file():
            shutil.copyfile(encoder.folder / name, folder / name)  # without its mode
    state = json.loads((folder / "tokenizer.json").read_bytes())
    if not _adds_only_bos(folder, encoder):
        state["post_processor"] = _build_post_processor(state["post_processor"], encoder)
        content = json.dumps(state, ensure_ascii=False, indent=2)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_bytes())
    config = {key: value for key, value in config.items() if key not in _DROPPED}
    # transformers 4 would set it to false.
    if "add_prefix_space" in (state["pre_tokenizer"] or {}):
        config["add_prefix_space"] = state["pre_tokenizer"]["add_prefix_space"]
    config |= {
        # The class that takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": encoder.adds_bos,
        "add_eos_token": False,
    }
    # By default transformers 4 adds token_type_ids, which generate() of a decoder refuses.
    write_json(path, {"model_input_names": ["input_ids", "attention_mask"]} | config)


def digest_tokenizer(encoder: Encoder) -> str:
    """SHA-256 of what `write_tokenizer` writes from."""
    files = [encoder.folder / name for name in TOKENIZER_FILES]
    content = digest_files(path for path in files if path.is_file())
    return digest_json([content, encoder.adds_bos, encoder.bos_id])


def _adds_only_bos(folder: Path, encoder: Encoder) -> bool:
    """Whether tokenizer.json already adds to a text what is wanted."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = backend.encode(_PROBE, add_special_tokens=False).ids
    bos = [encoder.bos_id] if encoder.adds_bos else []
    return backend.encode(_PROBE).ids == bos + plain


def _build_post_processor(given: dict[str, Any] | None, encoder: Encoder) -> dict[str, Any] | None:
    """One that adds BOS or nothing; of the given one what moves only offsets stays."""
    parts = given.get("processors", [given]) if given else []
    kept = [part for part in parts if part["type"] == "ByteLevel"]
    if encoder.adds_bos:
        bos = {"SpecialToken": {"id": encoder.bos_token, "type_id": 0}}
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        names = {"id": encoder.bos_token, "ids": [encoder.bos_id], "tokens": [encoder.bos_token]}
        kept.append(
            {
                "type": "TemplateProcessing",
                "single": [bos, first],
                "pair": [bos, first, second],
                "special_tokens": {encoder.bos_token: names},
            }
        )
    return kept[0] if len(kept) == 1 else {"type": "Sequence", "processors": kept} if kept else None
