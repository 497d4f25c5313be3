"""From a text, or token ids, to the tokens of a document, with BOS and EOS where they belong.

Imports no torch.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from recipes.data.pieces import tokenize_pieces
from recipes.data.records import PLACE, BadDocumentError, Value
from recipes.data.tokenizer import (
    read_further_tokens,
    read_special_tokens,
    read_split_rules,
)

BosRule = Literal["auto", "always", "never"]

_PROBE = "a"


class TextTokenizer(Protocol):
    """What encoding asks of a tokenizer; TorchTitan's HuggingFaceTokenizer has it."""

    tokenizer_path: str
    """Its folder."""

    default_add_bos: bool
    """`add_bos_token` of its tokenizer_config.json."""

    tokenizer: Any
    """The `tokenizers.Tokenizer` within."""


class Encoder:
    """Encodes a document as [BOS] tokens EOS.

    The tokens are those that transformers gives a text with add_special_tokens=False. BOS stands
    there as `bos` says, EOS always: it is the label of the last token. Each is there once, also if
    the text or token ids bring it along. Which tokens they are, the folder says, as it does to
    transformers.

    Raises ValueError if the tokenizer has no EOS, no BOS where it is asked for, adds anything else
    to a text, or has a saved state that changes or cuts what it makes of a text, in tokenizer.json
    or in what transformers reads beside it.
    """

    def __init__(self, tokenizer: TextTokenizer, bos: BosRule = "auto") -> None:
        """bos "auto": if the post-processor adds it, or `add_bos_token` is true."""
        self.folder = Path(tokenizer.tokenizer_path)
        self._backend = tokenizer.tokenizer
        _check_state(self._backend)
        _check_files(self.folder, self._backend)
        special = read_special_tokens(self.folder)
        # As transformers does: one that is not known yet gets an id, or is no plain text any more.
        known = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        self._backend.add_special_tokens([t for t in special.values() if t not in known])
        self.bos_id, eos_id = (
            self._backend.token_to_id(special[name]) if name in special else None
            for name in ("bos_token", "eos_token")
        )
        self.bos_token, self.eos_token = special.get("bos_token"), special.get("eos_token")
        if eos_id is None:
            raise ValueError(
                "tokenizer.path: the tokenizer has no EOS, the label of each document's last "
                'token. Name one of its tokens as "eos_token" in its tokenizer_config.json.'
            )
        self.eos_id: int = eos_id
        if bos == "always" and self.bos_id is None:
            raise ValueError(
                "data.bos (always) needs a tokenizer with BOS. Name one of its tokens as "
                '"bos_token" in its tokenizer_config.json, or set data.bos to "never".'
            )
        adds_itself = self._check_added() or tokenizer.default_add_bos
        has_bos = self.bos_id is not None and adds_itself
        self.adds_bos = bos == "always" or (bos == "auto" and has_bos)
        """Whether documents begin with BOS."""
        self._bos = np.array([self.bos_id] if self.adds_bos else [], np.int64)
        self._eos = np.array([self.eos_id], np.int64)
        self.num_ids = max(self._backend.get_vocab().values()) + 1
        """Token ids are 0 to this, exclusive; some may be missing."""

    def tokenize(self, text: str) -> np.ndarray:
        """The text's tokens, int64 [T], without BOS and EOS that it does not spell."""
        return np.concatenate([*tokenize_pieces(self._backend, text)])

    def encode(self, value: Value) -> np.ndarray:
        """The document's tokens, int64 [T + 1], EOS the last; [1] if it is empty.

        Raises BadDocumentError for a token id that the tokenizer does not have.
        """
        return np.concatenate([*self.encode_pieces(value)])

    def encode_pieces(self, value: Value) -> Iterator[np.ndarray]:
        """The same in parts: what has not been asked for of a long text has cost nothing."""
        if isinstance(value, str):
            pieces = tokenize_pieces(self._backend, value)
        else:
            self._check_ids(value)
            pieces = iter([value])
        is_empty, held = True, self._eos[:0]  # EOS that may be the tail
        for piece in pieces:
            begin, end = 0, len(piece)
            while is_empty and not len(held) and begin < end and piece[begin] == self.bos_id:
                begin += 1
            while end > begin and piece[end - 1] == self.eos_id:
                end -= 1
            if end > begin:
                yield np.concatenate(
                    [self._bos if is_empty else self._bos[:0], held, piece[begin:end]]
                )
                is_empty, held = False, piece[end:]
            else:
                held = np.concatenate([held, piece[end:]])
        yield self._eos

    def _check_ids(self, tokens: np.ndarray) -> None:
        strangers = tokens[(tokens < 0) | (tokens >= self.num_ids)]
        if len(strangers):
            raise BadDocumentError(
                f"tokenizer.path: {PLACE} has the token id {strangers[0]}, but the tokenizer's "
                f"are 0 to {self.num_ids - 1}. Name the tokenizer that made the token ids."
            )

    def _check_added(self) -> bool:
        """Whether the post-processor adds BOS. Raises ValueError if it adds more than BOS at the
        head and EOS at the tail."""
        encoding = self._backend.encode(_PROBE)
        own = [i for i, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
        begin, end = (own[0], own[-1] + 1) if own else (len(encoding), len(encoding))
        head, tail = encoding.ids[:begin], encoding.ids[end:]
        if head not in ([], [self.bos_id]) or tail not in ([], [self.eos_id]):
            raise ValueError(
                f"tokenizer.path: the tokenizer adds the tokens {head + tail} to each text, more "
                'than BOS and EOS. Set "post_processor" in its tokenizer.json to null, or name '
                'them as "bos_token" and "eos_token" in its tokenizer_config.json.'
            )
        return bool(head)


def _check_state(backend: Any) -> None:
    """Raise ValueError for a saved state that tokenizers keep and transformers, as a rule, does
    not use: it would be part of every document."""
    for name, what in (("padding", "fills up texts to"), ("truncation", "cuts texts at")):
        if getattr(backend, name) is not None:
            raise ValueError(
                f"tokenizer.path: the tokenizer {what} its own length. "
                f'Set "{name}" in its tokenizer.json to null.'
            )
    if getattr(backend.model, "dropout", None):  # BPE alone has it
        raise ValueError(
            f"tokenizer.path: the tokenizer leaves out merges at random (dropout "
            f"{backend.model.dropout}), so a text has other tokens each time. "
            'Set "dropout" of "model" in its tokenizer.json to null.'
        )


def _check_files(folder: Path, backend: Any) -> None:
    """Raise ValueError where files beside tokenizer.json, which transformers reads as well, change
    what it makes of a text."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    known.update(read_special_tokens(folder).values())
    for token, file in read_further_tokens(folder).items():
        if token not in known:
            raise ValueError(
                f"tokenizer.path: {folder / file} adds the token {token}, which tokenizer.json has "
                "not. Save the tokenizer anew by transformers' save_pretrained, or remove it there."
            )
    rules = read_split_rules(folder)
    if rules["split_special_tokens"]:
        raise ValueError(
            "tokenizer.path: the tokenizer cuts special tokens that a text spells "
            "(split_special_tokens). Set it to false in its tokenizer_config.json."
        )
    asked = rules["add_prefix_space"]
    if asked is None:
        return
    own = (json.loads(backend.to_str())["pre_tokenizer"] or {}).get("add_prefix_space")
    if own not in (None, asked):
        raise ValueError(
            f"tokenizer.path: add_prefix_space is {json.dumps(asked)} in tokenizer_config.json and "
            f"{json.dumps(own)} in tokenizer.json. Correct the wrong one."
        )
