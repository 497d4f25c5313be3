"""Loads checkpoints across a change of NITP: the projector comes with them, starts fresh, or stays
behind, and never silently."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.checkpointer.base import MODEL, OPTIMIZER
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.protocols.state_dict_adapter import BaseStateDictAdapter
from torchtitan.tools.logging import logger

from nitp.projector import PROJECTOR_NAME
from nitp.start import reset_moments


class NITPCheckpointManager(CheckpointManager):
    """TorchTitan's checkpoint manager, which also loads NTP checkpoints into NITP runs and back."""

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        allow_projector_change: bool = False
        """Whether a checkpoint may be loaded that lacks the projector which this run trains (it
        starts fresh, with its optimizer state), or has one which this run does not (it is left
        out). If false, either is an error. Hugging Face weights never have a projector, and
        need no permission."""

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if config.enable:
            # Not asked of the parameters: under pipeline parallelism only one stage has them. A
            # model without NITP has no such field.
            (model, *_) = kwargs["model_parts"]
            self._has_projector = getattr(model.config, PROJECTOR_NAME, None) is not None
            self._allow_projector_change = config.allow_projector_change

    def dcp_load(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        from_hf: bool,
        from_quantized: bool,
    ) -> None:
        """Load in place. Raises ValueError, one line, for a checkpoint that does not fit."""
        if self.states[MODEL].state_dict().keys().isdisjoint(state_dict):
            # A part of the run's state by itself, as torchft's replicas keep their loader's.
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        planner = _ProjectorPlanner(self._has_projector, self._allow_projector_change)
        try:
            if from_hf:
                if self._has_projector:
                    logger.info(f"The projector starts fresh: {checkpoint_id} has none.")
                super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
                return
            dcp.load(state_dict, checkpoint_id=checkpoint_id, planner=planner)
        except CheckpointException as error:
            (cause, *_) = error.failures.values()
            raise ValueError(f"checkpoint {checkpoint_id}: {cause[0]}") from error
        self.states[MODEL].load_state_dict(state_dict)
        if planner.change:
            logger.info(f"{planner.change}: {checkpoint_id}")
        if planner.change and self._has_projector:
            # TorchTitan made room for what there is to load by a step, which this one has not done.
            reset_moments(_projector_states(self.states[OPTIMIZER]))


class _ProjectorPlanner(DefaultLoadPlanner):
    """Loads everything, and of the projector and its optimizer state all or nothing."""

    def __init__(self, has_projector: bool, allow_change: bool) -> None:
        super().__init__()
        self._has_projector, self._allow_change = has_projector, allow_change
        self.change = ""
        """What became of the projector, in words; empty where checkpoint and run agree."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        super().set_up_planner(state_dict, metadata, is_coordinator)
        assert metadata is not None
        is_saved = any(map(_is_projector, metadata.state_dict_metadata))
        if is_saved == self._has_projector:
            return
        if is_saved:
            mismatch = "has a projector, which this run does not train"
            self.change = "The projector of this checkpoint is left out"
        else:
            mismatch = "has no projector, which this run trains"
            self.change = "The projector starts fresh, this checkpoint has none"
        if not self._allow_change:
            raise ValueError(
                f"it {mismatch}. If NITP is turned on or off on purpose, set "
                "checkpoint.allow_projector_change = true."
            )
        # What is not planned keeps its value: fresh parameters and moments.
        self.state_dict = {k: v for k, v in self.state_dict.items() if not _is_projector(k)}


@functools.cache
def without_projector(adapter: type[BaseStateDictAdapter]) -> type[BaseStateDictAdapter]:
    """A subclass that leaves the projector out: it exists in training only, so Hugging Face
    weights neither receive it nor have it to give."""

    class BackboneStateDictAdapter(adapter):
        def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
            return super().to_hf(
                {name: value for name, value in state_dict.items() if not _is_projector(name)}
            )

    BackboneStateDictAdapter.__name__ = BackboneStateDictAdapter.__qualname__ = (
        f"Backbone{adapter.__name__}"
    )
    return BackboneStateDictAdapter


def _is_projector(name: str) -> bool:
    """Whether a flattened name is the projector's: `nitp_projector.w1.weight`, or its optimizer
    state `optimizer.state.nitp_projector.w1.weight.exp_avg`."""
    return PROJECTOR_NAME in name.split(".")


def _projector_states(optimizers: OptimizersContainer) -> Iterator[dict[str, object]]:
    """What the optimizers keep of the projector; nothing after loading the model alone."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                if _is_projector(name) and parameter in optimizer.state:
                    yield optimizer.state[parameter]
