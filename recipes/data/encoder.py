"""From a text, or token ids, to the tokens of a document, with BOS and EOS where they belong.

Imports no torch.
"""

from typing import Any, Literal, Protocol

import numpy as np

from recipes.data.records import PLACE, BadDocumentError, Value

BosRule = Literal["auto", "always", "never"]

_PROBE = "a"


class TextTokenizer(Protocol):
    """What encoding asks of a tokenizer; TorchTitan's HuggingFaceTokenizer has it."""

    bos_id: int | None
    eos_id: int | None
    default_add_bos: bool
    """`add_bos_token` of its tokenizer_config.json."""

    tokenizer: Any
    """The `tokenizers.Tokenizer` within."""

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]: ...

    def get_vocab(self) -> dict[str, int]: ...


class Encoder:
    """Encodes a document as [BOS] tokens EOS.

    BOS stands there as `bos` says, EOS always: it is the label of the last token. Each is there
    once, whether the tokenizer's post-processor adds it or the text or token ids bring it along.

    Raises ValueError if the tokenizer has no EOS, no BOS where it is asked for, or adds anything
    else to a text.
    """

    def __init__(self, tokenizer: TextTokenizer, bos: BosRule = "auto") -> None:
        """bos "auto": if the post-processor adds it, or `add_bos_token` is true."""
        if tokenizer.eos_id is None:
            raise ValueError(
                "tokenizer.path: the tokenizer has no EOS, the label of each document's last "
                'token. Name one of its tokens as "eos_token" in its tokenizer_config.json.'
            )
        if bos == "always" and tokenizer.bos_id is None:
            raise ValueError(
                "data.bos (always) needs a tokenizer with BOS. Name one of its tokens as "
                '"bos_token" in its tokenizer_config.json, or set data.bos to "never".'
            )
        self._tokenizer = tokenizer
        self._bos_id, self._eos_id = tokenizer.bos_id, tokenizer.eos_id
        adds_itself = self._tokenize(_PROBE)[0] == tokenizer.bos_id or tokenizer.default_add_bos
        has_bos = tokenizer.bos_id is not None and adds_itself
        self.adds_bos = bos == "always" or (bos == "auto" and has_bos)
        """Whether documents begin with BOS."""
        self._bos = np.array([self._bos_id] if self.adds_bos else [], np.int64)
        self._eos = np.array([self._eos_id], np.int64)
        # What a tokenizer makes of no text, it adds to any.
        added = self._tokenize("")
        if len(self._strip(added)):
            raise ValueError(
                f"tokenizer.path: the tokenizer adds the tokens {added.tolist()} to each text, "
                'more than BOS and EOS. Set "post_processor" in its tokenizer.json to null.'
            )
        if tokenizer.tokenizer.truncation is not None:
            raise ValueError(
                "tokenizer.path: the tokenizer cuts texts at its own length. "
                'Set "truncation" in its tokenizer.json to null.'
            )
        self.num_ids = max(tokenizer.get_vocab().values()) + 1
        """Token ids are 0 to this, exclusive; some may be missing."""

    def encode(self, value: Value) -> np.ndarray:
        """The document's tokens, int64 [T + 1], EOS the last; [1] if it is empty.

        Raises BadDocumentError for a token id that the tokenizer does not have.
        """
        if isinstance(value, str):
            tokens = self._tokenize(value)
        else:
            tokens = value
            strangers = tokens[(tokens < 0) | (tokens >= self.num_ids)]
            if len(strangers):
                raise BadDocumentError(
                    f"tokenizer.path: {PLACE} has the token id {strangers[0]}, but the tokenizer's "
                    f"are 0 to {self.num_ids - 1}. Name the tokenizer that made the token ids."
                )
        own = self._strip(tokens)
        begin = self._bos if len(own) else self._bos[:0]
        return np.concatenate([begin, own, self._eos])

    def _tokenize(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text, add_bos=False, add_eos=False), np.int64)

    def _strip(self, tokens: np.ndarray) -> np.ndarray:
        """`tokens` without BOS at the head and EOS at the tail."""
        begin, end = 0, len(tokens)
        while begin < end and tokens[begin] == self._bos_id:
            begin += 1
        while end > begin and tokens[end - 1] == self._eos_id:
            end -= 1
        return tokens[begin:end]
