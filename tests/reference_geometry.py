"""What is measured of a batch's states once more, independent of the product: NumPy in float64, all
states at once, cosines pair by pair."""

import numpy as np
import torch

from nitp.config import NITPConfig
from recipes.models.shapes import DecoderShape
from tests import reference
from tests.reference import Params
from tests.reference_rows import Row

States = dict[str, list[tuple[int, np.ndarray]]]
"""Prefix of the tags -> (number of the row, state) of every state that counts."""


def states(params: Params, rows: list[Row], shape: DecoderShape, nitp: NITPConfig) -> States:
    """Of the labelled positions: h after and before the final norm, and every layer's output. Of
    the pairs, if there are any: the targets."""
    found: States = {"": [], "pre_norm_": []}
    found |= {f"layer_{k}_": [] for k in range(shape.num_layers + 1)}
    has_target = nitp.is_active and nitp.uses_target
    if has_target:
        found["target_"] = []
    for number, row in enumerate(rows):
        for inputs, labels in reference.split_documents(*row):
            with torch.no_grad():
                stream = reference.residual_stream(params, torch.tensor(inputs), shape)
                h = reference.rms_norm(stream[-1], params["norm.weight"], shape.norm_eps)
            for t in range(len(inputs)):
                if labels[t] == -100:
                    continue
                found[""].append((number, h[t].numpy()))
                found["pre_norm_"].append((number, stream[-1][t].numpy()))
                for k, states_TD in enumerate(stream):
                    found[f"layer_{k}_"].append((number, states_TD[t].numpy()))
                if has_target and t + nitp.shift < len(inputs):
                    z = stream[nitp.target_layer][t + nitp.shift]
                    found["target_"].append((number, z.numpy()))
    return found


def effective_rank(found: list[tuple[int, np.ndarray]]) -> float:
    """From the singular values of the centred states."""
    x = np.stack([state for _, state in found])
    eigenvalues = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    p = eigenvalues / eigenvalues.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def average_cosine(found: list[tuple[int, np.ndarray]]) -> float:
    """Over all pairs of states of different rows."""
    cosines = [
        x @ y / np.sqrt(x @ x) / np.sqrt(y @ y)
        for i, (row, x) in enumerate(found)
        for other, y in found[:i]
        if row != other
    ]
    return float(np.mean(cosines))


def constant_loss(found: list[tuple[int, np.ndarray]]) -> float:
    """Mean distance of the targets to the constant that is best: the direction of their mean."""
    units = [z / np.sqrt(z @ z) for _, z in found]
    mean = np.mean(units, axis=0)
    constant = mean / np.sqrt(mean @ mean)
    return float(np.mean([1 - u @ constant for u in units]))


def figures(
    params: Params,
    rows: list[Row],
    shape: DecoderShape,
    nitp: NITPConfig,
    nitp_loss: float,
    *,
    is_validation: bool = False,
    has_layers: bool = False,
) -> dict[str, float]:
    """The tags of a batch whose NITP loss is `nitp_loss`."""
    found = {
        name: each
        for name, each in states(params, rows, shape, nitp).items()
        if has_layers or not name.startswith("layer")
    }
    prefix = "validation_metrics/" if is_validation else "geometry/"
    tags = {f"{prefix}{name}effective_rank": effective_rank(s) for name, s in found.items()}
    tags |= {f"{prefix}{name}average_cosine": average_cosine(s) for name, s in found.items()}
    if "target_" in found and nitp.loss == "cosine":
        constant = constant_loss(found["target_"])
        prefix = "validation_metrics/" if is_validation else "nitp/"
        tags |= {f"{prefix}constant_loss": constant, f"{prefix}skill": 1 - nitp_loss / constant}
    return tags
