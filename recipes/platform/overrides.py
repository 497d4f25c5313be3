"""CPU stand-ins for TorchTitan components, applied by its override mechanism (see cpu.py)."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
        q_BNLH, k_BNLH, v_BNLH = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        mask_B1LL = _dense_mask(attention_masks, len(q_BLNH), q_BLNH.shape[1], k_BLNH.shape[1])
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
    device = block_mask.kv_num_blocks.device
    return create_mask(block_mask.mask_mod, batch, 1, q_len, k_len, device=device)


@override(target=FlexAttention.Config, exact=True, description="attention with backward on CPU")
def sdpa_attention(config: FlexAttention.Config) -> SDPAttention.Config:
    return derive(config, SDPAttention.Config)


# torch._grouped_mm computes float32 on CPU, but the fake implementation that torch.compile traces
# with refuses it; so does its derivative. An operator of our own has both. Parity runs on GPUs use
# it too: there one product an expert takes the place of a kernel for bfloat16.
@torch.library.custom_op("nitp_cpu::grouped_mm", mutates_args=())
def _grouped_mm(a_RK: torch.Tensor, b_EKN: torch.Tensor, offsets_E: torch.Tensor) -> torch.Tensor:
    """Rows of expert e, [offsets[e-1], offsets[e]), times b[e]; rows of no expert: undefined."""
    if a_RK.device.type == "cpu":
        return torch._grouped_mm(a_RK, b_EKN, offs=offsets_E)
    out_RN = a_RK.new_zeros(a_RK.shape[0], b_EKN.shape[2])
    for b_KN, (start, end) in zip(b_EKN, _bounds(offsets_E), strict=True):
        torch.mm(a_RK[start:end], b_KN, out=out_RN[start:end])
    return out_RN


@torch.library.custom_op("nitp_cpu::grouped_mm_weight_grad", mutates_args=())
def _grouped_mm_weight_grad(
    a_RK: torch.Tensor, grad_RN: torch.Tensor, offsets_E: torch.Tensor
) -> torch.Tensor:
    """a^T grad over the rows of each expert."""
    if a_RK.device.type == "cpu":
        return torch._grouped_mm(a_RK.mT, grad_RN, offs=offsets_E)
    bounds = _bounds(offsets_E)
    return torch.stack([a_RK[start:end].mT @ grad_RN[start:end] for start, end in bounds])


def _bounds(offsets_E: torch.Tensor) -> Iterator[tuple[int, int]]:
    """First row of each expert, and the first row after it."""
    return pairwise([0, *offsets_E.tolist()])


@_grouped_mm.register_fake
def _(a_RK: torch.Tensor, b_EKN: torch.Tensor, offsets_E: torch.Tensor) -> torch.Tensor:
    return a_RK.new_empty(a_RK.shape[0], b_EKN.shape[2])


@_grouped_mm_weight_grad.register_fake
def _(a_RK: torch.Tensor, grad_RN: torch.Tensor, offsets_E: torch.Tensor) -> torch.Tensor:
    return a_RK.new_empty(offsets_E.shape[0], a_RK.shape[1], grad_RN.shape[1])


def _save_for_backward(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_mm_backward(
    ctx: Any, grad_RN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, None]:
    a_RK, b_EKN, offsets_E = ctx.saved_tensors
    grad_RN = grad_RN.contiguous()
    grad_a_RK = _grouped_mm(grad_RN, b_EKN.mT, offsets_E)
    return grad_a_RK, _grouped_mm_weight_grad(a_RK, grad_RN, offsets_E), None


_grouped_mm.register_autograd(_grouped_mm_backward, setup_context=_save_for_backward)


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
        gate_RF = _grouped_mm(x_RD, w1_EFD.mT, offsets_E)
        up_RF = _grouped_mm(x_RD, w3_EFD.mT, offsets_E)
        h_RF = F.silu(gate_RF) * up_RF
        return _grouped_mm(h_RF, w2_EDF.mT, offsets_E)


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
