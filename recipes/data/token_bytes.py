"""How many bytes of text each token stands for: what bits per byte are counted in.

Imports no torch.
"""

import json
import re
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from recipes.data.encoder import Encoder
from recipes.data.packing import IGNORE_INDEX

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_ANCHOR = "a"
"""Text that stands before a token which is not the first of its text."""


class TokenBytes:
    """Bytes of UTF-8 that tokens add to the decoded text.

    Special tokens, EOS among them, have none. A token that is a part of a character has the bytes
    of its part: one token of byte-level BPE or of byte fallback is decoded to so many bytes,
    whether or not they are whole characters. Other decoders (SentencePiece's, WordPiece's) set
    spaces: a token has those that it has after another, and after BOS those that it has at the
    beginning of a text. Hence the bytes of all tokens of a document that begins with BOS are those
    of its decoded text, which is the text itself unless the tokenizer's normalizer changes it.
    """

    def __init__(self, inner_V: np.ndarray, first_V: np.ndarray, bos_id: int | None) -> None:
        """Of each token id, after another token and as the first of a text, int64."""
        self._inner_V, self._first_V, self._bos_id = inner_V, first_V, bos_id

    def count(self, row_3L: np.ndarray) -> int:
        """Of the row's labels that are not ignored. The row is `packing.Row.row_3L`."""
        inputs_L, _, labels_L = row_3L
        is_valid_L = labels_L != IGNORE_INDEX
        is_first_L = inputs_L == (-1 if self._bos_id is None else self._bos_id)
        inner = self._inner_V[labels_L[is_valid_L & ~is_first_L]].sum()
        return int(inner + self._first_V[labels_L[is_valid_L & is_first_L]].sum())


def build_token_bytes(backend: Any, encoder: Encoder) -> TokenBytes | None:
    """Of a `tokenizers.Tokenizer` and the encoder made of it. Decodes each token twice: a second
    for the largest vocabularies.

    None if the tokenizer has no decoder ("decoder" of its tokenizer.json is null): then nothing
    tells how its tokens make up a text.
    """
    if backend.decoder is None:
        return None
    kinds = set(_list_kinds(json.loads(backend.decoder.__getstate__())))
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    inner_V, first_V = np.zeros((2, encoder.num_ids), np.int64)
    rest = []
    alphabet = frozenset(pre_tokenizers.ByteLevel.alphabet())
    for token, i in backend.get_vocab().items():
        if i in special:
            continue
        if "ByteLevel" in kinds:
            # One character of the alphabet is one byte; a token with others is taken as it stands.
            is_spelled = alphabet.issuperset(token)
            inner_V[i] = first_V[i] = len(token) if is_spelled else len(token.encode())
        elif "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(token):
            inner_V[i] = first_V[i] = 1
        else:
            rest.append(i)
    if rest:
        anchor = backend.encode(_ANCHOR, add_special_tokens=False).ids
        inner_V[rest] = _decode_lengths(backend, anchor, rest)
        first_V[rest] = _decode_lengths(backend, [], rest)
    return TokenBytes(inner_V, first_V, encoder.bos_id)


def _decode_lengths(backend: Any, before: list[int], ids: list[int]) -> list[int]:
    """Bytes that each token adds to the decoded text of the tokens `before`."""
    length = len(backend.decode(before).encode())
    texts = backend.decode_batch([[*before, i] for i in ids])
    return [len(text.encode()) - length for text in texts]


def _list_kinds(decoder: dict[str, Any]) -> list[str]:
    inner = (kind for part in decoder.get("decoders", ()) for kind in _list_kinds(part))
    return [decoder["type"], *inner]
