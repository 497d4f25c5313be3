"""Names: one mapping between our decoders' parameters and stock Hugging Face architectures.

Both directions use TorchTitan's adapter interface: `to_hf` for export, `to_hf` and `from_hf` for
training that starts from Hugging Face weights. Llama, Qwen3 and Glm4Moe share one table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.qwen3.model import Qwen3Model
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.protocols.state_dict_adapter import BaseStateDictAdapter

# What Glm4Moe has beyond TorchTitan's Qwen3 table: the router's selection bias, shared experts.
_GLM4_MOE_NAMES = {
    "model.layers.{}.mlp.gate.e_score_correction_bias": "layers.{}.moe.expert_bias_E",
    "model.layers.{}.mlp.shared_experts.gate_proj.weight": "layers.{}.moe.shared_experts.w1.weight",
    "model.layers.{}.mlp.shared_experts.up_proj.weight": "layers.{}.moe.shared_experts.w3.weight",
    "model.layers.{}.mlp.shared_experts.down_proj.weight": "layers.{}.moe.shared_experts.w2.weight",
}
# Routing compares scores that differ by less than bfloat16 resolves.
_ALWAYS_FLOAT32 = ".e_score_correction_bias"


class DecoderStateDictAdapter(Qwen3StateDictAdapter):
    """Qwen3-block decoders with half-rotation RoPE <-> Llama, Qwen3 and Glm4Moe names.

    No weight is permuted; routed experts are stacked here and one by one there. Unlike TorchTitan's
    Qwen3 adapter it raises ValueError for a name it does not know, instead of dropping the tensor.
    """

    def __init__(self, model_config: Qwen3Model.Config, hf_assets_path: str | None) -> None:
        # The assets folder is a tokenizer's: no weights lie there whose sharding could be kept.
        super().__init__(model_config, None)
        self.from_hf_map.update(_GLM4_MOE_NAMES)

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        _check_known(state_dict, {name for name in self.from_hf_map.values() if name}, "the model")
        return super().to_hf(state_dict)

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        _check_known(hf_state_dict, self.from_hf_map.keys(), "Hugging Face")
        return super().from_hf(hf_state_dict)


def _check_known(names: Any, known: Any, whose: str) -> None:
    """Raise ValueError for a name that, with its layer and expert as {}, is not in `known`."""
    unknown = [name for name in names if re.sub(r"(?<=\.)\d+(?=\.)", "{}", name) not in known]
    if unknown:
        raise ValueError(f"no counterpart is known for {_list(unknown)} of {whose}")


@dataclass(kw_only=True, slots=True, frozen=True)
class Entry:
    """One tensor of the exported folder."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    source: str
    """The checkpoint's tensor that it comes from."""

    @property
    def num_params(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_params * self.dtype.itemsize


def model_shapes(model: Decoder.Config) -> dict[str, torch.Size]:
    """Name -> shape of the decoder's state, from the model on meta: no memory."""
    with torch.device("meta"):
        state = model.build().state_dict()
    return {name: value.shape for name, value in state.items()}


def plan_entries(
    adapter: BaseStateDictAdapter,
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    *,
    is_tied: bool,
) -> list[Entry]:
    """What `adapter` makes of each tensor alone, in the order of `shapes`; on meta, no memory.

    All are `dtype` but the router's selection bias, which stays float32. Raises ValueError for a
    tensor that the adapter drops; of tied embeddings one copy is dropped by intent.
    """
    entries = []
    for source, shape in shapes.items():
        outputs = adapter.to_hf({source: torch.empty(shape, device="meta")})
        if not outputs and not (is_tied and source == "lm_head.weight"):
            raise ValueError(
                f"{source} has no counterpart in Hugging Face weights of this model: "
                f"{type(adapter).__name__} drops it."
            )
        entries += [
            Entry(
                name=name,
                shape=tuple(value.shape),
                dtype=torch.float32 if name.endswith(_ALWAYS_FLOAT32) else dtype,
                source=source,
            )
            for name, value in outputs.items()
        ]
    return entries


def _list(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
