"""Sums over the states that pass through a model, and the figures made of them.

No states are kept: hooks add them to sums while the model runs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from nitp import geometry, objective
from recipes.measure.parts import Parts, Subject, stream_in, stream_out
from recipes.measure.rows import Batch

POST_NORM, PRE_NORM, TARGET = "post_norm", "pre_norm", "target"


@dataclass(kw_only=True, slots=True, frozen=True)
class Target:
    """Which states are the implicit targets."""

    layer: int
    """k of E_k(x)."""

    shift: int
    """As `nitp.shift`."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Figures:
    """Of one set of states; NaN where a figure does not exist."""

    states: str
    """post_norm, pre_norm, layer_<k> or target."""

    num_states: int
    effective_rank: float
    average_cosine: float

    constant_loss: float | None = None
    """Of the targets only."""


@torch.no_grad()
def measure_states(
    subject: Subject,
    batches: Iterable[Batch],
    *,
    num_rows: int,
    layers: Sequence[int],
    target: Target | None,
    device: torch.device,
) -> list[Figures]:
    """The figures of the last hidden states, of the same before the final norm, of the residual
    stream after each number of `layers`, and of the targets: over the valid states of all batches.

    Valid are states whose label is not ignored; of targets, those of valid pairs. Each batch's row
    numbers are below `num_rows`.
    """
    observer = _Observer(num_rows, device)
    hooks = observer.attach(subject.parts, layers, target)
    try:
        for batch in batches:
            observer.batch = batch.to(device)
            subject.forward(observer.batch)
    finally:
        for hook in hooks:
            hook.remove()
    names = [POST_NORM, PRE_NORM, *(f"layer_{k}" for k in layers), TARGET]
    return [_compute(name, observer.sums[name]) for name in names if name in observer.sums]


class _Observer:
    """Adds the states that pass to the sums of their name."""

    batch: Batch

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._num_rows, self._device = num_rows, device
        self.sums: dict[str, geometry.StateSums] = {}

    def attach(self, parts: Parts, layers: Sequence[int], target: Target | None) -> list[Any]:
        """The hooks."""
        hooks = [parts.head.register_forward_pre_hook(self._take_last, with_kwargs=True)]
        if parts.norm is not None:
            hooks.append(_watch_input(parts.norm, partial(self._add_valid, PRE_NORM)))
        for k in layers:
            hooks.append(_watch_depth(parts, k, partial(self._add_valid, f"layer_{k}")))
        if target is not None:
            add = partial(self._add_targets, target.shift)
            hooks.append(_watch_depth(parts, target.layer, add))
        return hooks

    def _take_last(self, head: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Leaves the unembedding no states: the logits would be the largest tensor by far."""
        h_BLD = stream_in(args, kwargs)
        self._add_valid(POST_NORM, h_BLD)
        return (h_BLD[:, :0],), {}

    def _add_valid(self, name: str, h_BLD: torch.Tensor) -> None:
        self._add(name, h_BLD, self.batch.labels_BL != objective.IGNORE_INDEX)

    def _add_targets(self, shift: int, z_BLD: torch.Tensor) -> None:
        positions_BL, labels_BL = self.batch.positions_BL, self.batch.labels_BL
        mask_BL = objective.next_token_pair_mask(positions_BL, labels_BL, shift)
        self._add(TARGET, objective.shift_targets(z_BLD, shift), mask_BL)

    def _add(self, name: str, h_BLD: torch.Tensor, mask_BL: torch.Tensor) -> None:
        if name not in self.sums:
            dim = h_BLD.shape[-1]
            self.sums[name] = geometry.build_sums(self._num_rows, dim, device=self._device)
        geometry.update_(self.sums[name], h_BLD, mask_BL, self.batch.row_B)


def _watch_depth(parts: Parts, depth: int, add: Callable[[torch.Tensor], None]) -> Any:
    """A hook on the residual stream after `depth` layers."""
    assert parts.layers is not None
    if depth < len(parts.layers):
        return _watch_input(parts.layers[depth], add)
    return parts.layers[-1].register_forward_hook(
        lambda layer, args, output: add(stream_out(output))
    )


def _watch_input(module: nn.Module, add: Callable[[torch.Tensor], None]) -> Any:
    return module.register_forward_pre_hook(
        lambda module, args, kwargs: add(stream_in(args, kwargs)), with_kwargs=True
    )


def _compute(name: str, sums: geometry.StateSums) -> Figures:
    pairs = geometry.pair_sums(sums.unit_sum_RD, sums.count_R)
    return Figures(
        states=name,
        num_states=int(sums.count_R.sum()),
        effective_rank=geometry.centre(sums).effective_rank().item(),
        average_cosine=pairs.average_cosine().item(),
        constant_loss=pairs.constant_loss().item() if name == TARGET else None,
    )
