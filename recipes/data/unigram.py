"""The cross entropy of a unigram model: the baseline that any language model must beat.

Imports no torch.
"""

import numpy as np

SAMPLE_LABELS = 200_000
"""Of fewer labels a model with a parameter per token learns too much by heart to be a baseline."""


class UnigramBaseline:
    """Counts labels as training hands them out: it reads no data of its own."""

    def __init__(self, num_ids: int) -> None:
        """Labels are 0 to `num_ids`, exclusive."""
        self._counts_V = np.zeros(num_ids, np.int64)
        self._num_missing = SAMPLE_LABELS

    def add(self, labels_BL: np.ndarray) -> None:
        """The labels that come next, int64; those beyond SAMPLE_LABELS do not count."""
        if self._num_missing:
            sample = labels_BL.reshape(-1)[: self._num_missing]
            self._counts_V += np.bincount(sample, minlength=len(self._counts_V))
            self._num_missing -= len(sample)

    def cross_entropy(self) -> float | None:
        """Nats per label of the best unigram model of the first SAMPLE_LABELS labels; None if there
        were fewer.

        It is fitted to the labels that it is scored on, hence a lower bound for such models.
        """
        if self._num_missing:
            return None
        counts = self._counts_V[self._counts_V > 0]
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())
