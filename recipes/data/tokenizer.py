"""The tokenizer folder: what `[tokenizer] path` means, and the one trained on the embedded corpus.

Imports neither torch nor, before it trains, `tokenizers`.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.characters import is_utf8
from recipes.data.config import EMBEDDED_TOKENIZER
from recipes.data.corpus import compute_record, find_corpus_files
from recipes.data.sources import is_validation

EOS_TOKEN = "<|endoftext|>"

_VOCAB_SIZE = 8192
_HELD_OUT = 0.1
"""The tokenizer is not trained on this share of the documents, so that those of any
data.validation_fraction up to this are new to it too, and one tokenizer serves all of them."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files that change what a text's tokens are."""

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def check_tokenizer(path: str) -> None:
    """Raise ValueError, one line, unless `path` is a tokenizer folder that TorchTitan can load.

    Trains nothing: for the embedded tokenizer only its corpus must be there.
    """
    if path == EMBEDDED_TOKENIZER:
        find_corpus_files()
        return
    rule = f"Give a Hugging Face tokenizer folder or {EMBEDDED_TOKENIZER}."
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"tokenizer.path ({path}) is not a folder. {rule}")
    if not (folder / "tokenizer.json").is_file():
        # TorchTitan reads vocab.json and vocab.txt too, but not to transformers' tokens.
        raise ValueError(
            f"tokenizer.path ({path}) has no tokenizer.json. {rule} Of a folder with only a "
            "vocabulary, transformers' AutoTokenizer makes one: from_pretrained, save_pretrained."
        )
    if "eos_token" not in read_special_tokens(folder):
        raise ValueError(
            f"tokenizer.path ({path}): neither tokenizer_config.json nor special_tokens_map.json "
            'names an eos_token, the label of each document\'s last token. Add "eos_token" to '
            "tokenizer_config.json."
        )


def digest_tokenizer(folder: Path) -> dict[str, str]:
    """File -> digest of its content, of those that change what a text's tokens are. Equal for
    copies, wherever they are and whenever they were made."""
    return {
        name: hashlib.blake2b((folder / name).read_bytes(), digest_size=16).hexdigest()
        for name in TOKENIZER_FILES
        if (folder / name).is_file()
    }


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Which token is `eos_token`, `bos_token`, ...: of those that are named, as transformers finds
    them. special_tokens_map.json comes before tokenizer_config.json, but does not count if that
    has `added_tokens_decoder`. Raises ValueError if a file cannot be read."""
    names = _read_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in names:
        names |= _read_object(folder / "special_tokens_map.json")
    tokens = {name: names[name] for name in _SPECIAL_TOKENS if names.get(name) is not None}
    for name, token in tokens.items():
        content = token.get("content") if isinstance(token, dict) else token
        if not isinstance(content, str) or not content or not is_utf8(content):
            raise ValueError(
                f"tokenizer.path: {folder} names {json.dumps(token)} as {name}, which is no token. "
                "Write it as a string."
            )
        tokens[name] = content
    return tokens


def read_further_tokens(folder: Path) -> dict[str, str]:
    """Token -> the file that names it: what transformers adds to a tokenizer beside
    `read_special_tokens`. Raises ValueError if a file cannot be read."""
    found: dict[str, str] = {}
    files = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
    if "added_tokens_decoder" in _read_object(folder / files[0]):  # which TorchTitan adds
        files = files[:1]
    for file in files:
        names = _read_object(folder / file)
        listed: list[Any] = [*names] if file == "added_tokens.json" else []
        for key in ("additional_special_tokens", "extra_special_tokens"):
            entries = names.get(key) or []
            if not isinstance(entries, list | dict):
                raise ValueError(
                    f"tokenizer.path: {folder / file} has {json.dumps(entries)} as {key}, which is "
                    "no list of tokens. Correct it."
                )
            listed += entries.values() if isinstance(entries, dict) else entries
        for token in listed:
            content = token.get("content") if isinstance(token, dict) else token
            found[str(content)] = file
    return found


def read_split_rules(folder: Path) -> dict[str, Any]:
    """Of tokenizer_config.json: what classes of transformers let change how a text is cut."""
    names = _read_object(folder / "tokenizer_config.json")
    return {key: names.get(key) for key in ("split_special_tokens", "add_prefix_space")}


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"tokenizer.path: {path} is not valid JSON ({error}). Correct or replace the file."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"tokenizer.path: {path} is not a JSON object. Replace the file.")
    return content


def resolve_tokenizer_path(path: str) -> str:
    """The folder to load: `path` itself, or the embedded tokenizer's, trained if need be."""
    return str(load_embedded_tokenizer_dir()) if path == EMBEDDED_TOKENIZER else path


def load_embedded_tokenizer_dir() -> Path:
    """Folder of the byte-level BPE of the embedded corpus; the first call trains it (seconds).

    Lies in $XDG_CACHE_HOME/nitp (default ~/.cache/nitp) under a hash of corpus and settings. Safe
    with concurrent ranks and after an interrupted run: only a complete folder gets the name. Raises
    ValueError where it cannot be written.
    """
    settings = json.dumps(
        {
            "kind": "byte-level BPE",
            "vocab_size": _VOCAB_SIZE,
            "eos": EOS_TOKEN,
            "held_out": _HELD_OUT,
            "corpus": compute_record().hash,
        },
        sort_keys=True,
    )
    digest = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "nitp"
    if cache.parts[0].startswith("~"):  # a container's user may have no home
        raise ValueError(
            f"tokenizer.path ({EMBEDDED_TOKENIZER}) cannot be kept in {cache}, which names no home "
            "directory. Set XDG_CACHE_HOME to a folder that can be written to."
        )
    folder = cache / f"tokenizer-{digest}"
    if not folder.is_dir():
        try:
            _train_embedded_tokenizer(folder)
        except OSError as error:
            raise ValueError(
                f"tokenizer.path ({EMBEDDED_TOKENIZER}) cannot be kept in {cache}: {error}. Set "
                "XDG_CACHE_HOME to a folder that can be written to."
            ) from error
    return folder


def _train_embedded_tokenizer(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        draft = Path(temporary, folder.name)
        texts = (
            path.read_text(encoding="utf-8")
            for name, path in find_corpus_files()
            if not is_validation(name, _HELD_OUT)
        )
        save_bpe_tokenizer(draft, texts, vocab_size=_VOCAB_SIZE)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            # Another rank was first; its folder has the same content.


def save_bpe_tokenizer(folder: Path, texts: Iterable[str], *, vocab_size: int) -> None:
    """Train a byte-level BPE and write it to `folder`, which must not exist, for Hugging Face.

    Deterministic. EOS is token 0; there is no BOS; every byte sequence can be encoded.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }
    _save_json(folder / "tokenizer_config.json", config)
    _save_json(folder / "special_tokens_map.json", {"eos_token": EOS_TOKEN})


def _save_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
