"""Packed rows against a reference that goes token by token."""

from collections.abc import Iterator

import numpy as np
import pytest

from recipes.data.encoder import Encoder
from recipes.data.order import Order
from recipes.data.packing import START, Cursor, PackedSource, Row
from tests.unit.data_samples import EOS, Texts, WordTokenizer, make_texts


def pack(
    texts: list[str] | list[str | None] | Texts,
    num_streams: int = 1,
    seq_len: int = 8,
    **options: object,
) -> PackedSource:
    documents = texts if isinstance(texts, Texts) else Texts(texts)
    shuffle, buffer = options.pop("shuffle", False), options.pop("buffer", 4)
    order = Order(len(documents), num_streams, shuffle=shuffle, buffer=buffer)
    return PackedSource(documents, Encoder(WordTokenizer()), order, seq_len=seq_len, **options)


def reference_rows(texts: list[str], length: int, truncates: bool = False) -> list[list]:
    """One stream, one epoch, by the definition: a plain loop over tokens."""
    rows, row = [], [[], [], []]
    for text in texts:
        tokens = [ord(character) for character in text]
        position = 0
        for t, token in enumerate(tokens[:length] if truncates else tokens):
            row[0].append(token)
            row[1].append(position)
            row[2].append(tokens[t + 1] if t + 1 < len(tokens) else EOS)
            position += 1
            if len(row[0]) == length:
                rows.append(row)
                row, position = [[], [], []], 0
    return rows


def read(packed: PackedSource, stream: int = 0, cursor: Cursor = START) -> Iterator[Row]:
    rows = packed.open_stream(stream, cursor)
    while (row := rows.next_row()) is not None:
        yield row


def all_rows(packed: PackedSource, stream: int = 0, cursor: Cursor = START) -> list:
    return [row.row_3L.tolist() for row in read(packed, stream, cursor)]


def visited(packed: PackedSource, texts: list[str], stream: int, epochs: int) -> list[str]:
    """The texts of a source with one document a block, in the stream's order."""
    order, found = packed.order, []
    for epoch in range(epochs):
        for position, block in enumerate(order.blocks_of(stream, epoch)):
            if len(order.visit(stream, epoch, block, position, 0, 1)[0]):
                found.append(texts[block])
    return found


@pytest.mark.parametrize("length", [1, 3, 8, 50])
@pytest.mark.parametrize("truncates", [False, True])
def test_rows_are_those_of_the_token_by_token_definition(length: int, truncates: bool) -> None:
    texts = make_texts(70)
    rows = all_rows(pack(texts, seq_len=length, num_epochs=1, truncates=truncates))
    assert rows == reference_rows(texts, length, truncates)
    assert len(rows) > 5


def test_a_row_shows_boundaries_cuts_and_restarts() -> None:
    rows = iter(all_rows(pack(["abc", "", "defghijkl", "m"], seq_len=5, num_epochs=1)))
    inputs, positions, labels = next(rows)
    assert "".join(map(chr, inputs)) == "abcde"
    assert positions == [0, 1, 2, 0, 1]
    assert labels == [ord("b"), ord("c"), EOS, ord("e"), ord("f")]
    inputs, positions, labels = next(rows)
    assert "".join(map(chr, inputs)) == "fghij"
    assert positions == [0, 1, 2, 3, 4]


def test_a_truncated_document_keeps_its_true_label_and_gives_way_to_the_next() -> None:
    rows = iter(all_rows(pack(["abcdefgh", "ij", "kl"], seq_len=4, num_epochs=1, truncates=True)))
    inputs, positions, labels = next(rows)
    assert "".join(map(chr, inputs)) == "abcd"
    assert labels == [ord(character) for character in "bcde"], "not EOS: it does not end there"
    inputs, positions, labels = next(rows)
    assert "".join(map(chr, inputs)) == "ijkl"
    assert positions == [0, 1, 0, 1]
    assert labels == [ord("j"), EOS, ord("l"), EOS]


def test_a_stream_packs_the_documents_that_the_order_deals_to_it() -> None:
    texts = make_texts(83)
    packed = pack(texts, num_streams=4, num_epochs=2, shuffle=True)
    streams = [visited(packed, texts, stream, 2) for stream in range(4)]
    assert sorted(sum(streams, [])) == sorted(texts * 2)
    for stream, documents in enumerate(streams):
        assert all_rows(packed, stream) == reference_rows(documents, 8)


