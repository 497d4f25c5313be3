"""The two kernels that TorchTitan's Qwen3.5 takes from flash-linear-attention, in plain PyTorch.

That package runs on CUDA alone. This one module stands in for it where tests put its folder on the
path, so that Qwen3.5 trains on CPU.
"""

import sys
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F


def causal_conv1d(
    x: torch.Tensor, weight: torch.Tensor, *, cu_seqlens_cpu: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """silu of the depthwise causal convolution of each document: x [1, T, D], weight [D, W]."""
    documents = []
    for x_TD in x[0].split(cu_seqlens_cpu.diff().tolist()):
        x_DT = F.pad(x_TD.T, (weight.shape[1] - 1, 0))
        documents.append(F.conv1d(x_DT, weight[:, None], groups=len(weight)).T)
    return F.silu(torch.cat(documents))[None], None


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    cu_seqlens_cpu: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Gated DeltaNet (arXiv 2412.06464, Eq. 10), token by token; the state S begins anew in each
    document. q, k [1, T, N, K], v [1, T, N, V], g (log decay), beta [1, T, N] -> [1, T, N, V]."""
    q, k = F.normalize(q, dim=-1) * q.shape[-1] ** -0.5, F.normalize(k, dim=-1)
    starts, outputs = set(cu_seqlens_cpu.tolist()), []
    zero_NKV = state_NKV = torch.zeros(*k.shape[2:], v.shape[-1])
    for t in range(q.shape[1]):
        q_N1K, k_N1K, v_N1V = (x[0, t, :, None].float() for x in (q, k, v))
        decay_N11, beta_N11 = g[0, t, :, None, None].exp(), beta[0, t, :, None, None]
        state_NKV = zero_NKV if t in starts else decay_N11 * state_NKV
        state_NKV = state_NKV + k_N1K.mT @ (beta_N11 * (v_N1V - k_N1K @ state_NKV))
        outputs.append((q_N1K @ state_NKV)[:, 0])
    return torch.stack(outputs)[None].to(v.dtype), None


def _provide(path: str, **names: Any) -> None:
    module = ModuleType(path)
    vars(module).update(names)
    sys.modules[path] = module


class _Kernel(torch.autograd.Function):
    """TorchTitan only registers these classes with its type checker."""


__path__: list[str] = []
for _package in ("modules", "modules.conv", "modules.conv.triton", "ops"):
    _provide(f"fla.{_package}", __path__=[])
_provide("fla.modules.conv.causal_conv1d", causal_conv1d=causal_conv1d)
_provide("fla.modules.conv.triton.ops", CausalConv1dFunction=_Kernel)
_provide(
    "fla.ops.gated_delta_rule",
    __path__=[],
    chunk_gated_delta_rule=chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule=None,
)
_provide("fla.ops.gated_delta_rule.chunk", ChunkGatedDeltaRuleFunction=_Kernel)
_provide("fla.ops.gated_delta_rule.fused_recurrent", FusedRecurrentFunction=_Kernel)
