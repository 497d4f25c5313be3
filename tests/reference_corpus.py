"""A small corpus of short documents, and the rows that a run must read of it."""

import json
from itertools import chain, cycle, islice
from pathlib import Path

from tokenizers import Tokenizer

from recipes.data.tokenizer import save_bpe_tokenizer
from tests import reference, reference_rows
from tests.reference_rows import Row

TEXTS = [f"def f{i}(x):\n    return {'x + ' * (i % 7)}{i}\n" for i in range(40)]
VOCAB_SIZE, SEQ_LEN, NUM_STREAMS, SEED = 320, 32, 4, 5


class Corpus:
    """One file of JSON lines, small enough to be a block, and its tokenizer."""

    def __init__(self, folder: Path, held_out: float) -> None:
        """held_out: the share of documents that validation has."""
        self.held_out = held_out
        self.overrides = [
            f"--data.sources=[{{path = '{folder / 'short.jsonl'}'}}]",
            f"--tokenizer.path={folder / 'tokenizer'}",
            f"--data.num_streams={NUM_STREAMS}",
            f"--data.seed={SEED}",
            f"--data.validation_fraction={held_out}",
            f"--training.seq_len={SEQ_LEN}",
        ]
        folder.mkdir()
        lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
        (folder / "short.jsonl").write_text("".join(lines))
        save_bpe_tokenizer(folder / "tokenizer", TEXTS, vocab_size=VOCAB_SIZE)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
        eos = tokenizer.token_to_id(config["eos_token"])
        self.tokenizer, self._eos = tokenizer, eos
        self._documents: dict[bool, list[list[int]]] = {False: [], True: []}
        offset = 0
        for text, line in zip(TEXTS, lines, strict=True):
            is_held_out = reference_rows.is_held_out(f"short.jsonl@{offset}", held_out)
            self._documents[is_held_out].append([*tokenizer.encode(text).ids, eos])
            offset += len(line)

    def training_rows(self, count: int) -> list[Row]:
        rows = reference_rows.training_rows(
            [[self._documents[False]]], num_streams=NUM_STREAMS, seq_len=SEQ_LEN, seed=SEED
        )
        return [row for _, row, _ in islice(rows, count)]

    def validation_rows(self, count: int) -> list[Row]:
        """In the order of the file, and again from its beginning."""
        rows = reference_rows.pack(cycle(self._documents[True]), SEQ_LEN)
        return [row for row, _ in islice(rows, count)]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Each document's tokens, EOS the last."""
        return [[*self.tokenizer.encode(text).ids, self._eos] for text in texts]

    def pack(self, texts: list[str]) -> list[Row]:
        """All of the documents' rows, the last as long as they are."""
        filler = cycle([[0, 0]])
        documents = self.encode(texts)
        num_tokens = sum(len(document) - 1 for document in documents)
        packed = reference_rows.pack(chain(documents, filler), SEQ_LEN)
        rows = [row for row, _ in islice(packed, -(-num_tokens // SEQ_LEN))]
        num_left = num_tokens % SEQ_LEN or SEQ_LEN
        return [*rows[:-1], [part[:num_left] for part in rows[-1]]]


def mask_prompts(rows: list[Row]) -> list[Row]:
    """Ignore the labels at the beginning of each row as Case.masks_prompts does: how many is the
    row's first token modulo half of its length."""
    masked = []
    for inputs, positions, labels in rows:
        num_ignored = inputs[0] % (SEQ_LEN // 2)
        masked.append([inputs, positions, [-100] * num_ignored + labels[num_ignored:]])
    return masked


def split(rows: list[Row]) -> list[reference.Document]:
    """The documents, or parts of documents, in the rows."""
    return [document for row in rows for document in reference.split_documents(*row)]