@pytest.mark.parametrize("block_size", [1, 3, 50])
def test_the_streams_of_an_epoch_have_all_tokens_whatever_the_blocks(block_size: int) -> None:
    texts = make_texts(50)
    documents = Texts(texts, block_size)
    packed = pack(documents, num_streams=3, num_epochs=1, shuffle=True, seq_len=1)
    tokens = [row[0][0] for stream in range(3) for row in all_rows(packed, stream)]
    assert sorted(tokens) == sorted(ord(character) for text in texts for character in text)
    assert documents.parses == [1] * 50, "no stream parses what another one visits"


@pytest.mark.parametrize("block_size", [1, 5, 12])
def test_a_cursor_at_any_row_restarts_the_stream_exactly(block_size: int) -> None:
    packed = pack(Texts(make_texts(12), block_size), num_streams=2, num_epochs=3, shuffle=True)
    rows = all_rows(packed, 1)
    stream = packed.open_stream(1)
    cursor = START
    for consumed in range(len(rows)):
        assert all_rows(packed, 1, cursor) == rows[consumed:]
        row = stream.next_row()
        assert row is not None
        cursor = row.cursor


def test_a_restart_parses_no_earlier_document() -> None:
    documents = Texts(["a" * 10, "b" * 10, "c" * 10])
    packed = pack(documents, seq_len=6)
    stream = packed.open_stream(0)
    cursors = [stream.next_row().cursor for _ in range(2)]
    documents.parses = [0, 0, 0]
    packed.open_stream(0, cursors[-1]).next_row()
    assert documents.parses == [0, 1, 0]


@pytest.mark.parametrize(("epochs", "block_size"), [(1, 1), (2, 1), (5, 1), (2, 7), (3, 31)])
def test_count_tokens_is_what_the_streams_hold(epochs: int, block_size: int) -> None:
    documents = Texts(make_texts(31), block_size)
    packed = pack(documents, num_streams=3, num_epochs=epochs, shuffle=True, seq_len=1)
    counts = packed.count_tokens(3)
    assert documents.parses == [1] * 31
    assert counts.tolist() == [len(all_rows(packed, stream)) for stream in range(3)]


def test_a_row_names_its_documents() -> None:
    rows = [*read(pack(["abc", "", "defghijkl", "m"], seq_len=5, num_epochs=1))]
    assert [row.documents for row in rows] == [["document 0", "document 2"], ["document 2"]]


def test_a_bad_document_is_an_error_that_says_where_it_lies() -> None:
    with pytest.raises(ValueError, match=r"^text 1 is bad$"):
        all_rows(pack(["ab", None, "cd"], seq_len=3, num_epochs=1))


def test_a_skipped_document_is_counted_with_the_row_that_meets_it_also_after_a_restart() -> None:
    texts = ["abc", None, "def", None, None, "ghi"]
    packed = pack(texts, seq_len=3, num_epochs=1, skips_bad=True)
    rows = [*read(packed)]
    assert [row.row_3L.tolist() for row in rows] == reference_rows(["abc", "def", "ghi"], 3)
    assert [row.num_skipped for row in rows] == [0, 1, 2]
    assert [row.complaint for row in rows] == [None, "document 1 is bad", "document 4 is bad"]
    restarted = [*read(packed, 0, rows[0].cursor)]
    assert [row.num_skipped for row in restarted] == [1, 2]
    assert packed.count_tokens(1).tolist() == [9]


@pytest.mark.parametrize("text", ["", None])
def test_a_stream_without_a_token_is_an_error_not_a_hang(text: str | None) -> None:
    packed = pack(["a", text, "b", text], num_streams=2, skips_bad=True)
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]: stream 1 finds no document with"):
        packed.open_stream(1).next_row()


def test_a_stream_that_resumes_after_its_last_document_is_not_taken_for_empty() -> None:
    packed = pack(["ab", ""], seq_len=2)
    row = packed.open_stream(0).next_row()
    assert row.cursor == Cursor(0, 0, 1, 0)
    again = packed.open_stream(0, row.cursor).next_row()
    np.testing.assert_array_equal(again.row_3L, row.row_3L)
    assert again.cursor == Cursor(1, 0, 1, 0)
