"""CPU stand-ins for TorchTitan components, applied by its override mechanism (see cpu.py)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_to_all_single
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torchtitan.config import derive, override
from torchtitan.models.common.attention import FlexAttention
from torchtitan.models.common.moe import GroupedExperts
from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher


class SDPAttention(FlexAttention):
    """FlexAttention's contract by scaled_dot_product_attention with a dense mask.

    FlexAttention has no backward on CPU. q_BLNH, k_BLNH, v_BLNH -> out_BLNH; the block mask is
    honoured exactly, at O(L^2) memory. Score modifications are refused.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(FlexAttention.Config):
        pass

    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: BlockMask,
        score_mod: Callable[..., torch.Tensor] | None = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        out_transform: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if score_mod is not None:
            raise NotImplementedError("score modifications have no CPU implementation")
        mask_B1LL = _dense_mask(attention_masks, len(q_BLNH), q_BLNH.shape[1], k_BLNH.shape[1])
        q_BNLH, k_BNLH, v_BNLH = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        out_BNLH = F.scaled_dot_product_attention(
            q_BNLH, k_BNLH, v_BNLH, attn_mask=mask_B1LL, scale=scale, enable_gqa=enable_gqa
        )
        out_BLNH = out_BNLH.transpose(1, 2)
        if out_transform is None:
            return out_BLNH
        k_BNLH = k_BNLH.repeat_interleave(q_BNLH.shape[1] // k_BNLH.shape[1], dim=1)
        scale = q_BNLH.shape[-1] ** -0.5 if scale is None else scale
        scores_BNLL = (q_BNLH @ k_BNLH.mT * scale).masked_fill(~mask_B1LL, float("-inf"))
        return out_transform(out_BLNH, scores_BNLL.logsumexp(-1).transpose(1, 2))


# A forward's layers share one mask, or two where sliding-window layers alternate with full ones.
@functools.lru_cache(maxsize=2)
def _dense_mask(block_mask: BlockMask, batch: int, q_len: int, k_len: int) -> torch.Tensor:
    """bool [B, 1, Lq, Lk], true where attention is allowed."""
    return create_mask(block_mask.mask_mod, batch, 1, q_len, k_len, device="cpu")


@override(target=FlexAttention.Config, exact=True, description="attention with backward on CPU")
def sdpa_attention(config: FlexAttention.Config) -> SDPAttention.Config:
    return derive(config, SDPAttention.Config)


class Float32GroupedExperts(GroupedExperts):
    """GroupedExperts without its casts to bfloat16, for runs that ask for float32."""

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        pass

    def forward(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor) -> torch.Tensor:
        w1_EFD, w2_EDF, w3_EFD = (
            w.to_local() if isinstance(w, DTensor) else w
            for w in (self.w1_EFD, self.w2_EDF, self.w3_EFD)
        )
        offsets_E = torch.cumsum(num_tokens_per_expert_E, dim=0, dtype=torch.int32)
        gate_RF = self._grouped_mm(A=x_RD, B_t=w1_EFD.transpose(-2, -1), offs=offsets_E)
        up_RF = self._grouped_mm(A=x_RD, B_t=w3_EFD.transpose(-2, -1), offs=offsets_E)
        h_RF = F.silu(gate_RF) * up_RF
        return self._grouped_mm(A=h_RF, B_t=w2_EDF.transpose(-2, -1), offs=offsets_E)


@override(target=GroupedExperts.Config, exact=True, description="experts in float32")
def float32_experts(config: GroupedExperts.Config) -> Float32GroupedExperts.Config:
    return derive(config, Float32GroupedExperts.Config)


class UnevenTokenDispatcher(AllToAllTokenDispatcher):
    """AllToAllTokenDispatcher whose ranks may send each other different numbers of tokens.

    TorchTitan exchanges lists of tensors, which gloo admits only in equal sizes, as no router
    deals them. all_to_all_single with explicit splits moves the same rows in the same order, and
    its backward sends gradients the way back.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(AllToAllTokenDispatcher.Config):
        pass

    def _dispatch_token_exchange(
        self,
        routed_input_ND: torch.Tensor,
        pg: ProcessGroup,
        output_splits: list[int],
        input_splits: list[int],
    ) -> torch.Tensor:
        return all_to_all_single(routed_input_ND, output_splits, input_splits, pg)

    def _combine_token_exchange(
        self,
        routed_output_RD: torch.Tensor,
        pg: ProcessGroup,
        input_splits: list[int],
        output_splits: list[int],
    ) -> torch.Tensor:
        # Rows go back where they came from: the splits of dispatch change sides.
        return all_to_all_single(routed_output_RD, input_splits, output_splits, pg)


@override(
    target=AllToAllTokenDispatcher.Config, exact=True, description="uneven token exchange on gloo"
)
def uneven_token_dispatcher(config: AllToAllTokenDispatcher.Config) -> UnevenTokenDispatcher.Config:
    return derive(config, UnevenTokenDispatcher.Config)
