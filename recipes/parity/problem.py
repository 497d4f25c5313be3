"""The training problem of the cells: tiny models and packed, uneven documents. Imports no torch."""

import json
import random
import string
from pathlib import Path

from recipes.data.tokenizer import save_bpe_tokenizer

MODELS = {
    "dense": ("train_configs/debug.toml", ["--model.ffn_dim=128"]),
    "moe": ("train_configs/debug_moe.toml", ["--model.ffn_dim=128", "--model.expert_dim=64"]),
}
"""Model -> (TOML file, overrides): the debug models, smaller."""

NUM_DOCUMENTS, NUM_WORDS, VOCAB_SIZE, NUM_STREAMS = 300, 500, 512, 8

OVERRIDES = [
    "--model.num_layers=3", "--model.dim=64", "--model.num_heads=4", "--model.num_kv_heads=2",
    "--model.head_dim=16", f"--model.vocab_size={VOCAB_SIZE}", "--nitp.target_layer=1",
    "--nitp.weight=0.7", "--training.seq_len=256", "--training.local_batch_size=1",
    "--training.global_batch_size=8", "--training.disable_cuda_graphs",
    f"--data.num_streams={NUM_STREAMS}", "--data.validation_fraction=0.1", "--validation.steps=1",
    "--lr_scheduler.warmup_steps=1", "--optimizer.eps=1e-3", "--data.seed=3", "--debug.seed=4",
]  # fmt: skip
"""Of every cell. Global batch 8: up to 4 data-parallel ranks accumulate at least 2 batches. Full
learning rate from the first step on, so that losses show what the updates were. Adam's epsilon is
as large as a gradient's entries: with a tiny one, an entry that is rounding noise moves its weight
by a whole learning rate, one way or the other. The seeds are ones that give every rank another
number of pairs and, where a cell adds nothing to the problem, routers without a near tie."""


def write_data(folder: Path) -> list[str]:
    """Write documents and tokenizer to `folder`; the overrides that name them.

    Words follow Zipf's law, so that routers deal tokens unevenly. Lengths are log-uniform from 1 to
    500 words: rows hold one document or many, and documents go on in the next row.
    """
    rng = random.Random(0)
    letters = string.ascii_lowercase
    words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(NUM_WORDS)]
    zipf = [1 / rank for rank in range(1, NUM_WORDS + 1)]
    lengths = [round(500 ** rng.random()) for _ in range(NUM_DOCUMENTS)]
    texts = [" ".join(rng.choices(words, zipf, k=length)) for length in lengths]
    corpus, tokenizer = folder / "documents.jsonl", folder / "tokenizer"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save_bpe_tokenizer(tokenizer, texts, vocab_size=VOCAB_SIZE)
    return [f"--tokenizer.path={tokenizer}", f"--data.sources=[{{path = '{corpus}'}}]"]
