"""Text embeddings by their definition, in float64: text by text, token by token, no padding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def embed(folder: Path, texts: Sequence[str], max_len: int) -> np.ndarray:
    """[N, D]. What the unembedding is given is taken where it is given."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, args: given.append(args[0][0].numpy()))
    rows = []
    for text in texts:
        tokens = tokenizer(text)["input_ids"][:max_len]
        mean_D = np.zeros(head.in_features)
        if tokens:
            with torch.no_grad():
                model(input_ids=torch.tensor([tokens]))
            for state_D in given.pop():
                mean_D += state_D / len(tokens)
            mean_D /= np.sqrt((mean_D**2).sum())
        rows.append(mean_D)
    return np.stack(rows)


def cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> list[float]:
    """Of vectors of length 1."""
    return [float(sum(x * y)) for x, y in zip(a_ND, b_ND, strict=True)]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Of values without ties."""
    num = len(x)
    assert len(set(x)) == len(set(y)) == num
    ranks = [[sorted(values).index(value) for value in values] for values in (x, y)]
    squares = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    return 1 - 6 * squares / (num * (num**2 - 1))


def average_precision(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Mean over the relevant of the share of relevant ones down to it, without ties."""
    assert len(set(scores)) == len(scores)
    ranked = [label for _, label in sorted(zip(scores, labels, strict=True), reverse=True)]
    return sum(sum(ranked[: i + 1]) / (i + 1) for i, label in enumerate(ranked) if label) / sum(
        ranked
    )
