"""The paper's equations once more, independent of the product: float64, plain loops, one document
at a time. No masks, no packing, no chunks, no ranks: what those must not change.

`params` maps TorchTitan's parameter names to float64 leaves.
"""

from dataclasses import dataclass

import torch

from nitp.config import NITPConfig
from recipes.models.shapes import DecoderShape

Params = dict[str, torch.Tensor]
Document = tuple[list[int], list[int]]  # (inputs, labels)


@dataclass
class Losses:
    total: torch.Tensor
    ntp: torch.Tensor
    nitp: torch.Tensor


def losses(
    params: Params, documents: list[Document], shape: DecoderShape, nitp: NITPConfig
) -> Losses:
    """L_total, L_NTP and L_NITP of a global batch given as its documents."""
    nll, num_labels = torch.zeros((), dtype=torch.float64), 0
    distance, num_pairs = torch.zeros((), dtype=torch.float64), 0
    for inputs, labels in documents:
        stream = residual_stream(params, torch.tensor(inputs), shape)
        z = stream[nitp.target_layer]
        if nitp.stop_gradient:
            z = z.detach()
        h = rms_norm(stream[-1], params["norm.weight"], shape.norm_eps)
        logits = h @ params["lm_head.weight"].T
        source = h if nitp.hidden == "post_norm" else stream[-1]
        labelled = [t for t in range(len(inputs)) if labels[t] != -100]
        for t in labelled:
            nll = nll - logits[t].log_softmax(-1)[labels[t]]
            num_labels += 1
            if nitp.loss == "token_cosine":
                for other in labelled:
                    if other != t:
                        distance = distance + 1 - cosine_distance(source[t], source[other])
                        num_pairs += 1
            elif t + nitp.shift < len(inputs):
                prediction = source[t] if nitp.projector == "none" else project(params, source[t])
                distance = distance + DISTANCES[nitp.loss](prediction, z[t + nitp.shift])
                num_pairs += 1
    ntp, nitp_loss = nll / num_labels, distance / num_pairs
    return Losses(ntp + nitp.weight * nitp_loss, ntp, nitp_loss)


def cosine_distance(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return 1 - p @ z / p.norm() / z.norm()


def mse(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return sum((p[i] - z[i]) ** 2 for i in range(len(p))) / len(p)


def smooth_l1(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    differences = [(p[i] - z[i]).abs() for i in range(len(p))]
    return sum(d - 0.5 if d > 1 else d**2 / 2 for d in differences) / len(p)


def kl(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    target, prediction = z.exp() / z.exp().sum(), p.exp() / p.exp().sum()
    return sum(target[i] * (target[i] / prediction[i]).log() for i in range(len(p)))


DISTANCES = {"cosine": cosine_distance, "mse": mse, "smooth_l1": smooth_l1, "kl": kl}


def split_documents(inputs: list[int], positions: list[int], labels: list[int]) -> list[Document]:
    """One packed row as documents: a position that is not the previous one plus 1 starts one."""
    documents: list[Document] = []
    for t, token in enumerate(inputs):
        if t == 0 or positions[t] != positions[t - 1] + 1:
            documents.append(([], []))
        documents[-1][0].append(token)
        documents[-1][1].append(labels[t])
    return documents


def residual_stream(params: Params, tokens: torch.Tensor, shape: DecoderShape) -> list:
    """E_0(x), E_1(x), ..., E_num_layers(x) of one document, each [T, D]."""
    x = params["tok_embeddings.weight"][tokens]
    stream = [x]
    for index in range(shape.num_layers):
        layer = {
            name.removeprefix(f"layers.{index}."): value
            for name, value in params.items()
            if name.startswith(f"layers.{index}.")
        }
        normed = rms_norm(x, layer["attention_norm.weight"], shape.norm_eps)
        x = x + attention(layer, normed, shape)
        normed = rms_norm(x, layer["ffn_norm.weight"], shape.norm_eps)
        is_moe = "moe.router.gate.weight" in layer
        x = x + (moe(layer, normed, shape) if is_moe else swiglu(layer, "feed_forward", normed))
        stream.append(x)
    return stream


def project(params: Params, h: torch.Tensor) -> torch.Tensor:
    return swiglu(params, "nitp_projector", h)


def swiglu(params: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    gate = x @ params[f"{name}.w1.weight"].T
    up = x @ params[f"{name}.w3.weight"].T
    return (gate * gate.sigmoid() * up) @ params[f"{name}.w2.weight"].T


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: torch.Tensor, shape: DecoderShape) -> torch.Tensor:
    """Rotary embedding of one head [T, H]: component i pairs with i + H/2."""
    half = shape.head_dim // 2
    frequency = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * frequency
    first, second = x[:, :half], x[:, half:]
    return torch.cat(
        [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1
    )


def attention(layer: Params, x: torch.Tensor, shape: DecoderShape) -> torch.Tensor:
    heads_per_kv = shape.num_heads // shape.num_kv_heads
    # The fused matrix holds, for each key-value head, its query heads, its key and its value.
    fused = layer["attention.qkv_linear.wqkv.weight"].view(
        shape.num_kv_heads, heads_per_kv + 2, shape.head_dim, shape.dim
    )
    outputs = []
    for kv in range(shape.num_kv_heads):
        key = rotate(x @ fused[kv, heads_per_kv].T, shape)
        value = x @ fused[kv, heads_per_kv + 1].T
        for query_head in range(heads_per_kv):
            query = rotate(x @ fused[kv, query_head].T, shape)
            rows = []
            for t in range(len(x)):
                scores = key[: t + 1] @ query[t] / shape.head_dim**0.5
                rows.append(scores.softmax(-1) @ value[: t + 1])
            outputs.append(torch.stack(rows))
    return torch.cat(outputs, -1) @ layer["attention.wo.weight"].T


def moe(layer: Params, x: torch.Tensor, shape: DecoderShape) -> torch.Tensor:
    """Sigmoid scores; the top_k experts, weighted by their normalised scores; a shared expert."""
    experts = "moe.routed_experts.inner_experts"
    rows = []
    for t in range(len(x)):
        scores = (layer["moe.router.gate.weight"] @ x[t]).sigmoid()
        chosen = scores.topk(shape.top_k).indices.tolist()
        total = sum(scores[e] for e in chosen)
        row = swiglu(layer, "moe.shared_experts", x[t])
        for e in chosen:
            gate = layer[f"{experts}.w1_EFD"][e] @ x[t]
            up = layer[f"{experts}.w3_EFD"][e] @ x[t]
            out = layer[f"{experts}.w2_EDF"][e] @ (gate * gate.sigmoid() * up)
            row = row + scores[e] / total * out
        rows.append(row)
    return torch.stack(rows)
