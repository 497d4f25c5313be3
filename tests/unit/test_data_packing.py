"""Packed rows against a reference that goes token by token."""

from collections.abc import Iterator

import numpy as np
import pytest

from recipes.data.packing import START, Cursor, PackedData

EOS = 0


class WordTokenizer:
    """One token per character, never 0."""

    eos_id = EOS

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]:
        assert not add_bos and not add_eos
        return [ord(character) for character in text]


class Texts:
    """Documents in memory that counts how often each is read."""

    def __init__(self, texts: list[str], block_size: int = 1) -> None:
        self.texts = texts
        self.reads = [0] * len(texts)
        self.block_size = block_size

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, index: int) -> str:
        self.reads[index] += 1
        return self.texts[index]

    def blocks(self) -> np.ndarray:
        return np.arange(len(self.texts)) // self.block_size


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 40 letters, some of them empty."""
    random = np.random.RandomState(seed)
    letters = [chr(97 + i) for i in range(26)]
    return ["".join(random.choice(letters, random.randint(0, 41))) for _ in range(count)]


def pack(texts: list[str] | Texts, **options: object) -> PackedData:
    documents = texts if isinstance(texts, Texts) else Texts(texts)
    options = {"seq_len": 8, "num_streams": 1, "shuffle": False, **options}
    return PackedData(documents, WordTokenizer(), **options)


def reference_rows(texts: list[str], length: int) -> list[list[list[int]]]:
    """One stream, one epoch, by the definition: a plain loop over tokens."""
    rows, row = [], [[], [], []]
    for text in texts:
        tokens = [ord(character) for character in text]
        position = 0
        for t, token in enumerate(tokens):
            row[0].append(token)
            row[1].append(position)
            row[2].append(tokens[t + 1] if t + 1 < len(tokens) else EOS)
            position += 1
            if len(row[0]) == length:
                rows.append(row)
                row, position = [[], [], []], 0
    return rows


def all_rows(packed: PackedData, stream: int = 0, cursor: Cursor = START) -> Iterator[list]:
    rows = packed.open_stream(stream, cursor)
    while (row_3L := rows.next_row()) is not None:
        yield row_3L.tolist()


@pytest.mark.parametrize("length", [1, 3, 8, 50])
def test_rows_are_those_of_the_token_by_token_definition(length: int) -> None:
    texts = make_texts(40)
    rows = list(all_rows(pack(texts, seq_len=length, num_epochs=1)))
    assert rows == reference_rows(texts, length)
    assert len(rows) > 5


def test_a_row_shows_boundaries_cuts_and_restarts() -> None:
    rows = all_rows(pack(["abc", "", "defghijkl", "m"], seq_len=5, num_epochs=1))
    inputs, positions, labels = next(rows)
    assert "".join(map(chr, inputs)) == "abcde"
    assert positions == [0, 1, 2, 0, 1]
    assert labels == [ord("b"), ord("c"), EOS, ord("e"), ord("f")]
    inputs, positions, labels = next(rows)
    assert "".join(map(chr, inputs)) == "fghij"
    assert positions == [0, 1, 2, 3, 4]


def test_stream_j_gets_every_sth_document_of_the_order() -> None:
    texts = make_texts(23)
    packed = pack(texts, num_streams=4, num_epochs=2, shuffle=True, seed=3)
    for stream in range(4):
        dealt = [texts[d] for e in range(2) for d in packed.compute_order(e)[stream::4]]
        assert list(all_rows(packed, stream)) == reference_rows(dealt, 8)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    packed, other = (pack(["x"] * 50, shuffle=True, seed=seed) for seed in (1, 2))
    orders = [packed.compute_order(0), packed.compute_order(1), other.compute_order(0)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    again = pack(["x"] * 50, shuffle=True, seed=1).compute_order(1)
    assert list(again) == list(orders[1])


def test_without_shuffle_the_order_is_that_of_the_files() -> None:
    packed = pack(["x"] * 9)
    assert all(list(packed.compute_order(epoch)) == list(range(9)) for epoch in range(3))


def test_documents_of_a_block_stay_within_one_shuffle_window() -> None:
    packed = pack(Texts(["x"] * 1000, block_size=10), shuffle=True)
    order = packed.compute_order(0)
    assert sorted(order) == list(range(1000))
    windows = [{int(d) // 10 for d in order[i : i + 40]} for i in range(0, 1000, 40)]
    assert all(len(blocks) == 4 for blocks in windows)
    assert list(order[:40]) != sorted(order[:40])


def test_a_cursor_at_any_row_restarts_the_stream_exactly() -> None:
    texts = make_texts(12)
    packed = pack(texts, num_streams=2, num_epochs=3, shuffle=True)
    rows = list(all_rows(packed, 1))
    stream = packed.open_stream(1)
    for consumed in range(len(rows)):
        assert list(all_rows(packed, 1, stream.cursor)) == rows[consumed:]
        stream.next_row()


def test_a_restart_reads_no_earlier_document() -> None:
    documents = Texts(["a" * 10, "b" * 10, "c" * 10])
    packed = pack(documents, seq_len=6)
    stream = packed.open_stream(0)
    stream.next_row()
    stream.next_row()
    documents.reads = [0, 0, 0]
    packed.open_stream(0, stream.cursor).next_row()
    assert documents.reads == [0, 1, 0]


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_count_rows_is_the_first_row_that_is_missing(epochs: int) -> None:
    packed = pack(make_texts(31), num_streams=3, num_epochs=epochs, shuffle=True)
    streams = [list(all_rows(packed, stream)) for stream in range(3)]
    row = 0
    while row // 3 < len(streams[row % 3]):
        row += 1
    assert packed.count_rows() == row > 0


def test_eos_that_a_tokenizer_appends_unasked_is_not_doubled() -> None:
    class Appending(WordTokenizer):
        def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]:
            return [*super().encode(text, add_bos=add_bos, add_eos=add_eos), EOS]

    packed = PackedData(Texts(["ab"]), Appending(), seq_len=2, num_streams=1)
    assert packed.compute_tokens(0).tolist() == [ord("a"), ord("b"), EOS]


def test_more_streams_than_documents_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"^data\.num_streams \(4\) must be at most .* \(3\)\. L"):
        pack(["a", "b", "c"], num_streams=4)


def test_a_stream_of_empty_documents_is_an_error_not_a_hang() -> None:
    with pytest.raises(ValueError, match=r"^data\.sources: all 2 documents of a stream are empty"):
        pack(["a", "", "b", ""], num_streams=2).open_stream(1).next_row()


def test_a_tokenizer_without_eos_is_an_error() -> None:
    tokenizer = WordTokenizer()
    tokenizer.eos_id = None
    with pytest.raises(ValueError, match=r"^tokenizer\.path: the tokenizer has no EOS"):
        PackedData(Texts(["a"]), tokenizer, seq_len=2, num_streams=1)
