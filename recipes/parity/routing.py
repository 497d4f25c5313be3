"""How nearly the routers of a mixture of experts chose otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchtitan.models.common.moe import TokenChoiceTopKRouter
from torchtitan.trainer import Trainer


@contextmanager
def watch_margin(trainer: Trainer) -> Iterator[list[float]]:
    """A probe for one process: [smallest gap, over tokens and layers, between the selection scores
    of the last chosen expert and the next]. Rounding below the gap changes no routing."""
    margins: list[float] = []
    smallest: list[float] = []

    def note(router: TokenChoiceTopKRouter, args: tuple[Any, ...], output: Any) -> None:
        bias_E, scores_BLE = args[1], output[2]
        choice_BLE = scores_BLE if bias_E is None else scores_BLE + bias_E
        best = choice_BLE.topk(router.top_k + 1).values
        margins.append((best[..., -2] - best[..., -1]).min().item())

    modules = [module for part in trainer.model_parts for module in part.modules()]
    routers = [module for module in modules if isinstance(module, TokenChoiceTopKRouter)]
    handles = [router.register_forward_hook(note) for router in routers]
    yield smallest
    for handle in handles:
        handle.remove()
    smallest.append(min(margins))
