"""L_NITP's normaliser: the pairs of the global batch, known before the first backward."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nitp import trainer as nitp_trainer
from nitp.config import NITPConfig
from nitp.trainer import NITPTrainer

IGNORED = -100


def weigh(nitp: NITPConfig, *, step: int) -> tuple[list[torch.Tensor], Any]:
    """Pair weights of two batches of one row, and what the metrics are told. Two ranks read other
    rows of the same number of pairs; along cp, of two more, ranks share them."""
    trainer: Any = object.__new__(NITPTrainer)
    mesh = SimpleNamespace(size=lambda: 2)
    trainer.parallel_dims = SimpleNamespace(
        dp_enabled=True, cp_enabled=True, get_mesh=lambda name: {"batch": mesh}[name]
    )
    trainer.config, trainer.device, trainer.step = SimpleNamespace(nitp=nitp), "cpu", step
    metrics: Any = object.__new__(nitp_trainer.NITPMetricsProcessor)
    trainer.metrics_processor = metrics
    # Two documents of 3 tokens; one of 6, the labels of the first two of which do not count.
    batches = [
        ({"positions": torch.tensor([[0, 1, 2, 0, 1, 2]])}, torch.arange(6)[None]),
        ({"positions": torch.arange(6)[None]}, torch.tensor([[IGNORED, IGNORED, 1, 2, 3, 4]])),
    ]
    weighed = trainer._weigh_pairs(SimpleNamespace(nitp=nitp), batches)
    return [inputs["pair_weight_BL"] for inputs, _ in weighed], metrics._step


@pytest.fixture(autouse=True)
def other_ranks(monkeypatch) -> None:
    monkeypatch.setattr(nitp_trainer, "dist_sum_tensor", lambda counts, mesh: counts * mesh.size())


@pytest.mark.parametrize(("step", "is_started"), [(4, False), (5, True)])
def test_every_pair_weighs_the_same_in_the_global_batch(step, is_started):
    """4 pairs and 3, on each of 2 ranks: 1/14 each from the start step on, and 0 before."""
    weights, context = weigh(NITPConfig(start_step=5), step=step)
    pairs = [[1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0]]
    for weight_BL, row in zip(weights, pairs, strict=True):
        expected = torch.tensor([row]) / 14 * is_started
        assert weight_BL.dtype == torch.float32 and torch.allclose(weight_BL, expected)
    assert context.is_started == is_started
    assert (context.num_valid_positions.item(), context.num_positions) == (14, 24)


def test_the_token_cosines_pairs_are_the_ordered_pairs_of_a_document():
    """3 * 2 twice, and 4 * 3, on each of 2 ranks; 6 + 4 of 12 positions take part."""
    weights, context = weigh(NITPConfig(loss="token_cosine"), step=1)
    parts = [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    for weight_BL, row in zip(weights, parts, strict=True):
        assert torch.allclose(weight_BL, torch.tensor([row]) / 48)
    assert (context.num_valid_positions.item(), context.num_positions) == (20, 24)
