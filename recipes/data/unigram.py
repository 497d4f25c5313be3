"""The cross entropy of a unigram model: the baseline that any language model must beat."""

from typing import Any

import torch
from torchtitan.components.tokenizer import BaseTokenizer

from recipes.data.loader import PackedDataLoader

SAMPLE_TOKENS = 200_000


def unigram_cross_entropy(
    config: PackedDataLoader.Config, tokenizer: BaseTokenizer, seq_len: int
) -> float:
    """Nats per label of the best unigram model of the first SAMPLE_TOKENS labels of the data.

    It is fitted to the labels that it is scored on, hence a lower bound for such models.
    """
    loader: Any = config.build(
        dp_world_size=1, dp_rank=0, tokenizer=tokenizer, seq_len=seq_len, local_batch_size=1
    )
    counts = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for _, labels_BL in loader:
        counts += labels_BL.flatten().bincount(minlength=len(counts))
        if counts.sum() >= SAMPLE_TOKENS:
            break
    return torch.distributions.Categorical(probs=counts.double()).entropy().item()
