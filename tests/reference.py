"""The paper's equations once more, independent of the product: float64, plain loops, one document
at a time. No masks, no packing, no chunks, no ranks: what those must not change. Every figure that
a step or a validation logs, and the step itself.

`params` maps TorchTitan's parameter names to float64 leaves.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from nitp.config import NITPConfig
from recipes.models.shapes import DecoderShape

Params = dict[str, torch.Tensor]
Document = tuple[list[int], list[int]]  # (inputs, labels)


@dataclass
class Losses:
    """Of a global batch given as its documents."""

    total: torch.Tensor
    ntp: torch.Tensor
    nitp: torch.Tensor
    """0 where no position has a pair."""

    cosine: torch.Tensor
    """Mean over the pairs, whatever the loss is."""

    num_labels: int
    num_pairs: int
    valid_fraction: float
    """Of all positions, those that take part in NITP."""

    ntp_inputs: list[torch.Tensor]
    nitp_inputs: list[torch.Tensor]
    """Outputs of the decoder that each term reads, of every document."""

    def grad_ratio(self, weight: float) -> float:
        """Norm of lambda dL_NITP over that of dL_NTP, both at the decoder's outputs."""
        options = {"retain_graph": True, "materialize_grads": True}
        ntp = torch.autograd.grad(self.ntp, self.ntp_inputs, **options)
        nitp = torch.autograd.grad(self.nitp, self.nitp_inputs, **options)
        return weight * norm(nitp) / norm(ntp)


def losses(
    params: Params, documents: list[Document], shape: DecoderShape, nitp: NITPConfig
) -> Losses:
    """L_total, L_NTP, L_NITP and what is counted on the way."""
    nll, num_labels = torch.zeros((), dtype=torch.float64), 0
    distances, cosines = [], []
    num_valid = num_positions = 0
    ntp_inputs, nitp_inputs = [], []
    for inputs, labels in documents:
        stream = residual_stream(params, torch.tensor(inputs), shape)
        # Copies: of one tensor that is both, each side has a gradient of its own.
        z = stream[nitp.target_layer].clone()
        if nitp.stop_gradient:
            z = z.detach()
        h = rms_norm(stream[-1], params["norm.weight"], shape.norm_eps)
        logits = h @ params["lm_head.weight"].T
        source = h if nitp.hidden == "post_norm" else stream[-1].clone()
        ntp_inputs.append(h)
        nitp_inputs += [source] if nitp.stop_gradient else [source, z]
        num_positions += len(inputs)
        labelled = [t for t in range(len(inputs)) if labels[t] != -100]
        for t in labelled:
            nll = nll - logits[t].log_softmax(-1)[labels[t]]
            num_labels += 1
            if nitp.loss == "token_cosine":
                num_valid += 1
                for other in labelled:
                    if other != t:
                        cosines.append(1 - cosine_distance(source[t], source[other]))
                        distances.append(cosines[-1])
            elif t + nitp.shift < len(inputs):
                num_valid += 1
                prediction = source[t] if nitp.projector == "none" else project(params, source[t])
                distances.append(DISTANCES[nitp.loss](prediction, z[t + nitp.shift]))
                cosines.append(1 - cosine_distance(prediction, z[t + nitp.shift]))
    ntp, num_pairs = nll / num_labels, len(distances)
    nitp_loss, cosine = sum(distances) / num_pairs, sum(cosines) / num_pairs
    return Losses(
        total=ntp + nitp.weight * nitp_loss, ntp=ntp, nitp=nitp_loss, cosine=cosine,
        num_labels=num_labels, num_pairs=num_pairs, valid_fraction=num_valid / num_positions,
        ntp_inputs=ntp_inputs, nitp_inputs=nitp_inputs,
    )  # fmt: skip


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """Of all of them as one vector."""
    return sum(float((tensor**2).sum()) for tensor in tensors) ** 0.5


@dataclass
class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter), after clipping by the global norm."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_norm: float
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.first: Params = {}
        self.second: Params = {}

    def clip(self, grads: Params) -> Params:
        scale = min(1.0, self.max_norm / norm(grads.values()))
        return {name: grad * scale for name, grad in grads.items()}

    def step(self, params: Params, grads: Params, lr: float) -> Params:
        """The parameters after a step, as new leaves."""
        self.num_steps += 1
        grads, updated = self.clip(grads), {}
        for name, grad in grads.items():
            first = self.first.get(name, torch.zeros_like(grad))
            second = self.second.get(name, torch.zeros_like(grad))
            self.first[name] = self.betas[0] * first + (1 - self.betas[0]) * grad
            self.second[name] = self.betas[1] * second + (1 - self.betas[1]) * grad**2
            mean = self.first[name] / (1 - self.betas[0] ** self.num_steps)
            square = self.second[name] / (1 - self.betas[1] ** self.num_steps)
            decayed = params[name].detach() * (1 - lr * self.weight_decay)
            updated[name] = (decayed - lr * mean / (square**0.5 + self.eps)).requires_grad_()
        return updated


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
    """The top_k experts by score, weighted by their normalised scores; a shared expert."""
    experts = "moe.routed_experts.inner_experts"
    rows = []
    for t in range(len(x)):
        logits = layer["moe.router.gate.weight"] @ x[t]
        is_softmax = shape.router_score_func == "softmax"
        scores = logits.exp() / logits.exp().sum() if is_softmax else logits.sigmoid()
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
