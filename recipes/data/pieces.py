"""Long texts, tokenized piece by piece: the same tokens as at once, without the cost at once.

The `tokenizers` library takes some hundred bytes for each token while it works, and a row needs few
of the tokens of a long text. Imports no torch.

Windows of the text that overlap are tokenized apart, and joined in the middle of the overlap if
they have the same tokens there, where a word (what the pre-tokenizer leaves whole) begins: words do
not depend on each other. BPE windows are joined within a word if need be: tokens are the encoding
of their text if each two neighbours are that of theirs. If two windows do not agree, the overlap
grows, then the window, in the end to the whole text.

Shape suffixes: T = tokens of a window, N = of them, those of the overlap's middle, 2 = begin and
end of a token, in characters of the text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW_CHARS = 2**18
OVERLAP_CHARS = 2**11
_MIN_SHARED = 32
"""One would do, but pre-tokenizers and normalizers look at what is near."""


@dataclass(slots=True)
class _Window:
    begin: int
    end: int
    ids_T: np.ndarray
    spans_T2: np.ndarray
    begins_word_T: np.ndarray


def tokenize_pieces(
    backend: Any, text: str, window_chars: int = WINDOW_CHARS, overlap_chars: int = OVERLAP_CHARS
) -> Iterator[np.ndarray]:
    """The token ids of a text without special tokens, int64 [T] in parts, one or more; backend: a
    `tokenizers.Tokenizer`."""
    window, first = _encode(backend, text, 0, window_chars), 0
    while window.end < len(text):
        joint = _join(backend, text, window, overlap_chars)
        if joint is None:
            size = 2 * (window.end - window.begin)
            window = _encode(backend, text, window.begin, window.begin + size)
            continue
        last, following, following_first = joint
        yield window.ids_T[first:last]
        window, first = following, following_first
    yield window.ids_T[first:]


def _encode(backend: Any, text: str, begin: int, end: int) -> _Window:
    encoding = backend.encode(text[begin:end], add_special_tokens=False)
    ids_T = np.array(encoding.ids, np.int64)
    spans_T2 = np.array(encoding.offsets, np.int64).reshape(-1, 2) + begin
    words_T = np.array(encoding.word_ids, object)
    begins_word_T = np.append(True, words_T[1:] != words_T[:-1])[: len(ids_T)]
    return _Window(begin, min(end, len(text)), ids_T, spans_T2, begins_word_T)


def _join(
    backend: Any, text: str, window: _Window, overlap_chars: int
) -> tuple[int, _Window, int] | None:
    """How many tokens of the window to keep, the window after it, and the first token of that."""
    size = window.end - window.begin
    is_bpe = type(backend.model).__name__ == "BPE"
    while overlap_chars <= size // 4:
        begin = _find_token(window, window.end - overlap_chars)
        if begin is not None:
            following = _encode(backend, text, begin, begin + size)
            margin = (window.end - begin) // 4
            low, high = begin + margin, window.end - margin
            ours_N, theirs_N = (_tokens_within(part, low, high) for part in (window, following))
            shared = _find_shared(window, ours_N, following, theirs_N, is_bpe)
            if shared is not None:
                return int(ours_N[shared]), following, int(theirs_N[shared])
        overlap_chars *= 4
    return None


def _find_token(window: _Window, place: int) -> int | None:
    """Where the last token begins that begins at `place` or before, and not within a character: so
    that a run, of digits or of one letter, is cut as the window cuts it. None if there is none but
    in the window's first half."""
    begins_T, ends_T = window.spans_T2.T
    is_start_T = (begins_T <= place) & (begins_T > (window.begin + window.end) // 2)
    is_start_T[1:] &= begins_T[1:] >= ends_T[:-1]
    found = np.flatnonzero(is_start_T)
    return int(begins_T[found[-1]]) if len(found) else None


def _tokens_within(window: _Window, low: int, high: int) -> np.ndarray:
    """Numbers of the tokens within characters low..high, int64 [N]."""
    begins_T, ends_T = window.spans_T2.T
    return np.flatnonzero((begins_T >= low) & (ends_T <= high))


def _find_shared(
    ours: _Window, ours_N: np.ndarray, theirs: _Window, theirs_N: np.ndarray, is_bpe: bool
) -> int | None:
    """At which of these tokens the two windows can be joined; None if they are not the same."""
    if len(ours_N) != len(theirs_N) or len(ours_N) < _MIN_SHARED:
        return None
    are_same = np.array_equal(ours.ids_T[ours_N], theirs.ids_T[theirs_N]) and np.array_equal(
        ours.spans_T2[ours_N], theirs.spans_T2[theirs_N]
    )
    if not are_same:
        return None
    words = np.flatnonzero(ours.begins_word_T[ours_N] & theirs.begins_word_T[theirs_N])
    if len(words):
        return int(words[0])
    return 0 if is_bpe else None
