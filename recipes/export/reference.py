"""Our own model with a checkpoint's weights, in float32 and without a process group.

On exported precision it is what the exported folder's logits are compared with.
"""

import copy
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.moe import TokenChoiceTopKRouter

from recipes.export.checkpoint import Checkpoint
from recipes.models.hf.mapping import Entry


def load_decoder(
    config: Decoder.Config,
    checkpoint: Checkpoint,
    convert: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, value: value,
) -> Decoder:
    """The decoder of `config` on the CPU, for evaluation; its weights read from the checkpoint by
    their own names, and `convert(name, value)` of each."""
    model = config.build()
    # Layer by layer: fused projections are merged from a layer's parts when loaded.
    for _, names in groupby(model.state_dict(), lambda name: name.split(".")[:2]):
        state = {name: convert(name, checkpoint.load(name)).float() for name in names}
        model.load_state_dict(state, strict=False)
    return model.eval()


class Reference:
    """The decoder in float32 on the CPU, its weights read from the checkpoint by their own names
    and rounded to the dtypes of `entries`. The exported files have no part in it.

    `config`: of a decoder that runs on the CPU in float32. `depth`: how many of the first layers
    it has; the final norm and the unembedding follow.
    """

    def __init__(
        self,
        config: Decoder.Config,
        checkpoint: Checkpoint,
        entries: Iterable[Entry],
        depth: int,
    ) -> None:
        config = copy.deepcopy(config)
        config.layers = config.layers[:depth]
        dtypes = {entry.source: entry.dtype for entry in entries}
        # Of tied embeddings one copy has no entry; loading writes both to one parameter.
        tied = dtypes["tok_embeddings.weight"]
        self.model = load_decoder(
            config, checkpoint, lambda n, value: value.to(dtypes.get(n, tied))
        )
        self._gaps: list[torch.Tensor] = []
        for module in self.model.modules():
            if isinstance(module, TokenChoiceTopKRouter):
                module.register_forward_hook(self._note_gap)

    @torch.no_grad()
    def __call__(self, tokens_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits_BLV, router_gap_BL), float32.

        The gap is the least difference, over the layers, between the selection scores of the last
        expert chosen and the first one not; infinite for a dense model.
        """
        positions_BL = torch.arange(tokens_BL.shape[1]).expand_as(tokens_BL)
        masks = self.model.get_attention_masks(positions=positions_BL)
        self._gaps = [torch.full(tokens_BL.shape, float("inf"))]
        logits_BLV = self.model(tokens_BL, positions=positions_BL, attention_masks=masks)
        return logits_BLV, torch.stack(self._gaps).amin(0)

    def _note_gap(self, router: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        assert isinstance(router, TokenChoiceTopKRouter)
        (_, bias_E), (_, _, scores_BLE) = inputs, outputs
        selection_BLE = scores_BLE if bias_E is None else scores_BLE + bias_E
        if router.top_k < router.num_experts:
            top_BLK = selection_BLE.topk(router.top_k + 1, dim=-1).values
            self._gaps.append(top_BLK[..., -2] - top_BLK[..., -1])
